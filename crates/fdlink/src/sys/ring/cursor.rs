//! Which slots of a ring are ours: the protocol of the status words, and nothing of what is in the
//! slots. Every memory ordering of a ring is in this file.
//!
//! The kernel fills slots in ascending order and marks each with TP_STATUS_USER when it has
//! written it; it may write several at a time, on several CPUs, so the marks can come out of
//! order. We take them in order, and give them back in order by TP_STATUS_KERNEL.
//!
//! ```text
//!   kernel's     held      handed over   kernel's
//! |   0   0   |  1   1   |   1   1   |   0   0   0  |
//!             ^ next     ^ next + held
//! ```

use std::ops::Range;
use std::sync::atomic::Ordering;

/// The status words of a ring's slots, which the kernel writes as well.
pub(crate) trait StatusWords {
    fn load(&self, slot: usize, order: Ordering) -> u32;
    fn store(&self, slot: usize, status: u32, order: Ordering);
}

/// Where the next slot that is ours is, and how many are held.
#[derive(Debug)]
pub(crate) struct Cursor {
    slots: usize,
    next: usize,
    held: usize,
}

impl Cursor {
    /// At the start of a fresh ring of that many slots.
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots, next: 0, held: 0 }
    }

    /// Takes what the kernel has handed over, at most so many slots and none past the end of the
    /// ring, so that their memory is one piece; gives back those that were held. How many.
    pub(crate) fn take(&mut self, words: &impl StatusWords, most: usize) -> usize {
        self.give_back(words);
        let run = self.next..self.slots.min(self.next.saturating_add(most));
        // Acquire: what the kernel wrote into the slot before the mark is seen after it.
        let ours = |slot: &usize| words.load(*slot, Ordering::Acquire) & libc::TP_STATUS_USER != 0;
        self.held = run.take_while(ours).count();
        self.held
    }

    /// Gives the slots that are held to the kernel.
    pub(crate) fn give_back(&mut self, words: &impl StatusWords) {
        let held = self.held();
        self.next = if held.end == self.slots { 0 } else { held.end };
        self.held = 0;
        for slot in held {
            // Release: every access of ours to the slot comes before the kernel's next.
            words.store(slot, libc::TP_STATUS_KERNEL, Ordering::Release);
        }
    }

    /// The slots that are ours until they are given back.
    pub(crate) fn held(&self) -> Range<usize> {
        self.next..self.next + self.held
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const KERNEL: u32 = libc::TP_STATUS_KERNEL;
    const USER: u32 = libc::TP_STATUS_USER;

    /// A ring without memory: its words, and what is in each slot.
    struct Fake(RefCell<Vec<(u32, u32)>>);

    impl Fake {
        fn new(slots: usize) -> Self {
            Self(RefCell::new(vec![(KERNEL, 0); slots]))
        }

        fn put(&self, slot: usize, value: u32, status: u32) {
            self.0.borrow_mut()[slot] = (status, value);
        }
    }

    impl StatusWords for Fake {
        fn load(&self, slot: usize, _: Ordering) -> u32 {
            self.0.borrow()[slot].0
        }

        fn store(&self, slot: usize, status: u32, _: Ordering) {
            let old = std::mem::replace(&mut self.0.borrow_mut()[slot].0, status);
            assert_ne!(old & USER, 0, "slot {slot} was given back twice");
        }
    }

    #[test]
    fn slots_are_taken_in_order_and_the_run_ends_with_the_ring() {
        let (ring, mut cursor) = (Fake::new(4), Cursor::new(4));
        assert_eq!(cursor.take(&ring, 64), 0);
        // The second is finished before the first.
        ring.put(1, 0, USER);
        assert_eq!(cursor.take(&ring, 64), 0);
        ring.put(0, 0, USER | libc::TP_STATUS_LOSING);
        assert_eq!((cursor.take(&ring, 1), cursor.held()), (1, 0..1));
        assert_eq!((cursor.take(&ring, 64), cursor.held()), (1, 1..2));
        (2..4).for_each(|slot| ring.put(slot, 0, USER));
        ring.put(0, 0, USER);
        assert_eq!((cursor.take(&ring, 64), cursor.held()), (2, 2..4));
        assert_eq!((cursor.take(&ring, 64), cursor.held()), (1, 0..1));
        cursor.give_back(&ring);
        cursor.give_back(&ring);
        assert_eq!((cursor.held(), cursor.take(&ring, 64)), (1..1, 0));
    }

    proptest! {
        /// Any schedule of a kernel that fills (`Some`, or drops where the slot is not its own) and
        /// a reader that takes at most so many, against a queue.
        #[test]
        fn any_schedule_is_a_queue(
            slots in 1_usize..8,
            schedule in prop::collection::vec(prop::option::of(1_usize..10), 1..200),
        ) {
            let (ring, mut cursor) = (Fake::new(slots), Cursor::new(slots));
            let (mut head, mut value, mut model) = (0, 0, VecDeque::new());
            for step in schedule {
                let Some(most) = step else {
                    if ring.load(head, Ordering::Relaxed) == KERNEL {
                        ring.put(head, value, USER);
                        model.push_back(value);
                        head = (head + 1) % slots;
                    }
                    value += 1;
                    continue;
                };
                let next = cursor.held().end % slots;
                let taken = cursor.take(&ring, most);
                prop_assert_eq!(taken, model.len().min(most).min(slots - next));
                for slot in cursor.held() {
                    prop_assert_eq!(Some(ring.0.borrow()[slot].1), model.pop_front());
                }
            }
        }
    }
}
