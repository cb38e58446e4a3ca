//! Frames borrowed from a ring that the kernel writes (TPACKET_V3 with PACKET_VNET_HDR): no copy
//! and no system call to receive.
//!
//! A batch is one block. In it the kernel chains frames, each behind its own header:
//!
//! ```text
//! block descriptor | tpacket3_hdr ... sockaddr_ll ... vnet header | frame | tpacket3_hdr ...
//!                    ^ first            tp_mac − vnet_hdr ^       ^ tp_mac  ^ tp_next_offset
//! ```
//!
//! Every offset is checked once against the block; a field that makes no sense is counted and ends
//! the block's walk (nothing behind it can be trusted), never the loop.
//!
//! A block goes to us when it is full or [`RETIRE_MILLIS`] after its first frame, so that is the
//! latency this mode costs, and the time that a reader may sleep is the number of blocks times
//! that: a trickle uses up a block for each timeout, however empty.

use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};

use libc::{tpacket_block_desc, tpacket_hdr_v1, tpacket_hdr_variant1, tpacket3_hdr};

use crate::batch::{RxBatch, RxDescriptor};
use crate::io::{Inlet, Port};
use crate::queue::{Fill, Receive, Wakeup};
use crate::sys::message::PacketInfo;
use crate::sys::ring::{self, Geometry, Ring};
use crate::sys::socket;

/// A block must hold a super-frame with its headers (65,6xx bytes): 128 KiB, or a page where pages
/// are larger.
const MIN_BLOCK_LEN: usize = 128 * 1024;

/// The shortest timeout that the kernel takes; each millisecond is latency.
const RETIRE_MILLIS: u32 = 1;

/// 256 ms of a sleeping reader; with 128 KiB blocks, 32 MiB.
const BLOCKS: u32 = 256;

/// The kernel aligns frames to 16 bytes and puts 48 + 20 bytes of header before the shortest; this
/// many fit in a block, so the list of frames does not grow.
const FRAMES_PER_BLOCK: usize = 1024;

/// How often a ring that stays empty is asked for a socket error: only poll or SO_ERROR tell of a
/// link that went down, and asking costs a system call.
const EMPTY_VISITS_BETWEEN_CHECKS: u32 = 16;

/// The ring's layout on this machine.
pub(crate) fn geometry() -> Geometry {
    let block_len = MIN_BLOCK_LEN.next_multiple_of(ring::page_size());
    let block_len = u32::try_from(block_len).unwrap_or(1 << 17);
    Geometry { block_len, blocks: BLOCKS, retire_millis: RETIRE_MILLIS }
}

/// Receives from a ring, a block at a time.
#[derive(Debug)]
pub(crate) struct PacketMmap {
    // The ring first: it is unmapped before its descriptor may take it off.
    ring: Ring,
    inlet: Inlet,
    /// The block that is, or will be, ours next.
    cursor: usize,
    /// The block at the cursor is ours and not yet given back.
    held: bool,
    empty_visits: u32,
    frames: Vec<RxDescriptor>,
}

impl PacketMmap {
    pub(crate) fn new(port: Port, ring: Ring) -> Self {
        let frames = Vec::with_capacity(FRAMES_PER_BLOCK);
        Self { inlet: Inlet::new(port), ring, cursor: 0, held: false, empty_visits: 0, frames }
    }

    /// Nothing in the ring: now and then, ask why.
    fn idle(&mut self) -> Fill {
        self.empty_visits += 1;
        let inlet = &self.inlet;
        if self.empty_visits < EMPTY_VISITS_BETWEEN_CHECKS && !inlet.down && !inlet.drops_are_due()
        {
            return Fill::Empty;
        }
        self.empty_visits = 0;
        let asked = socket::option(self.inlet.port.fd(), libc::SOL_SOCKET, libc::SO_ERROR);
        let error = match asked {
            Ok(0) => return self.inlet.empty(),
            Ok(errno) => std::io::Error::from_raw_os_error(errno),
            Err(error) => error,
        };
        self.inlet.failed("the ring's socket", &error).unwrap_or(Fill::Empty)
    }
}

impl Receive for PacketMmap {
    fn fill(&mut self) -> std::io::Result<Fill> {
        self.release();
        let Some(block) = self.ring.block(self.cursor) else {
            return Ok(self.idle());
        };
        self.held = true;
        self.empty_visits = 0;
        self.inlet.visits += 1;
        walk(block, &mut self.inlet, &mut self.frames);
        Ok(self.inlet.settle())
    }

    fn batch(&mut self) -> RxBatch<'_> {
        let block = if self.held { self.ring.block(self.cursor) } else { None };
        RxBatch::new(block.unwrap_or_default(), &self.frames)
    }

    fn release(&mut self) {
        self.frames.clear();
        if std::mem::take(&mut self.held) {
            self.ring.release(self.cursor);
            self.cursor = (self.cursor + 1) % self.ring.blocks();
        }
    }

    fn wakeup(&self) -> Wakeup<'_> {
        self.inlet.wakeup()
    }

    fn into_descriptor(self: Box<Self>) -> Option<std::io::Result<OwnedFd>> {
        let Self { inlet, ring, .. } = *self;
        let fd = inlet.port.fd.as_fd().try_clone_to_owned();
        // A ring can be taken off a socket once it is no longer mapped.
        drop(ring);
        Some(fd.and_then(|fd| Ring::remove(fd.as_fd()).map(|()| fd)))
    }
}

/// Lists the frames of a block that is ours.
fn walk(block: &[u8], inlet: &mut Inlet, frames: &mut Vec<RxDescriptor>) {
    const FIRST: usize = offset_of!(tpacket_block_desc, hdr);
    let count = u32_at(block, FIRST + offset_of!(tpacket_hdr_v1, num_pkts)).unwrap_or(0);
    let first = u32_at(block, FIRST + offset_of!(tpacket_hdr_v1, offset_to_first_pkt));
    let (mut at, mut end) = (first.unwrap_or(0) as usize, size_of::<tpacket_block_desc>());
    for _ in 0..count {
        // Headers and frames ascend; `end` is where the last frame ended.
        let Some(header) = Some(at).filter(|at| *at >= end).and_then(|at| header_at(block, at))
        else {
            inlet.port.stats.rx.malformed.add(1);
            return;
        };
        let Some((start, message)) = header.frame(block, at, inlet.port.vnet_header) else {
            inlet.port.stats.rx.malformed.add(1);
            return;
        };
        end = start + message.len();
        if header.truncated() {
            inlet.port.stats.rx.truncated.add(1);
        } else if let Some(meta) = inlet.admit(message, header.info) {
            let offset = start + inlet.port.vnet_header;
            frames.push(RxDescriptor { offset, len: end - offset, meta });
        }
        // The last frame of a block has no next.
        at = at.saturating_add(header.next);
    }
}

/// What is needed of a `tpacket3_hdr` and the `sockaddr_ll` behind it.
struct Header {
    next: usize,
    captured: usize,
    mac: usize,
    info: PacketInfo,
}

impl Header {
    fn truncated(&self) -> bool {
        self.captured < self.info.len as usize
    }

    /// Where the frame with its vnet header starts in the block, and its bytes.
    fn frame<'b>(&self, block: &'b [u8], at: usize, vnet: usize) -> Option<(usize, &'b [u8])> {
        let start = at.checked_add(self.mac.checked_sub(vnet)?)?;
        let end = start.checked_add(vnet)?.checked_add(self.captured)?;
        let behind_the_header = self.mac >= vnet + size_of::<tpacket3_hdr>();
        block.get(start..end).filter(|_| behind_the_header).map(|message| (start, message))
    }
}

fn header_at(block: &[u8], at: usize) -> Option<Header> {
    const VLAN: usize = offset_of!(tpacket3_hdr, hv1);
    // TPACKET_ALIGN(sizeof(struct tpacket3_hdr)), where the kernel puts the address.
    const ADDRESS: usize = size_of::<tpacket3_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
    const PACKET_TYPE: usize = ADDRESS + offset_of!(libc::sockaddr_ll, sll_pkttype);
    let header = block.get(at..)?;
    let tci = u32_at(header, VLAN + offset_of!(tpacket_hdr_variant1, tp_vlan_tci))?;
    Some(Header {
        next: u32_at(header, offset_of!(tpacket3_hdr, tp_next_offset))? as usize,
        captured: u32_at(header, offset_of!(tpacket3_hdr, tp_snaplen))? as usize,
        mac: u16_at(header, offset_of!(tpacket3_hdr, tp_mac))?.into(),
        info: PacketInfo {
            packet_type: *header.get(PACKET_TYPE)?,
            status: u32_at(header, offset_of!(tpacket3_hdr, tp_status))?,
            len: u32_at(header, offset_of!(tpacket3_hdr, tp_len))?,
            // 16 bits in a field of 32.
            vlan_tci: u16::try_from(tci & 0xffff).unwrap_or(0),
            vlan_tpid: u16_at(header, VLAN + offset_of!(tpacket_hdr_variant1, tp_vlan_tpid))?,
            timestamp: None,
        },
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::batch::LinkHeader;
    use crate::io::Channel;

    const FIRST: usize = 48;
    const VNET: usize = 10;

    fn inlet() -> Inlet {
        Inlet::new(Port {
            fd: Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()).into()),
            stats: Arc::default(),
            channel: Channel::Packet,
            vnet_header: VNET,
            link_header: LinkHeader::Ethernet,
            max_len: 1514,
            batch: 1,
            timestamps: false,
        })
    }

    fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
        block[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A block of three frames of 60 bytes, 192 bytes apart, as the kernel lays it out.
    fn block() -> Vec<u8> {
        let mut block = vec![0; 1024];
        put(&mut block, 12, &3_u32.to_ne_bytes());
        put(&mut block, 16, &u32::try_from(FIRST).unwrap().to_ne_bytes());
        for at in [FIRST, FIRST + 192, FIRST + 384] {
            put(&mut block, at, &192_u32.to_ne_bytes());
            put(&mut block, at + 12, &60_u32.to_ne_bytes());
            put(&mut block, at + 16, &60_u32.to_ne_bytes());
            put(&mut block, at + 24, &92_u16.to_ne_bytes());
            block[at + 92..at + 152].fill(u8::try_from(at & 0xff).unwrap());
        }
        block
    }

    fn walked(block: &mut [u8]) -> (Vec<RxDescriptor>, u64, u64) {
        let (mut inlet, mut frames) = (inlet(), Vec::new());
        walk(block, &mut inlet, &mut frames);
        // Whatever the block says, every frame that is listed can be handed out.
        assert_eq!(RxBatch::new(block, &frames).count(), frames.len());
        let stats = inlet.port.stats.rx.snapshot();
        (frames, stats.malformed, stats.truncated)
    }

    #[test]
    fn frames_are_found_where_the_kernel_put_them() {
        let (frames, malformed, truncated) = walked(&mut block());
        let found: Vec<_> = frames.iter().map(|frame| (frame.offset, frame.len)).collect();
        assert_eq!(found, [(FIRST + 92, 60), (FIRST + 284, 60), (FIRST + 476, 60)]);
        assert_eq!((malformed, truncated), (0, 0));
    }

    #[test]
    fn a_field_that_makes_no_sense_ends_the_walk_and_is_counted() {
        let second = FIRST + 192;
        let cases: [(usize, &[u8], usize); 9] = [
            (12, &9_u32.to_ne_bytes(), 3),             // more frames than there are
            (16, &0_u32.to_ne_bytes(), 0),             // the first in the descriptor
            (16, &u32::MAX.to_ne_bytes(), 0),          // the first past the end
            (FIRST, &0_u32.to_ne_bytes(), 1),          // the next is the same
            (FIRST, &100_u32.to_ne_bytes(), 1),        // the next overlaps
            (FIRST, &u32::MAX.to_ne_bytes(), 1),       // the next past the end
            (second + 12, &4096_u32.to_ne_bytes(), 1), // longer than the block
            (second + 24, &57_u16.to_ne_bytes(), 1),   // vnet header in the header
            (second + 24, &u16::MAX.to_ne_bytes(), 1), // data past the end
        ];
        for (at, bytes, good) in cases {
            let mut block = block();
            put(&mut block, at, bytes);
            let (frames, malformed, _) = walked(&mut block);
            assert_eq!((frames.len(), malformed), (good, 1), "{bytes:?} at {at}");
        }
    }

    #[test]
    fn a_frame_that_was_cut_off_is_counted_and_not_delivered() {
        let mut block = block();
        put(&mut block, FIRST + 192 + 16, &61_u32.to_ne_bytes());
        let (frames, malformed, truncated) = walked(&mut block);
        assert_eq!((frames.len(), malformed, truncated), (2, 0, 1));
    }

    proptest! {
        #[test]
        fn no_block_makes_it_panic(
            changes in prop::collection::vec((0_usize..640, any::<u8>()), 1..20),
        ) {
            let mut block = block();
            for (at, byte) in changes {
                block[at] = byte;
            }
            // A count of billions ends at the first header that makes no sense.
            walked(&mut block);
        }
    }
}
