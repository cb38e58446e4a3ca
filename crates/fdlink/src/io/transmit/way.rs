//! How a frame leaves, decided from its length, from what is left to the other side, and from the
//! byte of its headers that says how long they are. Nothing is sent here.

use crate::batch::TxFrame;
use crate::io::Port;
use crate::offload::coalesce::UDP_MAX_SEGMENTS;
use crate::offload::vnet::{ChecksumField, Gso, GsoKind, TxOffload, VnetHeader};
use crate::stats::Counter;

/// The longest IP packet. AF_PACKET takes longer super-frames and lets the length wrap.
const MAX_IP_LEN: usize = 65535;

/// How a frame leaves.
#[derive(Debug)]
pub(in crate::io) enum Way<'a> {
    /// As it is, once its checksum is complete: nobody behind this descriptor will do it.
    Complete(ChecksumField),
    /// In messages of that many segments each.
    Cut(usize),
    /// Not at all; this counts why.
    Refused(&'a Counter),
    /// As it is, behind this vnet header.
    Whole(VnetHeader),
}

impl Port {
    /// How a frame of `len` bytes leaves; `byte` gives the one at an offset.
    pub(in crate::io) fn way(
        &self,
        len: usize,
        offload: TxOffload,
        byte: impl Fn(usize) -> Option<u8>,
    ) -> Way<'_> {
        if len > self.link_header.len() + MAX_IP_LEN {
            return Way::Refused(&self.stats.tx.too_long);
        }
        // A cooked socket is told what the link header says, so that must be there.
        if len == 0
            || len < self.headroom()
            || offload.checksum.is_some_and(|field| !field.fits(len))
        {
            return Way::Refused(&self.stats.tx.invalid);
        }
        let header_len = offload.header_len(len, byte);
        let offload = offload.with_header_len(header_len).for_frame_len(len);
        match (offload.gso, offload.checksum) {
            (None, Some(field)) if self.vnet_header == 0 => Way::Complete(field),
            (Some(_), _) if self.vnet_header == 0 => Way::Cut(1),
            // virtio 1.2, 5.1.6.2: what is to be cut has a checksum to be filled in.
            (Some(gso), None) if gso.kind != GsoKind::UdpFragments => Way::Cut(1),
            (Some(gso), Some(_)) if exceeds_udp_segments(gso, len) => Way::Cut(UDP_MAX_SEGMENTS),
            _ => Way::Whole(VnetHeader::for_tx(offload, header_len)),
        }
    }

    /// How a frame leaves that is gathered from the caller's buffers.
    pub(in crate::io) fn way_of(&self, frame: &TxFrame<'_>) -> Way<'_> {
        self.way(frame.len(), frame.offload(), |at| byte_of(frame, at))
    }
}

fn exceeds_udp_segments(gso: Gso, len: usize) -> bool {
    let payload = len - usize::from(gso.header_len).min(len);
    gso.kind == GsoKind::UdpSegments && payload > UDP_MAX_SEGMENTS * usize::from(gso.size)
}

/// The byte of a gathered frame at an offset.
pub(in crate::io) fn byte_of(frame: &TxFrame<'_>, mut at: usize) -> Option<u8> {
    let header = frame.link_header().map_or(&[][..], |header| header);
    for part in std::iter::once(header).chain(frame.parts().iter().map(|part| &**part)) {
        match part.get(at) {
            Some(byte) => return Some(*byte),
            None => at -= part.len(),
        }
    }
    None
}
