//! Lists the frames in slots or in a block that are ours.
//!
//! ```text
//! V2  slot:  tpacket2_hdr  sockaddr_ll ...  vnet header | frame            next slot ...
//! V3  block: descriptor | tpacket3_hdr  sockaddr_ll ...  vnet header | frame | tpacket3_hdr ...
//!                         ^ first                   tp_mac − vnet_hdr ^ tp_mac ^ tp_next_offset
//! ```
//!
//! Frames that are listed ascend, do not overlap, and lie in the memory, whatever it says.

use std::mem::offset_of;

use libc::{tpacket_block_desc, tpacket_hdr_v1};

use super::header::{Header, u32_at};
use crate::batch::RxDescriptor;
use crate::io::Inlet;

/// The kernel puts 82 bytes of headers before a frame of a V3 block, which has its link header of 14
/// at least: no block holds more frames than its length by this.
pub(super) const SHORTEST_STEP: usize = 96;

/// Lists the frames of a run of V2 slots. A slot that makes no sense is counted, and the next one
/// stands for itself. Whether the kernel says that it has dropped frames.
pub(super) fn slots(
    memory: &[u8],
    slot_len: usize,
    inlet: &mut Inlet,
    frames: &mut Vec<RxDescriptor>,
) -> bool {
    let mut status = 0;
    for (index, slot) in memory.chunks_exact(slot_len).enumerate() {
        if let Some(header) = Header::v2(slot) {
            status |= header.info.status;
            // Offsets in the list count from the start of the run.
            let base = index * slot_len;
            if list(slot, base, 0, &header, inlet, frames).is_some() {
                continue;
            }
        }
        inlet.port.stats.rx.malformed.add(1);
    }
    status & libc::TP_STATUS_LOSING != 0
}

/// Lists the frames of a V3 block. A field that makes no sense is counted and ends the walk:
/// nothing behind it can be trusted. Whether the kernel says that it has dropped frames.
pub(super) fn block(block: &[u8], inlet: &mut Inlet, frames: &mut Vec<RxDescriptor>) -> bool {
    const FIRST: usize = offset_of!(tpacket_block_desc, hdr);
    let field = |offset: usize| u32_at(block, FIRST + offset).unwrap_or(0);
    let count = field(offset_of!(tpacket_hdr_v1, num_pkts));
    let mut at = field(offset_of!(tpacket_hdr_v1, offset_to_first_pkt)) as usize;
    // Headers and frames ascend; this is where the last frame ended.
    let mut end = size_of::<tpacket_block_desc>();
    for _ in 0..count {
        let header = Some(at).filter(|at| *at >= end).and_then(|at| Header::v3(block, at));
        let listed =
            header.and_then(|h| list(block, 0, at, &h, inlet, frames).map(|end| (h.next, end)));
        let Some((next, frame_end)) = listed else {
            inlet.port.stats.rx.malformed.add(1);
            break;
        };
        end = frame_end;
        // The last frame of a block has no next.
        at = at.saturating_add(next);
    }
    field(offset_of!(tpacket_hdr_v1, block_status)) & libc::TP_STATUS_LOSING != 0
}

/// Decides about the frame of the header in `memory` at `at`: lists it, with offsets that count from
/// `base` before the memory, or counts why not. Where it ends; `None` where it cannot be.
fn list(
    memory: &[u8],
    base: usize,
    at: usize,
    header: &Header,
    inlet: &mut Inlet,
    frames: &mut Vec<RxDescriptor>,
) -> Option<usize> {
    let vnet = inlet.port.vnet_header;
    let (start, message) = header.frame(memory, at, vnet)?;
    if let Some(meta) = inlet.admit(message, header.info) {
        let (offset, len) = (base + start + vnet, message.len() - vnet);
        frames.push(RxDescriptor { offset, len, meta });
    }
    Some(start + message.len())
}
