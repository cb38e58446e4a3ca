//! Where TCP's segments go: into a transmit queue's memory, in place, with the headers that their
//! connection does not know of.

use std::net::IpAddr;
use std::num::NonZeroU16;

use fdlink::MacAddr;
use fdlink::offload::vnet::{Gso, GsoKind};
use fdlink::queue::Transmit;

use crate::flows::Path;
use crate::nic::{HOP_LIMIT, Head, Shape};
use crate::packet;
use crate::stats::StackCounters;
use crate::tcp::{SEGMENT_HEADROOM, SegmentSink};

/// Where one connection's segments go: into a transmit queue, in place.
pub(crate) struct TcpOut<'a> {
    pub(crate) tx: &'a mut dyn Transmit,
    pub(crate) shape: &'a Shape,
    pub(crate) path: &'a Path,
    pub(crate) peer: MacAddr,
    pub(crate) stats: &'a StackCounters,
    pub(crate) sent_up_to: &'a mut Option<u32>,
}

impl TcpOut<'_> {
    /// Offset of TCP's checksum in its header (RFC 9293, section 3.1).
    const CHECKSUM_OFFSET: u16 = 16;
}

impl SegmentSink for TcpOut<'_> {
    fn room(&mut self) -> bool {
        self.tx.slot(self.shape.max_slot).is_some()
    }

    fn segment(&mut self, len: usize, mss: Option<NonZeroU16>, write: &mut dyn FnMut(&mut [u8])) {
        let (local, remote) = (self.path.local.ip(), self.path.remote.ip());
        let head = Head { source: local, destination: remote, protocol: packet::TCP };
        let start = self.shape.link.len() + packet::header_len(local);
        let total = start + len;
        let Some(mut slot) = self.tx.slot(total) else {
            // Not reached while a connection asks for room first; the bytes must still be written
            // somewhere, and the peer's retransmission mends the loss.
            write(&mut vec![0; SEGMENT_HEADROOM + len]);
            self.stats.tx_no_room.add(1);
            return;
        };
        let frame = &mut slot.bytes_mut()[..total];
        write(&mut frame[start - SEGMENT_HEADROOM..]);
        self.shape.write_link_header(frame, self.peer, local);
        let link = self.shape.link.len();
        packet::write_header(&mut frame[link..], local, remote, packet::TCP, len, 0, HOP_LIMIT);
        let mut offload = self.shape.leave_checksum(frame, start, Self::CHECKSUM_OFFSET, head);
        offload.gso = mss.map(|mss| tcp_gso(mss, local, start, frame));
        note_sequence(&frame[start..], self.sent_up_to, self.stats);
        slot.commit(total, offload);
    }
}

fn tcp_gso(mss: NonZeroU16, local: IpAddr, start: usize, frame: &[u8]) -> Gso {
    Gso {
        kind: if local.is_ipv4() { GsoKind::TcpV4 } else { GsoKind::TcpV6 },
        size: mss.get(),
        header_len: u16::try_from(start + tcp_header_len(&frame[start..])).unwrap_or(0),
        ecn: false,
    }
}

/// Data offset, in 32-bit words (RFC 9293, section 3.1).
fn tcp_header_len(segment: &[u8]) -> usize {
    usize::from(segment[12] >> 4) * 4
}

/// Counts a segment whose data, or part of it, was sent before.
fn note_sequence(segment: &[u8], sent_up_to: &mut Option<u32>, stats: &StackCounters) {
    let data = segment.len().saturating_sub(tcp_header_len(segment));
    if data == 0 {
        return;
    }
    let seq = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    match *sent_up_to {
        // Sequence numbers wrap: a difference in the upper half is a step back.
        Some(up_to) if seq.wrapping_sub(up_to) > u32::MAX / 2 => stats.tcp_retransmits.add(1),
        _ => *sent_up_to = Some(seq.wrapping_add(u32::try_from(data).unwrap_or(0))),
    }
}
