//! What became of what was asked: nothing is replaced, lowered or left out in silence.

use std::fmt;

use crate::link::LinkKind;
use crate::options::{Fanout, Mode, RingVersion};

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
    /// The far end, where the link was opened as a pair.
    pub far_end: Option<DescriptorReport>,
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
    /// The number of the fanout group it joined, of the kernel's choice; 0 is one.
    pub fanout_group: Option<u16>,
    /// How that group shares.
    pub fanout: Option<Fanout>,
    /// Instructions of the filter that was attached to it or its device; 0 without.
    pub filter: usize,
    /// Whether it made its interface receive everyone's frames.
    pub promiscuous: bool,
    /// Whether the kernel says when it took each frame in.
    pub timestamps: bool,
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
        if let Some(first) = self.descriptors.first() {
            write!(f, "; {first}")?;
        }
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for DescriptorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vnet header {}", self.vnet_header_len)?;
        for (name, bytes) in
            [("receive buffer", self.receive_buffer), ("send buffer", self.send_buffer)]
        {
            if bytes > 0 {
                write!(f, ", {name} {bytes}")?;
            }
        }
        if let Some(layout) = self.ring_layout {
            write!(f, ", {layout}")?;
        }
        if let (Some(group), Some(fanout)) = (self.fanout_group, self.fanout) {
            let defragment = if fanout.defragment { ", defragmented" } else { "" };
            write!(f, ", group {group} by {}{defragment}", fanout.mode.name())?;
        }
        if self.filter > 0 {
            write!(f, ", filter of {}", self.filter)?;
        }
        for (name, on) in [("promiscuous", self.promiscuous), ("time stamps", self.timestamps)] {
            if on {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}
