//! UDP: a connected socket of the host for each flow, until nothing has come for a while.
//!
//! Datagrams wait only in the stack's queue (on the way out) and in the host's socket (on the way
//! in); between the two they are in the scratch buffer, for one call.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fdlink_stack::{IncomingUdp, Refusal, UdpFlow};
use tokio::net::UdpSocket;
use tokio::time::{Instant, Sleep, sleep_until};

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
    let last = Instant::now();
    let idle = Box::pin(sleep_until(last + IDLE));
    let mut relay = Relay { outbound: &outbound, flow: &flow, host: &host, last, idle };
    let counters = &outbound.counters;
    match poll_fn(|cx| relay.poll(cx)).await {
        End::Failed => counters.udp_errors.add(1),
        End::Idle => counters.udp_idle.add(1),
        End::LinkClosed => {}
        End::Refused => {
            counters.udp_refused.add(1);
            flow.refuse();
        }
    }
}

struct Relay<'a> {
    outbound: &'a Outbound,
    flow: &'a UdpFlow,
    host: &'a UdpSocket,
    /// When something came last.
    last: Instant,
    /// Comes up when nothing may have come for [`IDLE`]; set anew only then.
    idle: Pin<Box<Sleep>>,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for round in 0..=ROUNDS {
            let steps = [self.step_out(cx), self.step_in(cx)];
            if steps.iter().all(Poll::is_pending) {
                break;
            }
            for step in steps {
                if let Poll::Ready(Err(end)) = step {
                    return Poll::Ready(end);
                }
            }
            self.last = Instant::now();
            if round == ROUNDS {
                cx.waker().wake_by_ref();
            }
        }
        self.poll_idle(cx)
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        while self.idle.as_mut().poll(cx).is_ready() {
            let due = self.last + IDLE;
            if due <= Instant::now() {
                return Poll::Ready(End::Idle);
            }
            self.idle.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// From the command to the host.
    fn step_out(&self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
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
    fn step_in(&self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if ready!(self.host.poll_recv_ready(cx)).is_err() {
            return Poll::Ready(Err(End::Failed));
        }
        let mut scratch = self.outbound.scratch();
        Poll::Ready(match self.host.try_recv(&mut scratch) {
            Ok(len) => {
                // Where there is no room inside, the stack has counted it.
                if self.flow.send(&scratch[..len]) {
                    self.outbound.counters.udp_datagrams_in.add(1);
                }
                Ok(())
            }
            Err(error) => outcome(&error).map_or(Ok(()), Err),
        })
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
