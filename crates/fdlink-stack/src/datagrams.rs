//! A bounded queue of datagrams in one ring of bytes: no allocation for each datagram, and a size
//! that says what it holds.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// Datagrams waiting to be read, oldest first.
#[derive(Debug)]
pub(crate) struct DatagramQueue {
    ring: Box<[u8]>,
    /// Where the next datagram's bytes go.
    head: usize,
    /// Bytes of the ring that entries span.
    used: usize,
    entries: VecDeque<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: usize,
    len: usize,
    source: SocketAddr,
    /// Bytes of the ring that are free again when this entry is gone.
    span: usize,
}

impl DatagramQueue {
    /// A queue of that many bytes. The memory is taken from the kernel when it is first used.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { ring: vec![0; bytes].into_boxed_slice(), head: 0, used: 0, entries: VecDeque::new() }
    }

    /// Queues a datagram; false where there is no room.
    pub(crate) fn push(&mut self, source: SocketAddr, bytes: &[u8]) -> bool {
        let to_end = self.ring.len() - self.head;
        // A datagram is kept in one piece: what is left at the end of the ring may be skipped.
        let skip = if bytes.len() <= to_end { 0 } else { to_end };
        // An empty datagram takes a byte, so that the number of entries is bounded too.
        let span = skip + bytes.len().max(1);
        if self.used + span > self.ring.len() || bytes.len() > self.ring.len() {
            return false;
        }
        let offset = if skip == 0 { self.head } else { 0 };
        self.ring[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.head = (self.head + span) % self.ring.len();
        self.used += span;
        self.entries.push_back(Entry { offset, len: bytes.len(), source, span });
        true
    }

    /// Lends the oldest datagram, which is gone afterwards.
    pub(crate) fn pop<R>(&mut self, read: impl FnOnce(SocketAddr, &[u8]) -> R) -> Option<R> {
        let entry = self.entries.pop_front()?;
        self.used -= entry.span;
        Some(read(entry.source, &self.ring[entry.offset..entry.offset + entry.len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source() -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], 7))
    }

    #[test]
    fn empty_datagrams_are_kept_and_bounded() {
        let mut queue = DatagramQueue::new(4);
        assert!((0..4).all(|_| queue.push(source(), b"")));
        assert!(!queue.push(source(), b""));
        assert_eq!(queue.pop(|_, bytes| bytes.len()), Some(0));
        assert!(queue.push(source(), b"x"));
    }

    proptest! {
        /// Whatever is pushed and popped, what comes out is what went in, in order.
        #[test]
        fn behaves_like_a_list(
            steps in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..40)), 0..200),
        ) {
            let mut queue = DatagramQueue::new(100);
            let mut model: VecDeque<Vec<u8>> = VecDeque::new();
            for step in steps {
                match step {
                    Some(bytes) => {
                        if queue.push(source(), &bytes) {
                            model.push_back(bytes);
                        } else {
                            // Never refused while less than half is used.
                            prop_assert!(model.iter().map(|b| b.len().max(1)).sum::<usize>() + bytes.len() >= 60);
                        }
                    }
                    None => {
                        prop_assert_eq!(queue.pop(|_, bytes| bytes.to_vec()), model.pop_front());
                    }
                }
                prop_assert_eq!(queue.entries.len(), model.len());
            }
        }
    }
}
