//! What became of what was asked: nothing is replaced, lowered or left out in silence.

use std::fmt;

use crate::link::LinkKind;
use crate::options::Mode;

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
    /// The fanout group it joined.
    pub fanout_group: Option<u16>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, count) = (self.kind.name(), self.descriptors.len());
        write!(f, "{kind} × {count}, {} (asked: {})", self.mode, self.asked_mode)?;
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}
