//! Bytes of one connection, both ways, without a copy of our own.
//!
//! # Theory of operation
//!
//! A connection has two directions, out (command to host) and in. Each step of a direction lends a
//! run of the stack's ring to one system call on the host's socket: what the command sent is
//! written from where the stack put it, what the host sent is read to where the stack sends it
//! from. A step has moved bytes, must wait (and the task is then registered with whichever side it
//! waits for), has seen the end of its direction, or has found its connection broken.
//!
//! ```text
//!              end of direction                      broken
//!   out        FIN from inside: SHUT_WR outside      EPIPE, ECONNRESET: see below
//!   in         FIN from outside: FIN inside          ECONNRESET, ETIMEDOUT
//! ```
//!
//! The directions end in any order; the connection ends when both have, or when one side breaks,
//! and then the other gets an RST. A host that resets while bytes of its own are still unread
//! shows that to a write first: then only the direction out stops, and the direction in goes on to
//! its end, so that an answer that was sent before the reset still arrives.
//!
//! The runtime's idea of readiness saves calls that would only say EAGAIN: `try_read` and
//! `try_write` make none where the last one said so, and `poll_*_ready` then waits for the edge.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use fdlink_stack::TcpStream as GuestStream;
use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpStream as HostStream;

use super::{Outbound, Sending};

/// Steps of each direction before other tasks run. The rings hold 1 MiB, which a few steps fill
/// or empty; more matter only for hosts that write in small pieces.
const ROUNDS: usize = 16;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both directions were closed.
    Finished,
    /// The command's side broke.
    Guest,
    /// The host's side broke.
    Host,
}

/// What a step did, where it had not to wait.
enum Step {
    Ended,
    GuestBroke,
    HostBroke,
    Moved,
}

/// Moves bytes until the connection ends.
pub(super) async fn run(outbound: &Outbound, guest: &GuestStream, host: &HostStream) -> End {
    let sending = Some(Sending::new(outbound));
    let mut relay = Relay { outbound, guest, host, sending, receiving: true, host_broke: false };
    poll_fn(|cx| relay.poll(cx)).await
}

struct Relay<'a> {
    outbound: &'a Outbound,
    guest: &'a GuestStream,
    host: &'a HostStream,
    /// Here while the direction out is open.
    sending: Option<Sending<'a>>,
    /// Whether the direction in is open.
    receiving: bool,
    /// The host's side does not take bytes any more, and nothing has been said about it yet.
    host_broke: bool,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let (mut out_waits, mut in_waits) = (false, false);
        for _ in 0..ROUNDS {
            if self.sending.is_some() && !out_waits {
                match self.step_out(cx) {
                    Poll::Pending => out_waits = true,
                    Poll::Ready(Step::Moved) => {}
                    Poll::Ready(Step::Ended) => {
                        // Fails where the host has reset, which the other direction will see.
                        let _ = shutdown(self.host, Shutdown::Write);
                        self.sending = None;
                    }
                    Poll::Ready(Step::GuestBroke) => return Poll::Ready(End::Guest),
                    Poll::Ready(Step::HostBroke) => {
                        self.sending = None;
                        self.host_broke = true;
                    }
                }
            }
            if self.receiving && !in_waits {
                match self.step_in(cx) {
                    Poll::Pending => in_waits = true,
                    Poll::Ready(Step::Moved) => {}
                    Poll::Ready(Step::Ended) => {
                        self.receiving = false;
                        if !self.host_broke {
                            self.guest.close_write();
                        }
                    }
                    Poll::Ready(Step::GuestBroke) => return Poll::Ready(End::Guest),
                    Poll::Ready(Step::HostBroke) => return Poll::Ready(End::Host),
                }
            }
            match (self.sending.is_some(), self.receiving) {
                (false, false) if self.host_broke => return Poll::Ready(End::Host),
                (false, false) => return Poll::Ready(End::Finished),
                (sending, receiving) => {
                    if (out_waits || !sending) && (in_waits || !receiving) {
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From the command to the host.
    fn step_out(&self, cx: &mut Context<'_>) -> Poll<Step> {
        let Self { guest, host, outbound, .. } = self;
        let mut written = None;
        // The answer of the closure comes back as the answer of the call; only the closure knows
        // which side an error is of.
        let read = ready!(guest.poll_read_with(cx, |bytes| {
            let result = host.try_write(bytes);
            let used = *result.as_ref().unwrap_or(&0);
            written = Some(result);
            Ok(used)
        }));
        match (written, read) {
            (Some(Ok(len)), _) => {
                outbound.counters.tcp_bytes_out.add(wide(len));
                Poll::Ready(Step::Moved)
            }
            (Some(Err(error)), _) => {
                waits_for_host(&error, || host.poll_write_ready(cx).map_ok(|()| ()))
            }
            (None, Ok(_)) => Poll::Ready(Step::Ended),
            (None, Err(_)) => Poll::Ready(Step::GuestBroke),
        }
    }

    /// From the host to the command.
    fn step_in(&self, cx: &mut Context<'_>) -> Poll<Step> {
        let Self { guest, host, outbound, .. } = self;
        let mut read = None;
        let written = ready!(guest.poll_write_with(cx, |space| {
            let result = host.try_read(space);
            let filled = *result.as_ref().unwrap_or(&0);
            read = Some(result);
            Ok(filled)
        }));
        match (read, written) {
            (Some(Ok(0)), _) => Poll::Ready(Step::Ended),
            (Some(Ok(len)), _) => {
                outbound.counters.tcp_bytes_in.add(wide(len));
                Poll::Ready(Step::Moved)
            }
            (Some(Err(error)), _) => {
                waits_for_host(&error, || host.poll_read_ready(cx).map_ok(|()| ()))
            }
            (None, _) => Poll::Ready(Step::GuestBroke),
        }
    }
}

/// What an error of a call on the host's socket means; `poll` registers for the next edge.
fn waits_for_host(error: &io::Error, poll: impl FnOnce() -> Poll<io::Result<()>>) -> Poll<Step> {
    match error.kind() {
        // Ready again already: the next step will show.
        io::ErrorKind::WouldBlock => match ready!(poll()) {
            Ok(()) => Poll::Ready(Step::Moved),
            Err(_) => Poll::Ready(Step::HostBroke),
        },
        io::ErrorKind::Interrupted => Poll::Ready(Step::Moved),
        _ => Poll::Ready(Step::HostBroke),
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
