//! Whom an endpoint delivers to.

use crate::batch::RxBatch;
use crate::queue::Closed;

/// Which descriptor of a link, in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueIndex(pub usize);

/// Receives what an attached endpoint's descriptors bring. Called on one thread for each
/// descriptor.
pub trait NetworkDispatcher: Send + Sync {
    /// A batch from one descriptor. Frames that are not taken are released with it.
    fn deliver(&self, queue: QueueIndex, batch: &mut RxBatch<'_>);

    /// That descriptor's queue has ended; called once for each descriptor.
    fn closed(&self, queue: QueueIndex, why: &Closed) {
        let _ = (queue, why);
    }
}
