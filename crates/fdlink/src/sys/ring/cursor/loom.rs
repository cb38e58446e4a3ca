//! Every interleaving of a kernel that fills slots and a reader that takes them and gives them
//! back, over plain memory: loom fails on a data race and tries every outcome of the orderings.

// UNSAFETY: loom's cells are looked into by raw pointer, which is the access that it checks, and
// are shared between threads on purpose.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::sync::atomic::Ordering;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::thread;

use super::{Cursor, StatusWords};

const SLOTS: usize = 2;
/// More than there are slots, so the cursor wraps and a slot is used twice.
const FRAMES: u32 = 3;

struct Shared {
    words: [AtomicU32; SLOTS],
    data: [UnsafeCell<u32>; SLOTS],
    /// An ordering of the cursor's that is forgotten, to see that this test sees it.
    forgotten: Option<Ordering>,
}

// SAFETY: whether the cells are reached by one thread at a time is what loom checks.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(forgotten: Option<Ordering>) -> Arc<Self> {
        let words = std::array::from_fn(|_| AtomicU32::new(libc::TP_STATUS_KERNEL));
        let data = std::array::from_fn(|_| UnsafeCell::new(u32::MAX));
        Arc::new(Self { words, data, forgotten })
    }

    fn order(&self, order: Ordering) -> Ordering {
        if self.forgotten == Some(order) { Ordering::Relaxed } else { order }
    }

    /// The kernel's look at a status word. An exchange of a value for itself: loom (0.7) remembers one
    /// access to an atomic, so a plain load by the thread that stores next would hide the reader's
    /// and no other order of the two would be tried.
    fn is_kernels(&self, slot: usize) -> bool {
        const KERNEL: u32 = libc::TP_STATUS_KERNEL;
        let (order, else_order) = (Ordering::Acquire, Ordering::Relaxed);
        self.words[slot].compare_exchange(KERNEL, KERNEL, order, else_order).is_ok()
    }

    fn write(&self, slot: usize, value: u32) {
        // SAFETY: the pointer is that of a live cell; exclusive access is what loom checks.
        self.data[slot].with_mut(|at| unsafe { *at = value });
    }

    /// Reads a frame and changes it in place, as a stack may.
    fn consume(&self, slot: usize) -> u32 {
        // SAFETY: the pointer is that of a live cell; exclusive access is what loom checks.
        self.data[slot].with_mut(|at| std::mem::replace(unsafe { &mut *at }, u32::MAX))
    }
}

impl StatusWords for Shared {
    fn load(&self, slot: usize, order: Ordering) -> u32 {
        self.words[slot].load(self.order(order))
    }

    fn store(&self, slot: usize, status: u32, order: Ordering) {
        self.words[slot].store(status, self.order(order));
    }
}

/// As tpacket_rcv does: a frame goes into the slot at the head or, where that is not the kernel's,
/// is dropped. Returns those that were not dropped.
fn kernel(ring: &Shared) -> Vec<u32> {
    let mut filled = Vec::new();
    for value in 0..FRAMES {
        let slot = filled.len() % SLOTS;
        // The kernel's own barriers: smp_rmb before, smp_wmb after it writes the slot.
        if ring.is_kernels(slot) {
            ring.write(slot, value);
            ring.words[slot].store(libc::TP_STATUS_USER, Ordering::Release);
            filled.push(value);
        }
    }
    filled
}

fn visit(ring: &Shared, cursor: &mut Cursor, most: usize, taken: &mut Vec<u32>) {
    cursor.take(ring, most);
    taken.extend(cursor.held().map(|slot| ring.consume(slot)));
}

/// `most`: how many slots the reader takes at a time. Returns how many interleavings there were, and
/// in how many of them a frame found no slot.
fn explore(forgotten: Option<Ordering>, most: usize) -> (usize, usize) {
    let counts = std::sync::Arc::new(std::sync::Mutex::new((0, 0)));
    let counted = std::sync::Arc::clone(&counts);
    loom::model(move || {
        let ring = Shared::new(forgotten);
        let filler = thread::spawn({
            let ring = Arc::clone(&ring);
            move || kernel(&ring)
        });
        let (mut cursor, mut taken) = (Cursor::new(SLOTS), Vec::new());
        for _ in 0..FRAMES {
            visit(&ring, &mut cursor, most, &mut taken);
        }
        let filled = filler.join().unwrap();
        // What was not there in time is there now.
        for _ in 0..FRAMES {
            visit(&ring, &mut cursor, most, &mut taken);
        }
        // Nothing lost, nothing twice, in order, and no value of a slot that was not ours.
        assert_eq!(taken, filled);
        let mut counted = counted.lock().unwrap();
        counted.0 += 1;
        counted.1 += usize::from(filled.len() < FRAMES as usize);
    });
    *counts.lock().unwrap()
}

fn explored(most: usize) {
    let (all, dropped) = explore(None, most);
    assert!(0 < dropped && dropped < all, "{dropped} of {all}");
}

#[test]
fn one_slot_at_a_time() {
    explored(1);
}

#[test]
fn several_slots_at_a_time() {
    explored(SLOTS);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn taking_without_acquire_is_found_to_race() {
    explore(Some(Ordering::Acquire), 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn giving_back_without_release_is_found_to_race() {
    explore(Some(Ordering::Release), 1);
}
