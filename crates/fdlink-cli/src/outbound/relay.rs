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
//!
//! While both directions wait for the host, or only the direction in is left, nothing that is
//! waited for would tell of a command that resets. Then a timer looks ([`LOOK_AFTER`]).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use fdlink_stack::TcpStream as GuestStream;
use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpStream as HostStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Outbound, Sending};

/// Steps of each direction before other tasks run. The rings hold 1 MiB, which a few steps fill
/// or empty; more matter only for hosts that write in small pieces.
const ROUNDS: usize = 16;
/// How long a connection that the command has reset may stay open outside, where nothing else
/// tells: little against what kernels give a half-closed one (60 s, tcp_fin_timeout), and much
/// against what a look costs.
const LOOK_AFTER: Duration = Duration::from_secs(2);

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

/// What came of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Ended,
    GuestBroke,
    HostBroke,
    Moved,
    WaitsForGuest,
    WaitsForHost,
}

/// Moves bytes until the connection ends.
pub(super) async fn run(outbound: &Outbound, guest: &GuestStream, host: &HostStream) -> End {
    let sending = Some(Sending::new(outbound));
    let mut relay = Relay {
        outbound,
        guest,
        host,
        sending,
        receiving: true,
        host_broke: false,
        look: Box::pin(sleep_until(Instant::now() + LOOK_AFTER)),
    };
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
    /// Comes up when it is time to look after the command's side.
    look: Pin<Box<Sleep>>,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let (mut out, mut inward) = (Step::Moved, Step::Moved);
        for _ in 0..ROUNDS {
            if self.sending.is_some() && out == Step::Moved {
                out = self.step_out(cx);
                match out {
                    Step::Ended => {
                        // Fails where the host has reset, which the other direction will see.
                        let _ = shutdown(self.host, Shutdown::Write);
                        self.sending = None;
                    }
                    Step::HostBroke => {
                        self.sending = None;
                        self.host_broke = true;
                    }
                    Step::GuestBroke => return Poll::Ready(End::Guest),
                    Step::Moved | Step::WaitsForGuest | Step::WaitsForHost => {}
                }
            }
            if self.receiving && inward == Step::Moved {
                inward = self.step_in(cx);
                match inward {
                    Step::Ended => {
                        self.receiving = false;
                        if !self.host_broke {
                            self.guest.close_write();
                        }
                    }
                    Step::HostBroke => return Poll::Ready(End::Host),
                    Step::GuestBroke => return Poll::Ready(End::Guest),
                    Step::Moved | Step::WaitsForGuest | Step::WaitsForHost => {}
                }
            }
            let out_moves = self.sending.is_some() && out == Step::Moved;
            let in_moves = self.receiving && inward == Step::Moved;
            match (self.sending.is_some(), self.receiving) {
                (false, false) if self.host_broke => return Poll::Ready(End::Host),
                (false, false) => return Poll::Ready(End::Finished),
                _ if !out_moves && !in_moves => {
                    let guest_tells = out == Step::WaitsForGuest || inward == Step::WaitsForGuest;
                    return if guest_tells || !self.receiving {
                        Poll::Pending
                    } else {
                        self.poll_look(cx)
                    };
                }
                _ => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks, from time to time, whether the command's side is still there.
    fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        while self.look.as_mut().poll(cx).is_ready() {
            // What has been reset takes no bytes, not even none.
            if let Poll::Ready(Err(_)) = self.guest.poll_write_with(cx, |_| Ok(0)) {
                return Poll::Ready(End::Guest);
            }
            self.look.as_mut().reset(Instant::now() + LOOK_AFTER);
        }
        Poll::Pending
    }

    /// From the command to the host.
    fn step_out(&self, cx: &mut Context<'_>) -> Step {
        let Self { guest, host, outbound, .. } = self;
        let mut written = None;
        // What the closure says comes back as the answer of the call; only the closure knows which
        // side an error is of.
        let read = guest.poll_read_with(cx, |bytes| {
            let result = host.try_write(bytes);
            let used = *result.as_ref().unwrap_or(&0);
            written = Some(result);
            Ok(used)
        });
        match (written, read) {
            (Some(Ok(len)), _) => {
                outbound.counters.tcp_bytes_out.add(wide(len));
                Step::Moved
            }
            (Some(Err(error)), _) => after_error(&error, || host.poll_write_ready(cx)),
            (None, Poll::Pending) => Step::WaitsForGuest,
            (None, Poll::Ready(Ok(_))) => Step::Ended,
            (None, Poll::Ready(Err(_))) => Step::GuestBroke,
        }
    }

    /// From the host to the command.
    fn step_in(&self, cx: &mut Context<'_>) -> Step {
        let Self { guest, host, outbound, .. } = self;
        let mut read = None;
        let written = guest.poll_write_with(cx, |space| {
            let result = host.try_read(space);
            let filled = *result.as_ref().unwrap_or(&0);
            read = Some(result);
            Ok(filled)
        });
        match (read, written) {
            (Some(Ok(0)), _) => Step::Ended,
            (Some(Ok(len)), _) => {
                outbound.counters.tcp_bytes_in.add(wide(len));
                Step::Moved
            }
            (Some(Err(error)), _) => after_error(&error, || host.poll_read_ready(cx)),
            (None, Poll::Pending) => Step::WaitsForGuest,
            (None, Poll::Ready(_)) => Step::GuestBroke,
        }
    }
}

/// What an error of a call on the host's socket means; `poll` registers for the next edge.
fn after_error(error: &io::Error, poll: impl FnOnce() -> Poll<io::Result<()>>) -> Step {
    match error.kind() {
        io::ErrorKind::WouldBlock => match poll() {
            Poll::Pending => Step::WaitsForHost,
            // Ready again already: the next step will show.
            Poll::Ready(Ok(())) => Step::Moved,
            Poll::Ready(Err(_)) => Step::HostBroke,
        },
        io::ErrorKind::Interrupted => Step::Moved,
        _ => Step::HostBroke,
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
