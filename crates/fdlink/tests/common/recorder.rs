//! A dispatcher that passes on what an endpoint says, to be looked at in order.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use fdlink::link::adopt;
use fdlink::{Closed, Endpoint, LinkOptions, NetworkDispatcher, QueueIndex, RxBatch};

use super::PATIENCE;

#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Frame(usize, Vec<u8>),
    Closed(usize, Closed),
}

/// Passes everything on, then does what the test wants done during a delivery.
struct Recorder {
    events: Mutex<Sender<Event>>,
    during_delivery: Box<dyn Fn(usize) + Send + Sync>,
}

impl NetworkDispatcher for Recorder {
    fn deliver(&self, queue: QueueIndex, batch: &mut RxBatch<'_>) {
        for frame in batch {
            let event = Event::Frame(queue.0, frame.bytes().to_vec());
            self.events.lock().unwrap().send(event).unwrap();
        }
        (self.during_delivery)(queue.0);
    }

    fn closed(&self, queue: QueueIndex, why: &Closed) {
        self.events.lock().unwrap().send(Event::Closed(queue.0, why.clone())).unwrap();
    }
}

pub(crate) fn recorder(
    during_delivery: impl Fn() + Send + Sync + 'static,
) -> (Arc<dyn NetworkDispatcher>, Receiver<Event>) {
    recorder_by_queue(move |_| during_delivery())
}

/// What is done during a delivery may depend on the descriptor.
pub(crate) fn recorder_by_queue(
    during_delivery: impl Fn(usize) + Send + Sync + 'static,
) -> (Arc<dyn NetworkDispatcher>, Receiver<Event>) {
    let (give, take) = channel();
    let during_delivery = Box::new(during_delivery);
    (Arc::new(Recorder { events: Mutex::new(give), during_delivery }), take)
}

pub(crate) fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(PATIENCE).expect("an event in time")
}

pub(crate) fn over(fds: Vec<OwnedFd>, options: &LinkOptions) -> Endpoint {
    Endpoint::new(adopt(fds, options).unwrap()).unwrap()
}
