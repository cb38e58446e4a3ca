//! What became of what was asked: nothing is replaced, lowered or left out in silence.

use std::fmt;

use crate::link::LinkKind;
use crate::options::{Mode, RingVersion};

/// What a link was asked for and what it is.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the descriptors are.
    pub kind: LinkKind,
    /// The mode asked for.
    pub asked_mode: Mode,
    /// The mode in use; never `Auto`.
    pub mode: Mode,
    /// One for each descriptor.
    pub descriptors: Vec<DescriptorReport>,
    /// What was replaced or left out, and why, in words.
    pub notes: Vec<String>,
}

/// What one descriptor got.
#[derive(Clone, Debug, Default)]
pub struct DescriptorReport {
    /// Length of the vnet header on it, in bytes; 0 without.
    pub vnet_header_len: usize,
    /// Receive buffer as the kernel counts it (SO_RCVBUF), in bytes; 0 for no socket.
    pub receive_buffer: usize,
    /// Send buffer as the kernel counts it (SO_SNDBUF), in bytes; 0 for no socket.
    pub send_buffer: usize,
    /// Ring memory, in bytes; 0 without a ring.
    pub ring: usize,
    /// How that memory is laid out; `None` without a ring.
    pub ring_layout: Option<RingLayout>,
    /// The fanout group it joined.
    pub fanout_group: Option<u16>,
}

/// How a ring is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// What the kernel puts into a slot, and when it hands it over.
    pub version: RingVersion,
    /// Slots (V2) or blocks (V3).
    pub slots: usize,
    /// Bytes of each.
    pub slot_len: usize,
}

impl fmt::Display for RingLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (slots, kib) = (self.slots, self.slot_len / 1024);
        match self.version {
            RingVersion::V2 => write!(f, "TPACKET_V2, {slots} slots of {kib} KiB"),
            RingVersion::V3 => write!(f, "TPACKET_V3, {slots} blocks of {kib} KiB"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, count) = (self.kind.name(), self.descriptors.len());
        write!(f, "{kind} × {count}, {} (asked: {})", self.mode, self.asked_mode)?;
        if let Some(layout) = self.descriptors.first().and_then(|first| first.ring_layout) {
            write!(f, "; {layout}")?;
        }
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}
