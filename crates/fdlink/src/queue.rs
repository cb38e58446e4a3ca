//! The seam: a queue is one direction of one descriptor. `io/` implements these traits, once for
//! each mode; endpoints, stacks and decorators drive them.
//!
//! One dynamic call moves a whole batch, so trait objects cost nothing that can be measured.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::batch::{RxBatch, TxFrame, TxSlot};
use crate::sys::poll;

/// One descriptor's way in.
pub trait Receive: Send {
    /// One visit to the kernel: releases the last batch, then takes what is there. Never blocks.
    ///
    /// # Errors
    ///
    /// Only what no later call can mend; interruptions, a link that is down and strange frames are
    /// counted and reported as [`Fill::Empty`] or `Frames(0)`.
    fn fill(&mut self) -> io::Result<Fill>;

    /// What the last [`fill`](Self::fill) brought; empty after [`release`](Self::release).
    fn batch(&mut self) -> RxBatch<'_>;

    /// Gives the batch back early. Whoever waits on [`wakeup`](Self::wakeup) releases first, or a
    /// ring stays readable for ever.
    fn release(&mut self);

    /// What to wait for after [`Fill::Empty`].
    fn wakeup(&self) -> Wakeup<'_>;

    /// Brings the counters up to date with what the kernel counts, at the cost of a system call:
    /// for whoever pauses and then reads them. Driving the queue does it now and then.
    fn update_stats(&mut self) {}

    /// Ends the queue, whose descriptor somebody else goes on with: takes off it what only this
    /// queue can use, as a ring.
    fn let_go(self: Box<Self>) {}
}

/// What one visit brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fill {
    /// That many frames are in the batch; 0 where all that came was dropped and counted.
    Frames(usize),
    /// Nothing there: wait.
    Empty,
    /// Nothing will come any more.
    Closed(Closed),
}

/// Why a queue ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closed {
    /// A system call failed for good: its name and its errno.
    Failed {
        /// The call.
        call: &'static str,
        /// The errno it gave.
        errno: i32,
    },
    /// A framed stream gave a frame length that no frame has: it is out of step, or the peer means
    /// harm. Where the next frame starts is not known any more.
    OutOfStep {
        /// The length it gave, in bytes.
        len: usize,
    },
    /// The dispatcher panicked, or a link that is not of this crate.
    Panicked,
    /// The peer closed its end.
    PeerClosed,
    /// The interface behind the descriptor is gone.
    Removed,
    /// The owner asked for it, or has shut a datagram socket down for receiving.
    Stopped,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { call, errno } => {
                write!(f, "{call} failed: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::OutOfStep { len } => {
                write!(f, "the stream is out of step: it says that a frame has {len} bytes")
            }
            Self::Panicked => f.write_str("the dispatcher panicked"),
            Self::PeerClosed => f.write_str("the peer closed its end"),
            Self::Removed => f.write_str("the interface was removed"),
            Self::Stopped => f.write_str("stopped by its owner"),
        }
    }
}

/// What to wait for: whichever comes first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wakeup<'a> {
    /// A descriptor that becomes readable (receive) or writable (transmit).
    pub descriptor: Option<BorrowedFd<'a>>,
    /// Try again after that long, readiness or not: the kernel gives no edge after ENOBUFS.
    pub after: Option<Duration>,
}

impl Wakeup<'_> {
    /// Blocks the thread until whichever comes first: for a receive queue, which is released first.
    /// Returns at once where there is nothing to wait for.
    pub fn wait_readable(&self) {
        self.wait(libc::POLLIN);
    }

    /// The same for a transmit queue.
    pub fn wait_writable(&self) {
        self.wait(libc::POLLOUT);
    }

    fn wait(&self, events: libc::c_short) {
        match (self.descriptor, self.after) {
            (Some(fd), after) => poll::wait_for(fd, events, after),
            (None, Some(after)) => std::thread::sleep(after),
            (None, None) => {}
        }
    }
}

/// One descriptor's way out.
///
/// Two ways to use it, which may be mixed: [`send`](Self::send) gathers from the caller's buffers;
/// [`slot`](Self::slot) and [`flush`](Self::flush) let the caller write in place.
pub trait Transmit: Send {
    /// Sends a list. Frames that cannot be sent ever are dropped and counted, and the rest goes
    /// on; where the descriptor is full, the list is cut short ([`Sent::taken`]). Committed slots
    /// leave first.
    ///
    /// What the descriptor or the kernel cannot do is done in software: a checksum is completed
    /// where there is no vnet header to leave it by, and a super-frame is cut there, and where the
    /// kernel refuses it. One that is cut may leave in part before the descriptor is full. Then it
    /// was taken, and the rest of it is [`queued`](Self::queued) and leaves before anything else.
    ///
    /// # Errors
    ///
    /// Only what ends the descriptor for good, and only if nothing of the list was dealt with before
    /// it showed: then the list is cut short, and the next call tells.
    fn send(&mut self, frames: &[TxFrame<'_>]) -> io::Result<Sent>;

    /// Memory for a frame of `len` bytes, link header included; flushes by itself where that makes
    /// room. `None` where the descriptor is full (wait for [`wakeup`](Self::wakeup)) or `len` is
    /// more than the link's `max_frame_len` or, with segmentation, its `gso_max_size`.
    fn slot(&mut self, len: usize) -> Option<TxSlot<'_>>;

    /// Sends the committed slots. What would block stays queued, in order.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    fn flush(&mut self) -> io::Result<Sent>;

    /// Committed frames that have not left yet, and a super-frame whose last segments have not:
    /// whoever finds some after [`send`](Self::send), too, waits and flushes.
    fn queued(&self) -> usize;

    /// What to wait for when the descriptor is full.
    fn wakeup(&self) -> Wakeup<'_>;
}

/// What became of a list: `taken - sent` frames were dropped and counted, those past `taken` would
/// block and are the caller's still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames dealt with, from the front of the list.
    pub taken: usize,
    /// Frames that left; a super-frame that left in part, its rest queued, is one of them.
    pub sent: usize,
}

impl Sent {
    /// What a call tells that ended so. Frames that were dealt with before an error are told of
    /// now; an error that ends the descriptor shows again.
    pub(crate) fn before(self, end: io::Result<()>) -> io::Result<Self> {
        match end {
            Err(error) if self.taken == 0 => Err(error),
            _ => Ok(self),
        }
    }
}

/// Both directions of one descriptor.
pub struct QueuePair {
    /// The way in; `None` on a link that only sends.
    pub rx: Option<Box<dyn Receive>>,
    /// The way out.
    pub tx: Box<dyn Transmit>,
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair").field("rx", &self.rx.is_some()).finish_non_exhaustive()
    }
}
