//! The threads of an attached endpoint: one for each descriptor, from attach to join.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use crate::dispatcher::{NetworkDispatcher, QueueIndex};
use crate::queue::{Closed, Fill, Receive};
use crate::sys::poll::{self, Event};

/// A receive queue and its place among the descriptors.
pub(super) type Queue = (QueueIndex, Box<dyn Receive>);

/// The threads, and what stops them.
pub(super) struct Run {
    signal: Arc<Signal>,
    threads: Vec<Thread>,
    ids: Vec<thread::ThreadId>,
}

/// A thread, which gives its queue back at the end.
pub(super) struct Thread(JoinHandle<Queue>);

/// Tells threads to end: the flag those that are busy, the event those that wait.
struct Signal {
    stop: AtomicBool,
    event: Event,
}

impl Run {
    pub(super) fn new() -> io::Result<Self> {
        let signal = Signal { stop: AtomicBool::new(false), event: Event::new()? };
        Ok(Self { signal: Arc::new(signal), threads: Vec::new(), ids: Vec::new() })
    }

    /// Starts a thread for each queue. Where one cannot be started, gives back the queues that
    /// have none; those that run are the caller's to stop.
    pub(super) fn start(
        &mut self,
        queues: Vec<Queue>,
        dispatcher: &Arc<dyn NetworkDispatcher>,
    ) -> Result<(), (io::Error, Vec<Queue>)> {
        let mut queues = queues.into_iter();
        while let Some((index, rx)) = queues.next() {
            // The closure is lost if no thread starts, so the queue is passed to a running one.
            let (give, take) = std::sync::mpsc::sync_channel::<Queue>(1);
            let (signal, dispatcher) = (Arc::clone(&self.signal), Arc::clone(dispatcher));
            let named = thread::Builder::new().name(format!("fdlink-rx{}", index.0));
            let spawned = named.spawn(move || {
                let (index, mut rx) = take.recv().expect("a queue for this thread");
                let life = AssertUnwindSafe(|| {
                    let why = receive(index, &mut *rx, &*dispatcher, &signal);
                    rx.update_stats();
                    why
                });
                // Most likely the dispatcher's own panic; a link may be somebody else's, too.
                let why = catch_unwind(life).unwrap_or(Closed::Panicked);
                // A panic in the notice ends nothing that has not ended already.
                drop(catch_unwind(AssertUnwindSafe(|| dispatcher.closed(index, &why))));
                (index, rx)
            });
            match spawned {
                Ok(handle) => {
                    drop(give.send((index, rx)));
                    self.ids.push(handle.thread().id());
                    self.threads.push(Thread(handle));
                }
                Err(error) => {
                    return Err((error, std::iter::once((index, rx)).chain(queues).collect()));
                }
            }
        }
        Ok(())
    }

    pub(super) fn stop(&self) {
        self.signal.stop.store(true, Relaxed);
        self.signal.event.raise();
    }

    /// Whether the caller is one of the threads.
    pub(super) fn is_current(&self) -> bool {
        self.ids.contains(&thread::current().id())
    }

    pub(super) fn take_threads(&mut self) -> Vec<Thread> {
        std::mem::take(&mut self.threads)
    }
}

impl Thread {
    /// Waits for the end; gives the queue back.
    pub(super) fn join(self) -> Option<Queue> {
        // Panics of the dispatcher are caught in the thread, so there is always a queue.
        self.0.join().ok()
    }
}

/// Receives until there is a reason to end.
fn receive(
    index: QueueIndex,
    rx: &mut dyn Receive,
    dispatcher: &dyn NetworkDispatcher,
    signal: &Signal,
) -> Closed {
    loop {
        if signal.stop.load(Relaxed) {
            rx.release();
            return Closed::Stopped;
        }
        match rx.fill() {
            Ok(Fill::Frames(0)) => {}
            Ok(Fill::Frames(_)) => {
                let delivery = AssertUnwindSafe(|| dispatcher.deliver(index, &mut rx.batch()));
                if catch_unwind(delivery).is_err() {
                    rx.release();
                    return Closed::Panicked;
                }
            }
            Ok(Fill::Empty) => wait(rx, signal),
            Ok(Fill::Closed(why)) => return why,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                return Closed::Failed { call: "receive", errno };
            }
        }
    }
}

fn wait(rx: &dyn Receive, signal: &Signal) {
    let wakeup = rx.wakeup();
    let stop = signal.event.as_fd();
    // Without a descriptor only the signal and the time are left to wait for.
    poll::wait_readable(&[stop, wakeup.descriptor.unwrap_or(stop)], wakeup.after);
}
