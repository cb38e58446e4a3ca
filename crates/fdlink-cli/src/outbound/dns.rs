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
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fdlink_stack::UdpFlow;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use super::{Outbound, udp};

/// How long a server may take before the next is asked; glibc asks again after 5 s.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the last server may take: as long as glibc still listens.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// A flow without look-ups under way is over when nothing has come for that long.
const IDLE: Duration = Duration::from_secs(10);
/// Look-ups of one flow under way; with more, the oldest is given up.
const MAX_PENDING: usize = 32;
/// Answers before other tasks run.
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

/// Why a flow ended.
#[derive(PartialEq, Eq)]
enum End {
    /// Nothing came, or the link is gone.
    Over,
    /// No server is there.
    Refused,
}

struct Flow<'a> {
    outbound: &'a Outbound,
    flow: &'a UdpFlow,
    servers: Vec<Server>,
    pending: Vec<Pending>,
    idle_at: Instant,
}

/// Serves one flow to its end.
pub(super) async fn serve(outbound: Arc<Outbound>, flow: UdpFlow) {
    let servers = outbound.resolvers.now().into_iter().map(Server::Unasked).collect();
    let idle_at = Instant::now() + IDLE;
    let state = Flow { outbound: &outbound, flow: &flow, servers, pending: Vec::new(), idle_at };
    if state.run().await == End::Refused {
        flow.refuse();
    }
}

impl Flow<'_> {
    async fn run(mut self) -> End {
        loop {
            let due = self.pending.iter().map(|pending| pending.due).min().unwrap_or(self.idle_at);
            tokio::select! {
                received = poll_fn(|cx| self.poll_query(cx)) => match received {
                    Ok(query) => self.start(query),
                    Err(_) => return End::Over,
                },
                at = any_ready(&self.servers) => self.take_answers(at),
                () = sleep_until(due) => {
                    if self.pending.is_empty() {
                        return End::Over;
                    }
                }
            }
            self.ask_next(Instant::now());
            if self.servers.iter().all(|server| matches!(server, Server::Failed)) {
                return End::Refused;
            }
            self.idle_at = Instant::now() + IDLE;
            tokio::task::coop::consume_budget().await;
        }
    }

    /// The next query; empty where it was too short to be one.
    fn poll_query(&self, cx: &mut Context<'_>) -> Poll<io::Result<Box<[u8]>>> {
        let mut scratch = self.outbound.scratch();
        self.flow.poll_recv(cx, &mut scratch).map_ok(|len| Box::from(&scratch[..len]))
    }

    fn start(&mut self, query: Box<[u8]>) {
        let counters = &self.outbound.counters;
        if query.len() < HEADER_LEN {
            return counters.udp_dropped.add(1);
        }
        counters.dns_queries.add(1);
        let mut pending = Pending { query, server: 0, due: Instant::now() };
        // Where the command asks again, that is not another look-up.
        self.pending.retain(|old| old.id() != pending.id());
        if self.pending.len() == MAX_PENDING {
            self.pending.remove(0);
            counters.dns_unanswered.add(1);
        }
        match self.ask(&mut pending) {
            true => self.pending.push(pending),
            false => counters.dns_unanswered.add(1),
        }
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

    /// Passes on what a server has sent.
    fn take_answers(&mut self, at: usize) {
        let Some(Server::Asked(socket)) = self.servers.get(at) else { return };
        let mut scratch = self.outbound.scratch();
        for _ in 0..ROUNDS {
            match udp::receive(socket, &mut scratch) {
                Ok(len) => {
                    let answer = &scratch[..len];
                    let asked = self.pending.iter().position(|p| is_answer(p, answer));
                    // Late, or nobody's.
                    let Some(asked) = asked else { continue };
                    self.pending.remove(asked);
                    self.outbound.counters.dns_answers.add(1);
                    self.flow.send(answer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.servers[at] = Server::Failed;
                    return;
                }
            }
        }
    }
}

/// The first of the servers whose socket has something.
async fn any_ready(servers: &[Server]) -> usize {
    let mut waiting: Vec<_> = servers
        .iter()
        .enumerate()
        .filter_map(|(at, server)| match server {
            Server::Asked(socket) => Some((at, Box::pin(socket.ready(udp::INCOMING)))),
            _ => None,
        })
        .collect();
    poll_fn(|cx| {
        for (at, ready) in &mut waiting {
            if ready.as_mut().poll(cx).is_ready() {
                return Poll::Ready(*at);
            }
        }
        Poll::Pending
    })
    .await
}

/// A response (RFC 1035, section 4.1.1: QR is set) with the id of the query.
fn is_answer(pending: &Pending, bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_LEN && bytes[..2] == *pending.id() && bytes[2] & 0x80 != 0
}
