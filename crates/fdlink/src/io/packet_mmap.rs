//! Frames borrowed from a ring that the kernel writes (TPACKET_V2 or V3, with PACKET_VNET_HDR): no
//! copy and no system call to receive.
//!
//! * V3: a batch is one block of many frames. A block is ours when it is full or
//!   [`geometry::RETIRE_MILLIS`] after its first frame: that is the latency this version costs, and
//!   the time that a reader may sleep is the number of blocks times that, because a trickle uses up
//!   a block for each timeout, however empty.
//! * V2: a batch is a run of slots with one frame each, which is ours as soon as it is written. A
//!   reader may sleep for as many frames as there are slots.
//!
//! A ring that holds a batch stays readable, so whoever waits gives it back first. Of what a ring
//! says, every offset is checked once; a field that makes no sense is counted and never ends the
//! loop.
//!
//! What is not here: the memory and whose it is (`sys/ring`), how the ring is laid out
//! ([`geometry`]), what its headers say ([`header`]).

#[cfg(any(test, fuzzing))]
pub(crate) mod fake;
pub(crate) mod geometry;
mod header;
mod walk;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::batch::{RxBatch, RxDescriptor};
use crate::io::{Inlet, Port};
use crate::options::RingVersion;
use crate::queue::{Fill, Receive, Wakeup};
use crate::sys::ring::Ring;
use crate::sys::socket;

/// Slots of V2 that make up a batch: as many as recvmmsg takes, and a fraction of the ring, so that
/// the kernel gets slots back while the reader works.
const SLOTS_PER_BATCH: usize = 64;

/// How long after an interface went the last block is waited for: its timeout
/// ([`geometry::RETIRE_MILLIS`]), and time for a busy machine.
const LAST_BLOCK: Duration = Duration::from_millis(20);

/// Receives from a ring, a block or a run of slots at a time.
#[derive(Debug)]
pub(crate) struct PacketMmap {
    // The ring first: it is unmapped before its descriptor may take it off.
    ring: Ring,
    inlet: Inlet,
    /// The batch was given back before the next visit, by somebody who waits.
    waited: bool,
    /// When everything is handed over that came before the link was found down.
    last_block_by: Option<Instant>,
    frames: Vec<RxDescriptor>,
}

impl PacketMmap {
    pub(crate) fn new(port: Port, ring: Ring) -> Self {
        let most = match ring.geometry().version {
            RingVersion::V2 => SLOTS_PER_BATCH,
            RingVersion::V3 => ring.geometry().slot_len as usize / walk::SHORTEST_STEP,
        };
        let frames = Vec::with_capacity(most);
        Self { ring, inlet: Inlet::new(port), waited: false, last_block_by: None, frames }
    }

    fn give_back(&mut self) {
        self.frames.clear();
        self.ring.release();
    }

    /// Nothing in the ring: now and then, and for somebody who was woken, ask for a socket error.
    /// Only that, or poll, tells of a link that went down.
    fn idle(&mut self, waited: bool) -> Fill {
        if !self.inlet.is_time_to_ask() && !waited {
            return Fill::Empty;
        }
        let asked = socket::option(self.inlet.port.fd(), libc::SOL_SOCKET, libc::SO_ERROR);
        let error = match asked {
            Ok(0) if self.last_block_by.is_some_and(|time| Instant::now() < time) => {
                return Fill::Empty;
            }
            Ok(0) => return self.inlet.ask(),
            Ok(errno) => std::io::Error::from_raw_os_error(errno),
            Err(error) => error,
        };
        let was_down = self.inlet.down;
        let fill = self.inlet.failed("the ring's socket", &error);
        if self.inlet.down && !was_down {
            self.last_block_by = Some(Instant::now() + LAST_BLOCK);
        }
        // There are no frames, but there may be in a moment.
        fill.filter(|fill| matches!(fill, Fill::Closed(_))).unwrap_or(Fill::Empty)
    }
}

impl Receive for PacketMmap {
    fn fill(&mut self) -> std::io::Result<Fill> {
        let waited = std::mem::take(&mut self.waited);
        self.give_back();
        let geometry = self.ring.geometry();
        let most = match geometry.version {
            RingVersion::V2 => SLOTS_PER_BATCH,
            RingVersion::V3 => 1,
        };
        let taken = self.ring.take(most);
        if taken == 0 {
            return Ok(self.idle(waited));
        }
        // A ring that was overrun has at least its slots to be taken, however few visits that is.
        self.inlet.drops.visited(taken);
        let (memory, frames) = (self.ring.held(), &mut self.frames);
        let losing = match geometry.version {
            RingVersion::V2 => {
                walk::slots(memory, geometry.slot_len as usize, &mut self.inlet, frames)
            }
            RingVersion::V3 => walk::block(memory, &mut self.inlet, frames),
        };
        if losing {
            // Asking takes the mark away, so there is no more than one call for each loss.
            self.inlet.drops.count(&self.inlet.port);
        }
        Ok(self.inlet.settle())
    }

    fn batch(&mut self) -> RxBatch<'_> {
        RxBatch::new(self.ring.held(), &self.frames)
    }

    fn release(&mut self) {
        self.give_back();
        self.waited = true;
    }

    fn wakeup(&self) -> Wakeup<'_> {
        self.inlet.wakeup()
    }

    fn update_stats(&mut self) {
        self.inlet.drops.count(&self.inlet.port);
    }

    fn let_go(self: Box<Self>) {
        let Self { inlet, ring, .. } = *self;
        ring.take_off(inlet.port.fd.as_fd());
    }
}

#[cfg(test)]
mod tests;
