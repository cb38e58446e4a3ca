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

/// Rounds in one poll, before other tasks have their turn.
const ROUNDS: usize = 8;
/// A descriptor with an error is looked at by the clock for this long: an error that stays would be
/// told of without a pause.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

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
    /// `None` before the first wait, after an error, and when the queue has ended: the runtime never
    /// forgets that a descriptor has hung up, and would call it ready for ever.
    readable: Option<AsyncFd<OwnedFd>>,
    /// When the runtime last told of an error on it.
    erred_at: Option<Instant>,
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
    /// why. Dropped before, it stops the stack.
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
        for _ in 0..ROUNDS {
            let mut core = shared.core();
            core.driver.running(cx.waker());
            if core.stopped {
                return Poll::Ready(Ok(Closed::Stopped));
            }
            self.add_new(&core);
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
            let busy = any || (core.has_touched() && !blocked);
            if busy || self.spin.again(now) {
                cx.waker().wake_by_ref();
                drop(core);
                if !busy {
                    // Looking is for an idle core only: whoever else wants this one gets it.
                    std::thread::yield_now();
                }
                return Poll::Pending;
            }
            core.driver.waiting();
            self.watch(&core, now)?;
            let deadline = self.deadline(&core, now);
            drop(core);
            if !self.poll_ready(cx, deadline) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes in what the descriptors have. Whether anything came.
    fn receive(&mut self, core: &mut Core, now: Instant) -> bool {
        let mut any = false;
        for Descriptor { nic, queue, readable, .. } in &mut self.descriptors {
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

    /// Takes note of the descriptors of interfaces that are new.
    fn add_new(&mut self, core: &Core) {
        for (nic, interface) in core.nics.iter().enumerate().skip(self.nics) {
            let new =
                |queue| Descriptor { nic, queue, readable: None, erred_at: None, writable: None };
            self.descriptors.extend((0..interface.queues.len()).map(new));
        }
        self.nics = core.nics.len();
    }

    /// Watches what there is to wait for, and nothing else: descriptors for frames, full ones for
    /// room.
    fn watch(&mut self, core: &Core, now: Instant) -> io::Result<()> {
        for descriptor in &mut self.descriptors {
            let interface = &core.nics[descriptor.nic];
            let queue = &interface.queues[descriptor.queue];
            let lives = interface.closed.is_none() && !queue.dead;
            let rx = queue.rx.as_ref().filter(|_| lives).and_then(|rx| rx.wakeup().descriptor);
            let tx = queue.tx.wakeup().descriptor.filter(|_| lives && queue.full);
            let paused = descriptor.looks_by_clock(now);
            keep_watching(&mut descriptor.readable, rx.filter(|_| !paused), Interest::READABLE)?;
            keep_watching(&mut descriptor.writable, tx, Interest::WRITABLE)?;
        }
        Ok(())
    }

    /// When to look again although nothing happens.
    fn deadline(&self, core: &Core, now: Instant) -> Option<Instant> {
        let pairs = core.nics.iter().filter(|nic| nic.closed.is_none()).flat_map(|nic| &nic.queues);
        let retry = pairs.filter(|pair| !pair.dead).flat_map(|pair| {
            let rx = pair.rx.as_ref().map(|rx| rx.wakeup());
            let tx = pair.full.then(|| pair.tx.wakeup());
            [rx, tx].into_iter().flatten().filter_map(|Wakeup { after, .. }| after)
        });
        let paused = self.descriptors.iter().any(|descriptor| descriptor.looks_by_clock(now));
        let retry = retry.chain(paused.then_some(ERROR_PAUSE)).map(|after| now + after);
        core.next_deadline().into_iter().chain(retry).min()
    }

    /// Whether something that is waited for has happened; else the task is woken when it does.
    fn poll_ready(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> bool {
        if self.descriptors.iter_mut().any(|descriptor| descriptor.poll_ready(cx)) {
            return true;
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

impl Descriptor {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(readable) = &self.readable {
            if readable.poll_read_ready(cx).is_ready() {
                return true;
            }
            // Registered for frames only, "writable" says that there is an error (a link that went
            // down, a device that is gone), which is not "readable" to the runtime. It does not
            // forget that either, so the descriptor is registered anew.
            if readable.poll_write_ready(cx).is_ready() {
                self.readable = None;
                self.erred_at = Some(Instant::now());
                return true;
            }
        }
        if let Some(writable) = &self.writable
            && let Poll::Ready(ready) = writable.poll_write_ready(cx)
        {
            // The next look is after this, so room that comes now is seen.
            ready.into_iter().for_each(|mut guard| guard.clear_ready());
            return true;
        }
        false
    }

    /// Whether its readiness tells nothing for now.
    fn looks_by_clock(&self, now: Instant) -> bool {
        self.readable.is_none()
            && self.erred_at.is_some_and(|at| now.saturating_duration_since(at) < ERROR_PAUSE)
    }
}

/// Watches `descriptor`, if there is one; no other any more.
fn keep_watching(
    watched: &mut Option<AsyncFd<OwnedFd>>,
    descriptor: Option<BorrowedFd<'_>>,
    interest: Interest,
) -> io::Result<()> {
    match descriptor {
        None => *watched = None,
        Some(fd) if watched.is_none() => {
            // A duplicate, so that the queue keeps its own.
            *watched = Some(aio::watch(fd.try_clone_to_owned()?, interest)?);
        }
        Some(_) => {}
    }
    Ok(())
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.core().shut_down(Instant::now());
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("interfaces", &self.nics).finish_non_exhaustive()
    }
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
