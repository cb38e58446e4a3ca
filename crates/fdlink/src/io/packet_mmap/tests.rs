//! Rings over anonymous memory whose kernel is the test: as the kernel lays them out, and with
//! fields that make no sense.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::fake::{VNET, port, walked};
use super::*;
use crate::batch::{PacketType, VlanTag};
use crate::offload::vnet::RxChecksum;
use crate::stats::RxStats;
use crate::sys::ring::Geometry;

/// Offset of a block's first header.
const FIRST: usize = 48;
/// Bytes between the headers of a block.
const STEP: usize = 192;
/// Bytes of a V2 slot in tests that walk memory of their own.
const SLOT: usize = 256;
/// Where the frame is, behind its header.
const MAC: usize = 92;

fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
    memory[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A header of V3, without the offset to the next one.
fn v3_header(memory: &mut [u8], len: u32) {
    put(memory, 4, &1_700_000_000_u32.to_ne_bytes());
    put(memory, 8, &5_u32.to_ne_bytes());
    put(memory, 12, &len.to_ne_bytes());
    put(memory, 16, &len.to_ne_bytes());
    put(memory, 24, &u16::try_from(MAC).unwrap().to_ne_bytes());
}

/// A slot of V2 that the kernel has handed over.
fn v2_slot(memory: &mut [u8], len: u32) {
    put(memory, 0, &libc::TP_STATUS_USER.to_ne_bytes());
    put(memory, 4, &len.to_ne_bytes());
    put(memory, 8, &len.to_ne_bytes());
    put(memory, 12, &u16::try_from(MAC).unwrap().to_ne_bytes());
    put(memory, 16, &1_700_000_000_u32.to_ne_bytes());
    put(memory, 20, &5_u32.to_ne_bytes());
}

/// A block of three frames of 60 bytes.
fn block() -> Vec<u8> {
    let mut block = vec![0; 1024];
    put(&mut block, 8, &libc::TP_STATUS_USER.to_ne_bytes());
    put(&mut block, 12, &3_u32.to_ne_bytes());
    put(&mut block, 16, &u32::try_from(FIRST).unwrap().to_ne_bytes());
    for at in [FIRST, FIRST + STEP, FIRST + 2 * STEP] {
        put(&mut block, at, &u32::try_from(STEP).unwrap().to_ne_bytes());
        v3_header(&mut block[at..], 60);
    }
    block
}

/// Three slots with a frame of 60 bytes each.
fn slots() -> Vec<u8> {
    let mut slots = vec![0; 3 * SLOT];
    slots.chunks_exact_mut(SLOT).for_each(|slot| v2_slot(slot, 60));
    slots
}

fn walked_block(block: &mut [u8]) -> (Vec<RxDescriptor>, RxStats) {
    walked(RingVersion::V3, block, 0)
}

fn walked_slots(slots: &mut [u8]) -> (Vec<RxDescriptor>, RxStats) {
    walked(RingVersion::V2, slots, SLOT)
}

fn places(frames: &[RxDescriptor]) -> Vec<(usize, usize)> {
    frames.iter().map(|frame| (frame.offset, frame.len)).collect()
}

#[test]
fn frames_are_found_where_the_kernel_put_them() {
    let (frames, stats) = walked_block(&mut block());
    let at = |index: usize| (FIRST + index * STEP + MAC, 60);
    assert_eq!(places(&frames), [at(0), at(1), at(2)]);
    assert_eq!(stats, RxStats::default());
    let (frames, stats) = walked_slots(&mut slots());
    let at = |index: usize| (index * SLOT + MAC, 60);
    assert_eq!(places(&frames), [at(0), at(1), at(2)]);
    assert_eq!(stats, RxStats::default());
}

#[test]
fn tags_times_and_types_are_told() {
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
    let tag = VlanTag { tpid: 0x88a8, tci: 0x2007 };
    let status = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
    let check = |frames: &[RxDescriptor]| {
        let meta = frames[0].meta;
        assert_eq!((meta.vlan, meta.packet_type), (Some(tag), PacketType::OtherHost));
        assert_eq!((meta.timestamp, meta.original_len), (Some(time), 60));
        assert_eq!((meta.checksum, frames[1].meta.vlan), (RxChecksum::Unverified, None));
        assert_eq!(frames.len(), 2, "our own host's frame is none");
    };
    let mut slots = slots();
    put(&mut slots, 0, &(status | libc::TP_STATUS_USER).to_ne_bytes());
    put(&mut slots, 24, &tag.tci.to_ne_bytes());
    put(&mut slots, 26, &tag.tpid.to_ne_bytes());
    // sll_pkttype of a sockaddr_ll behind 32 bytes of header.
    slots[42] = libc::PACKET_OTHERHOST;
    slots[2 * SLOT + 42] = libc::PACKET_OUTGOING;
    let (frames, stats) = walked_slots(&mut slots);
    check(&frames);
    assert_eq!(stats, RxStats { outgoing: 1, ..RxStats::default() });
    let mut block = block();
    put(&mut block, FIRST + 20, &status.to_ne_bytes());
    put(&mut block, FIRST + 32, &u32::from(tag.tci).to_ne_bytes());
    put(&mut block, FIRST + 36, &tag.tpid.to_ne_bytes());
    block[FIRST + 58] = libc::PACKET_OTHERHOST;
    block[FIRST + 2 * STEP + 58] = libc::PACKET_OUTGOING;
    let (frames, stats) = walked_block(&mut block);
    check(&frames);
    assert_eq!(stats, RxStats { outgoing: 1, ..RxStats::default() });
}

#[test]
fn a_field_that_makes_no_sense_ends_a_blocks_walk_and_is_counted() {
    let second = FIRST + STEP;
    let cases: [(usize, &[u8], usize); 10] = [
        (12, &9_u32.to_ne_bytes(), 3),             // more frames than there are
        (12, &u32::MAX.to_ne_bytes(), 3),          // and many more
        (16, &0_u32.to_ne_bytes(), 0),             // the first in the descriptor
        (16, &u32::MAX.to_ne_bytes(), 0),          // the first past the end
        (FIRST, &0_u32.to_ne_bytes(), 1),          // the next is the same
        (FIRST, &100_u32.to_ne_bytes(), 1),        // the next overlaps
        (FIRST, &u32::MAX.to_ne_bytes(), 1),       // the next past the end, or before
        (second + 12, &4096_u32.to_ne_bytes(), 1), // longer than the block
        (second + 24, &77_u16.to_ne_bytes(), 1),   // vnet header in the address
        (second + 24, &u16::MAX.to_ne_bytes(), 1), // data past the end
    ];
    for (at, bytes, good) in cases {
        let mut block = block();
        put(&mut block, at, bytes);
        let (frames, stats) = walked_block(&mut block);
        assert_eq!((frames.len(), stats.malformed), (good, 1), "{bytes:?} at {at}");
    }
}

#[test]
fn a_field_that_makes_no_sense_costs_one_slot_and_is_counted() {
    let cases: [(usize, &[u8]); 7] = [
        (8, &u32::MAX.to_ne_bytes()),                     // longer than memory
        (8, &u32::try_from(SLOT).unwrap().to_ne_bytes()), // into the next slot
        (12, &0_u16.to_ne_bytes()),                       // before the slot
        (12, &61_u16.to_ne_bytes()),                      // vnet header in the address
        (12, &u16::MAX.to_ne_bytes()),                    // past the end
        (MAC - VNET, &[1, 0, 0, 0, 0, 0, 99, 0, 0, 0]),   // a checksum past the frame
        (8, &0_u32.to_ne_bytes()),                        // cut off to nothing
    ];
    for (index, (at, bytes)) in cases.into_iter().enumerate() {
        let mut slots = slots();
        put(&mut slots, SLOT + at, bytes);
        let (frames, stats) = walked_slots(&mut slots);
        assert_eq!(places(&frames), [(MAC, 60), (2 * SLOT + MAC, 60)], "{bytes:?} at {at}");
        let cut = u64::from(index == 6);
        assert_eq!((stats.malformed, stats.truncated), (1 - cut, cut), "{bytes:?} at {at}");
    }
    // Half a slot is none, and a slot that is shorter than a header holds nothing.
    assert_eq!(walked(RingVersion::V2, &mut slots()[..SLOT * 3 / 2], SLOT).0.len(), 1);
    let (frames, stats) = walked(RingVersion::V2, &mut slots()[..64], 16);
    assert_eq!((frames.len(), stats.malformed), (0, 4));
}

#[test]
fn a_frame_that_was_cut_off_is_counted_and_not_delivered() {
    let mut block = block();
    put(&mut block, FIRST + STEP + 16, &61_u32.to_ne_bytes());
    let (frames, stats) = walked_block(&mut block);
    assert_eq!((frames.len(), stats.malformed, stats.truncated), (2, 0, 1));
    let mut slots = slots();
    put(&mut slots, SLOT + 4, &61_u32.to_ne_bytes());
    let (frames, stats) = walked_slots(&mut slots);
    assert_eq!((frames.len(), stats.malformed, stats.truncated), (2, 0, 1));
}

#[test]
fn the_mark_of_losses_is_seen() {
    let losing = libc::TP_STATUS_USER | libc::TP_STATUS_LOSING;
    let (mut inlet, mut frames) = (Inlet::new(port()), Vec::new());
    let mut slots = slots();
    assert!(!walk::slots(&slots, SLOT, &mut inlet, &mut frames));
    put(&mut slots, SLOT, &losing.to_ne_bytes());
    assert!(walk::slots(&slots, SLOT, &mut inlet, &mut frames));
    let mut block = block();
    assert!(!walk::block(&block, &mut inlet, &mut frames));
    put(&mut block, 8, &losing.to_ne_bytes());
    assert!(walk::block(&block, &mut inlet, &mut frames));
}

proptest! {
    #[test]
    fn no_memory_makes_it_panic_or_hand_out_a_byte_twice(
        changes in prop::collection::vec((0_usize..640, any::<u8>()), 1..20),
    ) {
        let (mut block, mut slots) = (block(), slots());
        for (at, byte) in changes {
            block[at] = byte;
            slots[at] = byte;
        }
        // A count of billions ends at the first header that makes no sense.
        walked_block(&mut block);
        walked_slots(&mut slots);
    }

    #[test]
    fn nor_does_noise(mut noise in prop::collection::vec(any::<u8>(), 0..600), slot in 1_usize..700) {
        walked_block(&mut noise);
        walked(RingVersion::V2, &mut noise, slot);
    }

    /// A whole queue over a ring of few slots, under any schedule of a kernel that writes frames and
    /// a reader that takes, reads and gives back: what was written comes, once and in order.
    #[test]
    fn any_schedule_delivers_what_was_written(
        v3: bool,
        schedule in prop::collection::vec(0_u8..4, 1..60),
    ) {
        let version = if v3 { RingVersion::V3 } else { RingVersion::V2 };
        let mut kernel = Kernel::new(version);
        for step in schedule {
            match step {
                0 | 1 => kernel.write(),
                2 => kernel.queue.release(),
                _ => kernel.read(),
            }
        }
        // As often as there are blocks.
        for _ in 0..Kernel::SLOTS {
            kernel.read();
        }
        prop_assert!(kernel.written.is_empty(), "{:?}", kernel.written);
    }
}

/// A queue, and the kernel's side of its ring.
struct Kernel {
    queue: PacketMmap,
    head: usize,
    serial: u8,
    /// Serial numbers of frames that have not been delivered.
    written: VecDeque<u8>,
}

impl Kernel {
    const SLOTS: usize = 5;

    fn new(version: RingVersion) -> Self {
        let page = u32::try_from(crate::sys::ring::page_size()).unwrap();
        let geometry = Geometry { version, slot_len: page, slots: 5, retire_millis: 1 };
        let queue = PacketMmap::new(port(), Ring::anonymous(geometry));
        Self { queue, head: 0, serial: 0, written: VecDeque::new() }
    }

    /// Hands over the next slot with one frame (V2) or three (V3), if it is the kernel's.
    fn write(&mut self) {
        if !self.queue.ring.is_kernels(self.head) {
            return;
        }
        let v3 = self.queue.ring.geometry().version == RingVersion::V3;
        let (mut bytes, step) = if v3 { (block(), STEP) } else { (slots(), SLOT) };
        bytes.truncate(if v3 { 1024 } else { SLOT });
        for index in 0..if v3 { 3 } else { 1 } {
            let at = if v3 { FIRST } else { 0 } + index * step + MAC;
            bytes[at..at + 60].fill(self.serial);
            self.written.push_back(self.serial);
            self.serial = self.serial.wrapping_add(1);
        }
        self.queue.ring.put(self.head, &bytes);
        self.head = (self.head + 1) % Self::SLOTS;
    }

    fn read(&mut self) {
        let Ok(Fill::Frames(count)) = self.queue.fill() else { return };
        assert_eq!(self.queue.batch().len(), count);
        for mut frame in self.queue.batch() {
            let serial = self.written.pop_front().expect("a frame that was written");
            assert!(frame.bytes().iter().all(|byte| *byte == serial) && frame.bytes().len() == 60);
            // As a stack that encrypts in place does.
            frame.bytes_mut().fill(0xee);
        }
    }
}
