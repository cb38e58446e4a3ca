//! What queues count. Written by the thread that drives the queue, read from any thread without a
//! lock; a counter never goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Adds `n`. With a single writer a load and a store do, and cost no locked instruction.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
}

/// Declares a struct of [`Counter`]s and its snapshot of plain numbers, field by field.
#[macro_export]
macro_rules! counters {
    ($(#[$doc:meta])* $live:ident, $snapshot:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $live { $($(#[$field_doc])* pub $field: $crate::stats::Counter,)* }

        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $snapshot { $($(#[$field_doc])* pub $field: u64,)* }

        impl $live {
            /// The values now.
            pub fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.value(),)* }
            }
        }

        impl $snapshot {
            /// Name and value of each counter, in the order of the fields.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }

        impl std::ops::AddAssign for $snapshot {
            fn add_assign(&mut self, other: Self) { $(self.$field += other.$field;)* }
        }
    };
}

counters! {
    /// What came in through one queue.
    RxCounters, RxStats {
        /// Frames delivered.
        frames,
        /// Their bytes, link headers included, vnet headers not.
        bytes,
        /// Kernel visits that brought at least one frame.
        batches,
        /// System calls made to receive (waiting not included).
        calls,
        /// Super-frames among the frames.
        super_frames,
        /// Dropped by the kernel because we were slow: on AF_PACKET since somebody last asked for
        /// it (PACKET_STATISTICS), so what an adopted socket had dropped counts; on other datagram
        /// sockets since the link was built (SO_MEMINFO), what a filter refused on UDP and a wrong
        /// checksum included. The kernel is asked now and then, and for the last time when the
        /// queue is dropped.
        kernel_drops,
        /// Dropped here: longer than the buffer, or cut off by a filter.
        truncated,
        /// Dropped here: a vnet header or a ring header that makes no sense.
        malformed,
        /// Dropped here: our own host's transmissions (PACKET_OUTGOING).
        outgoing,
        /// Times the link was found down.
        link_down,
    }
}

counters! {
    /// What went out through one queue.
    TxCounters, TxStats {
        /// Frames sent; of a super-frame that was cut in software, each segment.
        frames,
        /// Their bytes, link headers included, vnet headers not.
        bytes,
        /// System calls made to send.
        calls,
        /// Super-frames among the frames.
        super_frames,
        /// Times the descriptor was full.
        would_block,
        /// Dropped by an endpoint's [`WritePolicy`](crate::endpoint::WritePolicy): no room in time.
        not_writable,
        /// Dropped: the descriptor had ended for good, or the queue was dropped with them.
        closed,
        /// Dropped: no buffer in the kernel (ENOBUFS).
        no_buffers,
        /// Dropped: longer than the link takes (EMSGSIZE, or our own check).
        too_long,
        /// Dropped: refused by the kernel as invalid (EINVAL), or impossible by our own check: no
        /// bytes, a checksum past the end, a super-frame that cannot be cut where it has to be.
        invalid,
        /// Dropped: the link was down (ENETDOWN, or EIO on a TUN).
        link_down,
        /// Dropped: the peer of a datagram socket is gone (ECONNREFUSED, or EPIPE, ECONNRESET and
        /// ENOTCONN there).
        peer_gone,
        /// Dropped: the kernel took less than the whole frame.
        short_write,
        /// Dropped: any other errno.
        other_errors,
        /// Super-frames that were cut in software: the kernel refused them, or the link has no vnet
        /// header, or they came without a checksum to be filled in, or a stream's length prefix
        /// cannot say how long they are.
        segmented,
    }
}

/// What one descriptor's queues count.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// The way in.
    pub rx: RxCounters,
    /// The way out.
    pub tx: TxCounters,
}

/// The counters of a link, one entry for each queue. Cheap to clone, readable from anywhere.
#[derive(Clone, Debug, Default)]
pub struct LinkStats {
    queues: Arc<[Arc<QueueStats>]>,
}

impl LinkStats {
    /// Fresh counters for that many queues.
    pub fn new(queues: usize) -> Self {
        Self { queues: (0..queues).map(|_| Arc::default()).collect() }
    }

    /// Each queue's counters.
    pub fn queues(&self) -> &[Arc<QueueStats>] {
        &self.queues
    }

    /// What came in, all queues together.
    pub fn rx(&self) -> RxStats {
        self.queues.iter().fold(RxStats::default(), |mut sum, queue| {
            sum += queue.rx.snapshot();
            sum
        })
    }

    /// What went out, all queues together.
    pub fn tx(&self) -> TxStats {
        self.queues.iter().fold(TxStats::default(), |mut sum, queue| {
            sum += queue.tx.snapshot();
            sum
        })
    }
}
