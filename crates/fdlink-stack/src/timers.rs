//! Deadlines of flows, kept lazily: a flow has at most a few entries in the heap, and an entry that
//! comes up early is put back at the flow's real deadline. Moving a deadline later, which happens
//! with every acknowledgement, so costs nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Which flow an entry is for; a number that was given to another flow since is recognised by its
/// generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FlowId {
    pub(crate) index: usize,
    pub(crate) generation: u64,
}

/// When some flow's entry in the heap comes up; lives in the flow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Armed(Option<Instant>);

/// The heap.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, FlowId)>>,
}

impl Timers {
    /// Sees to it that the flow comes up at `deadline` or before.
    pub(crate) fn arm(&mut self, id: FlowId, armed: &mut Armed, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if armed.0.is_none_or(|at| deadline < at) {
            armed.0 = Some(deadline);
            self.heap.push(Reverse((deadline, id)));
        }
    }

    /// The next entry that has come up. The caller looks the flow up, calls [`Armed::came_up`],
    /// and arms it again.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, FlowId)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Drops the entries that are for nothing any more.
    pub(crate) fn sweep(&mut self, mut keep: impl FnMut(Instant, FlowId) -> bool) {
        self.heap.retain(|Reverse((at, id))| keep(*at, *id));
    }

    /// When the next entry comes up.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

impl Armed {
    /// Whether the entry that comes up at `at` is the one in force.
    pub(crate) fn is_for(&self, at: Instant) -> bool {
        self.0 == Some(at)
    }

    /// Whether the entry that came up at `at` is the one in force; a later one was replaced by it.
    pub(crate) fn came_up(&mut self, at: Instant) -> bool {
        let current = self.0 == Some(at);
        if current {
            self.0 = None;
        }
        current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(index: usize) -> FlowId {
        FlowId { index, generation: 0 }
    }

    #[test]
    fn entries_come_up_in_order_and_a_later_deadline_adds_none() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        let (mut a, mut b) = (Armed::default(), Armed::default());
        timers.arm(id(1), &mut a, Some(at(50)));
        timers.arm(id(2), &mut b, Some(at(20)));
        timers.arm(id(1), &mut a, Some(at(90)));
        assert_eq!(timers.heap.len(), 2);
        assert_eq!(timers.next(), Some(at(20)));
        assert_eq!(timers.pop_due(at(10)), None);
        assert_eq!(timers.pop_due(at(60)), Some((at(20), id(2))));
        assert_eq!(timers.pop_due(at(60)), Some((at(50), id(1))));
        assert!(a.came_up(at(50)));
    }

    #[test]
    fn an_entry_that_an_earlier_one_replaced_is_recognised() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        let mut armed = Armed::default();
        timers.arm(id(1), &mut armed, Some(at(50)));
        timers.arm(id(1), &mut armed, Some(at(10)));
        let first = timers.pop_due(at(99)).unwrap();
        assert!(armed.came_up(first.0));
        let second = timers.pop_due(at(99)).unwrap();
        assert!(!armed.came_up(second.0));
    }
}
