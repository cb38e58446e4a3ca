//! Name look-ups over UDP: each goes to the host's name servers, one after the other until one
//! answers, and the answer comes back from the address that the command asked.
//!
//! # Theory of operation
//!
//! A flow is one socket of the command's resolver, which may have several look-ups under way (glibc
//! asks for A and AAAA at once). A look-up is known by the id in its first two bytes, and waits in
//! a short list with the server that was asked last and when to ask the next. There is one socket
//! of the host for each server that this flow has asked, connected, so that nobody else can answer;
//! its port is the kernel's random choice. A server that refuses (nobody listens there) is passed
//! over at once. When every server has refused, the command is told the same.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fdlink_stack::UdpFlow;
use tokio::net::UdpSocket;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Outbound, udp};

/// How long a server may take before the next is asked; glibc asks again after 5 s.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the last server may take: as long as glibc still listens.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// A flow without look-ups under way is over when nothing has come for that long.
const IDLE: Duration = Duration::from_secs(10);
/// Look-ups of one flow under way; with more, the oldest is given up.
const MAX_PENDING: usize = 32;
/// Datagrams of each kind before other tasks run.
const ROUNDS: usize = 16;
/// Length of a DNS header (RFC 1035, section 4.1.1); what is shorter is no query and no answer.
const HEADER_LEN: usize = 12;

/// A look-up under way.
struct Pending {
    query: Box<[u8]>,
    /// Which server was asked last.
    server: usize,
    /// When the next is.
    due: Instant,
}

impl Pending {
    fn id(&self) -> &[u8] {
        &self.query[..2]
    }
}

/// How far a server's socket is.
enum Server {
    Unasked(SocketAddr),
    Asked(UdpSocket),
    /// No socket, no way, or nobody there.
    Failed,
}

struct Flow<'a> {
    outbound: &'a Outbound,
    flow: &'a UdpFlow,
    servers: Vec<Server>,
    pending: Vec<Pending>,
    idle_at: Instant,
    timer: Pin<Box<Sleep>>,
}

/// Why a flow ended.
enum End {
    /// Nothing came, or the link is gone.
    Over,
    /// No server is there.
    Refused,
}

/// Serves one flow to its end.
pub(super) async fn serve(outbound: Arc<Outbound>, flow: UdpFlow) {
    let servers = outbound.resolvers.now().into_iter().map(Server::Unasked).collect();
    let idle_at = Instant::now() + IDLE;
    let timer = Box::pin(sleep_until(idle_at));
    let pending = Vec::new();
    let mut state = Flow { outbound: &outbound, flow: &flow, servers, pending, idle_at, timer };
    if let End::Refused = poll_fn(|cx| state.poll(cx)).await {
        flow.refuse();
    }
}

impl Flow<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for round in 0..=ROUNDS {
            let Ok(asked) = self.take_query(cx) else { return Poll::Ready(End::Over) };
            let answered = self.take_answers(cx);
            self.ask_next(Instant::now());
            if self.servers.iter().all(|server| matches!(server, Server::Failed)) {
                return Poll::Ready(End::Refused);
            }
            if !asked && !answered {
                break;
            }
            self.idle_at = Instant::now() + IDLE;
            if round == ROUNDS {
                cx.waker().wake_by_ref();
            }
        }
        self.poll_timer(cx)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let due = self.pending.iter().map(|pending| pending.due).min().unwrap_or(self.idle_at);
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if self.pending.is_empty() {
            return Poll::Ready(End::Over);
        }
        // What is due is asked elsewhere in the next poll.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether there was a query.
    fn take_query(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut scratch = self.outbound.scratch();
        let Poll::Ready(received) = self.flow.poll_recv(cx, &mut scratch) else {
            return Ok(false);
        };
        let len = received?;
        if len < HEADER_LEN {
            self.outbound.counters.udp_dropped.add(1);
            return Ok(true);
        }
        let query = Box::from(&scratch[..len]);
        drop(scratch);
        self.outbound.counters.dns_queries.add(1);
        if self.pending.len() == MAX_PENDING {
            self.pending.remove(0);
            self.outbound.counters.dns_unanswered.add(1);
        }
        let mut pending = Pending { query, server: 0, due: Instant::now() };
        // The command asks again: not another look-up.
        self.pending.retain(|old| old.id() != pending.id());
        if self.ask(&mut pending) {
            self.pending.push(pending);
        }
        Ok(true)
    }

    /// Asks the next server wherever one is due.
    fn ask_next(&mut self, now: Instant) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain_mut(|pending| {
            let server_failed = matches!(self.servers.get(pending.server), Some(Server::Failed));
            if pending.due > now && !server_failed {
                return true;
            }
            pending.server += 1;
            let asked = self.ask(pending);
            let counters = &self.outbound.counters;
            if asked { &counters.dns_retries } else { &counters.dns_unanswered }.add(1);
            asked
        });
        self.pending = pending;
    }

    /// Asks the look-up's server or, where that has failed, one after it; false where none is
    /// left.
    fn ask(&mut self, pending: &mut Pending) -> bool {
        while let Some(server) = self.servers.get_mut(pending.server) {
            if let Server::Unasked(address) = server {
                *server = match udp::connect(*address) {
                    Ok(socket) => Server::Asked(socket),
                    Err(error) => {
                        let _ = self.outbound.refusal(&error);
                        Server::Failed
                    }
                };
            }
            if let Server::Asked(socket) = server {
                // By the plain call: the runtime does not know yet that a new socket is writable.
                let sent = rustix::net::send(
                    &*socket,
                    &pending.query,
                    rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
                );
                match sent {
                    Ok(_) => {
                        let is_last = pending.server + 1 == self.servers.len();
                        let patience = if is_last { LAST_PATIENCE } else { PATIENCE };
                        pending.due = Instant::now() + patience;
                        return true;
                    }
                    Err(_) => *server = Server::Failed,
                }
            }
            pending.server += 1;
        }
        false
    }

    /// Whether there were answers, or a server failed.
    fn take_answers(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        let mut scratch = self.outbound.scratch();
        for server in &mut self.servers {
            let Server::Asked(socket) = server else { continue };
            if socket.poll_recv_ready(cx).is_pending() {
                continue;
            }
            match socket.try_recv(&mut scratch) {
                Ok(len) => {
                    any = true;
                    let answer = &scratch[..len];
                    let Some(at) = self.pending.iter().position(|p| is_answer(p, answer)) else {
                        continue;
                    };
                    self.pending.remove(at);
                    self.outbound.counters.dns_answers.add(1);
                    self.flow.send(answer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Forgotten by the runtime now; once more, to be woken.
                    any |= socket.poll_recv_ready(cx).is_ready();
                }
                Err(_) => {
                    any = true;
                    *server = Server::Failed;
                }
            }
        }
        any
    }
}

/// A response (RFC 1035, section 4.1.1: QR is set) with the id of the query.
fn is_answer(pending: &Pending, bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_LEN && bytes[..2] == *pending.id() && bytes[2] & 0x80 != 0
}
