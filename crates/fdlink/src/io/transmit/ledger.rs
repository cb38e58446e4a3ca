//! Which frames wait in a sender's arena, where they lie, and how much of the one at the head has
//! left already. Bookkeeping only: the bytes are the sender's.
//!
//! Each frame has room in front of it for its lead ([`Lead`](super::lead::Lead)).

use std::ops::Range;

use crate::batch::{SlotOwner, TxFrame, TxSlot};
use crate::offload::vnet::TxOffload;

/// Which parts of the arena hold what.
#[derive(Debug)]
pub(in crate::io) struct Ledger {
    slots: Vec<Slot>,
    /// The first slot that has not left.
    next: usize,
    /// Where the free part starts.
    top: usize,
    /// Bytes in front of each frame.
    lead: usize,
    /// How far the head is cut, where it leaves in pieces.
    pub(in crate::io) cut: Option<Cut>,
    /// Whether the sender of the head was told already that it left.
    pub(in crate::io) told: bool,
}

/// A committed frame in the arena, with its lead in front.
#[derive(Clone, Copy, Debug)]
pub(in crate::io) struct Slot {
    start: usize,
    /// The lead not included.
    pub(in crate::io) len: usize,
    pub(in crate::io) offload: TxOffload,
}

impl Slot {
    /// Where lead and frame lie in the arena.
    pub(in crate::io) fn range(&self, lead: usize) -> Range<usize> {
        self.start..self.start + lead + self.len
    }
}

/// How far a super-frame has left in pieces.
#[derive(Clone, Copy, Debug)]
pub(in crate::io) struct Cut {
    /// Segments in each message.
    pub(in crate::io) run: usize,
    /// Segments that left or were dropped.
    pub(in crate::io) done: usize,
    /// Whether one was dropped (and counted).
    pub(in crate::io) lossy: bool,
    /// Whether its being cut has been counted.
    pub(in crate::io) counted: bool,
}

impl Cut {
    /// From the start, in messages of `run` segments.
    pub(in crate::io) fn into_runs(run: usize) -> Self {
        Self { run, done: 0, lossy: false, counted: false }
    }
}

impl Ledger {
    pub(in crate::io) fn new(capacity: usize, lead: usize) -> Self {
        let slots = Vec::with_capacity(capacity);
        Self { slots, next: 0, top: 0, lead, cut: None, told: false }
    }

    /// The slots that have not left.
    pub(in crate::io) fn waiting(&self) -> &[Slot] {
        &self.slots[self.next..]
    }

    /// The same, to be changed.
    pub(in crate::io) fn waiting_mut(&mut self) -> &mut [Slot] {
        &mut self.slots[self.next..]
    }

    /// Whether another frame of that length has room in an arena of `arena_len` bytes.
    pub(in crate::io) fn has_room(&self, len: usize, arena_len: usize) -> bool {
        self.slots.len() < self.slots.capacity() && self.lead + len <= arena_len - self.top
    }

    /// Memory of `arena` for a frame of `len` bytes, if there is room.
    pub(in crate::io) fn lend<'a>(
        &'a mut self,
        len: usize,
        arena: &'a mut [u8],
    ) -> Option<TxSlot<'a>> {
        if !self.has_room(len, arena.len()) {
            return None;
        }
        let start = self.top + self.lead;
        Some(TxSlot::new(&mut arena[start..start + len], self))
    }

    /// Commits a copy of a gathered frame, for which `arena` has room.
    pub(in crate::io) fn copy(&mut self, frame: &TxFrame<'_>, arena: &mut [u8]) {
        let mut at = self.top + self.lead;
        let header = frame.link_header().map_or(&[][..], |header| header);
        for part in std::iter::once(header).chain(frame.parts().iter().map(|part| &**part)) {
            arena[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.commit(frame.len(), frame.offload());
    }

    /// Takes the first `count` off; they left or were dropped.
    pub(in crate::io) fn advance(&mut self, count: usize) {
        self.next += count;
        self.cut = None;
        self.told = false;
        if self.next == self.slots.len() {
            self.start_over();
        }
    }

    /// Forgets all but the first `count` of those that wait.
    pub(in crate::io) fn keep(&mut self, count: usize) {
        self.slots.truncate(self.next + count);
        if count == 0 {
            self.start_over();
        } else if let Some(last) = self.slots.last() {
            self.top = last.range(self.lead).end;
        }
    }

    fn start_over(&mut self) {
        self.slots.clear();
        self.next = 0;
        self.top = 0;
        self.cut = None;
        self.told = false;
    }
}

impl SlotOwner for Ledger {
    fn commit(&mut self, len: usize, offload: TxOffload) {
        self.slots.push(Slot { start: self.top, len, offload });
        self.top += self.lead + len;
    }
}
