//! Which frames wait in a sender's arena, where they lie, and how much of the one at the head has
//! left already. Bookkeeping only: the bytes are the sender's.

use std::ops::Range;

use crate::batch::SlotOwner;
use crate::offload::vnet::TxOffload;

/// Which parts of the arena hold what.
#[derive(Debug)]
pub(super) struct Ledger {
    slots: Vec<Slot>,
    /// The first slot that has not left.
    next: usize,
    /// Where the free part starts.
    top: usize,
    vnet_header: usize,
    /// How far the head is cut, where it leaves in pieces.
    pub(super) cut: Option<Cut>,
}

/// A committed frame in the arena, with its vnet header in front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    start: usize,
    /// The vnet header not included.
    pub(super) len: usize,
    pub(super) offload: TxOffload,
}

impl Slot {
    /// Where vnet header and frame lie in the arena.
    pub(super) fn range(&self, vnet_header: usize) -> Range<usize> {
        self.start..self.start + vnet_header + self.len
    }
}

/// How far a super-frame has left in pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Segments in each message.
    pub(super) run: usize,
    /// Segments that left or were dropped.
    pub(super) done: usize,
    /// Whether one was dropped (and counted).
    pub(super) lossy: bool,
    /// Whether its being cut has been counted.
    pub(super) counted: bool,
    /// Whether its sender was told already that it left.
    pub(super) told: bool,
}

impl Cut {
    /// From the start, in messages of `run` segments.
    pub(super) fn into_runs(run: usize) -> Self {
        Self { run, done: 0, lossy: false, counted: false, told: false }
    }
}

impl Ledger {
    pub(super) fn new(capacity: usize, vnet_header: usize) -> Self {
        let slots = Vec::with_capacity(capacity);
        Self { slots, next: 0, top: 0, vnet_header, cut: None }
    }

    /// The slots that have not left.
    pub(super) fn waiting(&self) -> &[Slot] {
        &self.slots[self.next..]
    }

    /// The same, to be changed.
    pub(super) fn waiting_mut(&mut self) -> &mut [Slot] {
        &mut self.slots[self.next..]
    }

    /// Where the free part of the arena starts.
    pub(super) fn top(&self) -> usize {
        self.top
    }

    /// Whether another frame of that length has room in an arena of `arena_len` bytes.
    pub(super) fn has_room(&self, len: usize, arena_len: usize) -> bool {
        self.slots.len() < self.slots.capacity() && self.vnet_header + len <= arena_len - self.top
    }

    /// Takes the first `count` off; they left or were dropped.
    pub(super) fn advance(&mut self, count: usize) {
        self.next += count;
        self.cut = None;
        if self.next == self.slots.len() {
            self.start_over();
        }
    }

    /// Forgets all but the first `count` of those that wait.
    pub(super) fn keep(&mut self, count: usize) {
        self.slots.truncate(self.next + count);
        if count == 0 {
            self.start_over();
        } else if let Some(last) = self.slots.last() {
            self.top = last.range(self.vnet_header).end;
        }
    }

    fn start_over(&mut self) {
        self.slots.clear();
        self.next = 0;
        self.top = 0;
        self.cut = None;
    }
}

impl SlotOwner for Ledger {
    fn commit(&mut self, len: usize, offload: TxOffload) {
        self.slots.push(Slot { start: self.top, len, offload });
        self.top += self.vnet_header + len;
    }
}
