//! What the kernel dropped because nobody received it in time: when it is asked, and how it counts.
//! AF_PACKET starts anew each time (PACKET_STATISTICS), other datagram sockets go on (SO_MEMINFO),
//! devices count for the whole device (`link::DeviceCounters`), and what keeps its sender waiting
//! drops nothing.

use crate::io::{Channel, Port};
use crate::sys::socket;

/// Asking costs a system call, so it is done when the queue has run empty after that many visits:
/// after a burst that could overrun a buffer, and seldom in a trickle.
const VISITS_BETWEEN_COUNTS: usize = 32;

/// A reader that never keeps up finds no queue empty, and is who wants to know: then it is done
/// after that many visits, which makes it a thousandth of their cost.
const MOST_VISITS_BETWEEN_COUNTS: usize = 1024;

/// Asks for the drops of one descriptor.
#[derive(Debug)]
pub(super) struct Drops {
    /// Since the kernel was asked.
    visits: usize,
    /// What a counter that goes on said then.
    before: u32,
}

impl Drops {
    /// Since the link was built.
    pub(super) fn new(port: &Port) -> Self {
        Self { visits: 0, before: port.drops_before }
    }

    /// The queue was visited, or so many slots of it were taken.
    pub(super) fn visited(&mut self, times: usize) {
        self.visits += times;
    }

    /// Whether to ask, now that the queue is empty.
    pub(super) fn are_due(&self) -> bool {
        self.visits >= VISITS_BETWEEN_COUNTS
    }

    /// Whether to ask even though it is not.
    pub(super) fn are_overdue(&self) -> bool {
        self.visits >= MOST_VISITS_BETWEEN_COUNTS
    }

    /// Asks, and counts what is new.
    pub(super) fn count(&mut self, port: &Port) {
        self.visits = 0;
        let new = match port.channel {
            Channel::Packet => socket::packet_drops(port.fd()).unwrap_or(0),
            // A counter that cannot be read now has not gone back to 0.
            _ => total(port)
                .map_or(0, |total| total.wrapping_sub(std::mem::replace(&mut self.before, total))),
        };
        port.stats.rx.kernel_drops.add(new.into());
    }
}

/// What a counter says that goes on; `None` where there is none.
fn total(port: &Port) -> Option<u32> {
    match port.channel {
        Channel::Datagram => socket::dropped(port.fd()).ok(),
        Channel::Device | Channel::Packet | Channel::Seqpacket | Channel::UnixSeqpacket => None,
    }
}
