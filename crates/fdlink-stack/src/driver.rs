//! The stack's loop under tokio: what is due is sent, what arrived is taken in, the applications
//! that it woke run, and so on; and where nothing is left, it waits.
//!
//! The order is what makes it fast: between taking in and sending, the driver goes to the end of
//! the run queue, so that applications read first and one acknowledgement covers all of it.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fdlink::aio;
use fdlink::queue::{Closed, Wakeup};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;

use crate::core::{Arrivals, Core};
use crate::stack::Shared;

/// Kernel visits for each descriptor before applications run: enough for 1 MiB of super-frames.
const BUDGET: usize = 16;

/// Moves a stack's packets. Nothing happens in the stack unless [`run`](Self::run) is polled.
pub struct Driver {
    shared: Arc<Shared>,
    descriptors: Vec<Descriptor>,
    /// How many interfaces `descriptors` covers.
    nics: usize,
    timer: Option<Pin<Box<Sleep>>>,
    timer_at: Option<Instant>,
    spin: Spin,
}

/// What is waited for on one descriptor of an interface.
struct Descriptor {
    nic: usize,
    queue: usize,
    readable: Option<AsyncFd<OwnedFd>>,
    /// Registered only while the descriptor is full: a socket is "writable" again after every
    /// frame, and each of those would be a wake-up.
    writable: Option<AsyncFd<OwnedFd>>,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, spin: Duration) -> Self {
        Self {
            shared,
            descriptors: Vec::new(),
            nics: 0,
            timer: None,
            timer_at: None,
            spin: Spin::new(spin),
        }
    }

    /// Runs until [`Stack::stop`](crate::Stack::stop), or until every interface has ended; returns
    /// why.
    ///
    /// # Errors
    ///
    /// Where a descriptor cannot be registered with the runtime (out of descriptors, or a runtime
    /// without I/O).
    pub async fn run(mut self) -> io::Result<Closed> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Closed>> {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut core = shared.core();
            core.driver.running(cx.waker());
            if core.stopped {
                return Poll::Ready(Ok(Closed::Stopped));
            }
            self.register_new(&core)?;
            let now = Instant::now();
            core.expire(now);
            let blocked = core.transmit(now);
            let any = self.receive(&mut core, now);
            if let Some(why) = core.all_closed() {
                return Poll::Ready(Ok(why));
            }
            if any {
                self.spin.found();
            }
            if any || (core.has_touched() && !blocked) || self.spin.again(now) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            core.driver.waiting();
            let deadline = self.deadline(&core, blocked);
            self.watch_writable(&core, blocked)?;
            drop(core);
            if !self.poll_ready(cx, deadline) {
                return Poll::Pending;
            }
        }
    }

    /// Takes in what the descriptors have. Whether anything came.
    fn receive(&self, core: &mut Core, now: Instant) -> bool {
        let mut any = false;
        for Descriptor { nic, queue, readable, .. } in &self.descriptors {
            let mut arrivals = None;
            let mut look = || {
                let seen = core.receive(now, *nic, *queue, BUDGET);
                any |= seen.any;
                arrivals = Some(seen);
                seen
            };
            // Where the runtime says "readable", it must be told when that is over; it forgets
            // only what it knew before the look, so nothing that comes meanwhile is lost.
            if let Some(readable) = readable {
                let _ = readable.try_io(Interest::READABLE, |_| match look() {
                    Arrivals { drained: true, .. } => Err(io::ErrorKind::WouldBlock.into()),
                    Arrivals { drained: false, .. } => Ok(()),
                });
            }
            if arrivals.is_none() {
                any |= core.receive(now, *nic, *queue, BUDGET).any;
            }
        }
        any
    }

    /// Registers the descriptors of interfaces that are new.
    fn register_new(&mut self, core: &Core) -> io::Result<()> {
        for (nic, interface) in core.nics.iter().enumerate().skip(self.nics) {
            for (queue, pair) in interface.queues.iter().enumerate() {
                let wakeup = pair.rx.as_ref().and_then(|rx| rx.wakeup().descriptor);
                let readable = wakeup.map(|fd| watch(fd, Interest::READABLE)).transpose()?;
                self.descriptors.push(Descriptor { nic, queue, readable, writable: None });
            }
        }
        self.nics = core.nics.len();
        Ok(())
    }

    /// Watches full descriptors for room, and stops watching the others.
    fn watch_writable(&mut self, core: &Core, blocked: bool) -> io::Result<()> {
        for Descriptor { nic, queue, writable, .. } in &mut self.descriptors {
            let full = blocked && core.nics[*nic].closed.is_none();
            match core.nics[*nic].queues[*queue].tx.wakeup().descriptor {
                Some(fd) if full && writable.is_none() => {
                    *writable = Some(watch(fd, Interest::WRITABLE)?);
                }
                _ if !full => *writable = None,
                _ => {}
            }
        }
        Ok(())
    }

    /// When to look again although nothing happens.
    fn deadline(&self, core: &Core, blocked: bool) -> Option<Instant> {
        let now = Instant::now();
        let pairs = core.nics.iter().filter(|nic| nic.closed.is_none()).flat_map(|nic| &nic.queues);
        let retry = pairs.flat_map(|pair| {
            let rx = pair.rx.as_ref().map(|rx| rx.wakeup());
            let tx = blocked.then(|| pair.tx.wakeup());
            [rx, tx].into_iter().flatten().filter_map(|Wakeup { after, .. }| after)
        });
        core.next_deadline().into_iter().chain(retry.map(|after| now + after)).min()
    }

    /// Whether something that is waited for has happened; else the task is woken when it does.
    fn poll_ready(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> bool {
        for Descriptor { readable, writable, .. } in &self.descriptors {
            if let Some(readable) = readable
                && readable.poll_read_ready(cx).is_ready()
            {
                return true;
            }
            if let Some(writable) = writable
                && let Poll::Ready(Ok(mut guard)) = writable.poll_write_ready(cx)
            {
                // The next look is after this, so room that comes now is seen.
                guard.clear_ready();
                return true;
            }
        }
        let Some(deadline) = deadline else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::ZERO)));
        if self.timer_at != Some(deadline) {
            timer.as_mut().reset(deadline.into());
            self.timer_at = Some(deadline);
        }
        let due = timer.as_mut().poll(cx).is_ready();
        if due {
            self.timer_at = None;
        }
        due
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("interfaces", &self.nics).finish_non_exhaustive()
    }
}

/// Registers a duplicate, so that the queue keeps its own.
fn watch(descriptor: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    aio::watch(descriptor.try_clone_to_owned()?, interest)
}

/// Whether to look once more before sleeping. Looking pays where the next frame is near: a
/// request-response exchange, the gap between two windows. It learns from whether it did.
#[derive(Debug)]
struct Spin {
    limit: Duration,
    since: Option<Instant>,
    /// Fruitless spins in a row.
    misses: u32,
    /// Sleeps since spinning was given up.
    skipped: u32,
}

impl Spin {
    /// After this many fruitless spins in a row, spinning is given up for a while.
    const GIVE_UP: u32 = 4;
    /// For how many sleeps.
    const PAUSE: u32 = 64;

    fn new(limit: Duration) -> Self {
        Self { limit, since: None, misses: 0, skipped: 0 }
    }

    fn found(&mut self) {
        if self.since.take().is_some() {
            self.misses = 0;
        }
    }

    fn again(&mut self, now: Instant) -> bool {
        if self.limit.is_zero() {
            return false;
        }
        if self.misses >= Self::GIVE_UP {
            self.skipped += 1;
            if self.skipped < Self::PAUSE {
                return false;
            }
            self.skipped = 0;
            self.misses = Self::GIVE_UP - 1;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.limit {
            return true;
        }
        self.since = None;
        self.misses += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_stops_where_it_brings_nothing_and_is_tried_again() {
        let start = Instant::now();
        let mut spin = Spin::new(Duration::from_micros(20));
        let mut now = start;
        let mut looks = 0;
        for _ in 0..Spin::GIVE_UP {
            while spin.again(now) {
                looks += 1;
                now += Duration::from_micros(5);
            }
        }
        assert_eq!(looks, 4 * Spin::GIVE_UP);
        let paused = (0..Spin::PAUSE - 1).filter(|_| spin.again(now)).count();
        assert_eq!(paused, 0);
        assert!(spin.again(now), "tried again");
        spin.found();
        assert!(spin.again(now), "and kept up, since it brought something");
    }

    #[test]
    fn a_limit_of_zero_never_spins() {
        assert!(!Spin::new(Duration::ZERO).again(Instant::now()));
    }
}
