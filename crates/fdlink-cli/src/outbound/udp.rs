//! UDP: a connected socket of the host for each flow, until nothing has come for a while.
//!
//! Datagrams wait only in the stack's queue (on the way out) and in the host's socket (on the way
//! in); between the two they are in the scratch buffer, for one call.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fdlink_stack::{IncomingUdp, Refusal, UdpFlow};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use super::{Outbound, Verdict, dns};

/// A flow is over when nothing has come for that long. RFC 4787 (REQ-5) asks for two minutes of a
/// NAT at the border; here a flow costs a socket, and the next datagram makes it anew.
const IDLE: Duration = Duration::from_secs(60);
/// Datagrams each way before other tasks run.
const ROUNDS: usize = 32;

/// Takes a flow: refuses it at once, or gives it a task.
pub(super) fn take(outbound: &Arc<Outbound>, incoming: IncomingUdp) {
    let counters = &outbound.counters;
    match outbound.policy.judge(incoming.destination()) {
        Verdict::Allowed(address) | Verdict::HostLoopback(address) => match connect(address) {
            Ok(host) => {
                counters.udp_flows.add(1);
                tokio::spawn(serve(Arc::clone(outbound), incoming.accept(), host));
            }
            Err(error) => {
                counters.udp_errors.add(1);
                incoming.refuse(outbound.refusal(&error));
            }
        },
        Verdict::Dns => {
            tokio::spawn(dns::serve(Arc::clone(outbound), incoming.accept()));
        }
        Verdict::Closed => {
            counters.closed_ports.add(1);
            incoming.refuse(Refusal::Refused);
        }
        Verdict::Denied(reason) => {
            outbound.count_denied(reason);
            incoming.refuse(Refusal::Prohibited);
        }
    }
}

/// A socket of the host, connected: it hears nobody but `address`, and ICMP errors about it.
pub(super) fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Why a flow ended.
enum End {
    Failed,
    Idle,
    LinkClosed,
    Refused,
}

async fn serve(outbound: Arc<Outbound>, flow: UdpFlow, host: UdpSocket) {
    let relay = Relay { outbound: &outbound, flow: &flow, host: &host };
    let counters = &outbound.counters;
    match relay.run().await {
        End::Failed => counters.udp_errors.add(1),
        End::Idle => counters.udp_idle.add(1),
        End::LinkClosed => {}
        End::Refused => {
            counters.udp_refused.add(1);
            flow.refuse();
        }
    }
}

#[derive(Clone, Copy)]
struct Relay<'a> {
    outbound: &'a Outbound,
    flow: &'a UdpFlow,
    host: &'a UdpSocket,
}

impl Relay<'_> {
    async fn run(self) -> End {
        let mut last = Instant::now();
        let mut idle = pin!(sleep_until(last + IDLE));
        loop {
            // Rounds, so that a flood in one direction keeps neither the other nor other tasks.
            let moved = tokio::select! {
                moved = poll_fn(|cx| self.move_out(cx)) => moved,
                ready = self.host.ready(INCOMING) => match ready {
                    Ok(_) => self.move_in(),
                    Err(_) => Err(End::Failed),
                },
                () = &mut idle => {
                    if last.elapsed() >= IDLE {
                        return End::Idle;
                    }
                    idle.as_mut().reset(last + IDLE);
                    continue;
                }
            };
            if let Err(end) = moved {
                return end;
            }
            last = Instant::now();
            tokio::task::coop::consume_budget().await;
        }
    }

    /// From the command to the host.
    fn move_out(self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        for round in 0..ROUNDS {
            match self.step_out(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Pending if round > 0 => break,
                result => return result,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn step_out(self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        // First whether it can go, so that none is taken which then has nowhere to wait.
        if ready!(self.host.poll_send_ready(cx)).is_err() {
            return Poll::Ready(Err(End::Failed));
        }
        let mut scratch = self.outbound.scratch();
        let Ok(len) = ready!(self.flow.poll_recv(cx, &mut scratch)) else {
            return Poll::Ready(Err(End::LinkClosed));
        };
        let counters = &self.outbound.counters;
        Poll::Ready(match self.host.try_send(&scratch[..len]) {
            Ok(_) => {
                counters.udp_datagrams_out.add(1);
                Ok(())
            }
            Err(error) => match outcome(&error) {
                // No room after all, or too long for the way: lost, as networks lose them.
                None => {
                    counters.udp_dropped.add(1);
                    Ok(())
                }
                Some(end) => Err(end),
            },
        })
    }

    /// From the host to the command.
    fn move_in(self) -> Result<(), End> {
        for _ in 0..ROUNDS {
            let mut scratch = self.outbound.scratch();
            match receive(self.host, &mut scratch) {
                Ok(len) => {
                    // Where there is no room inside, the stack has counted it.
                    if self.flow.send(&scratch[..len]) {
                        self.outbound.counters.udp_datagrams_in.add(1);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    if let Some(end) = outcome(&error) {
                        return Err(end);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a socket is waited for that may have a datagram or an ICMP error: the latter shows only as
/// EPOLLERR, which the runtime does not take for readable.
pub(super) const INCOMING: Interest = Interest::READABLE.add(Interest::ERROR);

/// The next datagram, or the error that an ICMP message left, if there is one.
pub(super) fn receive(socket: &UdpSocket, buf: &mut [u8]) -> io::Result<usize> {
    let mut receive = || Ok(rustix::net::recv(socket, &mut *buf, RecvFlags::DONTWAIT)?.0);
    // One after the other: of several interests at once, this call knows none (tokio 1.54).
    match socket.try_io(Interest::READABLE, &mut receive) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            socket.try_io(Interest::ERROR, receive)
        }
        result => result,
    }
}

/// What an error of a call on the host's socket means for the flow; `None` where it goes on.
fn outcome(error: &io::Error) -> Option<End> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => None,
        io::ErrorKind::ConnectionRefused => Some(End::Refused),
        io::ErrorKind::NetworkDown
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::HostUnreachable => Some(End::Failed),
        // EMSGSIZE, ENOBUFS, EPERM of a packet filter: this datagram's, not the flow's.
        _ => None,
    }
}
