//! Any burst of frames, coalesced; what leaves is cut again.
//!
//! Input: number of places (modulo 5); longest frame; length of a link header (modulo 24); then a
//! program, an operation for each frame (`Program::step`).
#![no_main]

use std::collections::VecDeque;

use fdlink::offload::checksum::{Verdict, verify_transport};
use fdlink::offload::coalesce::{Coalescer, FrameView};
use fdlink::offload::segment::{SegmentChecksum, SuperFrame};
use fdlink::offload::vnet::{ChecksumField, RxChecksum};
use fdlink_fuzz::{Input, naive_checksum};
use libfuzzer_sys::fuzz_target;

/// TCP over IPv4 and IPv6, UDP over IPv4 and IPv6, between the same ends.
const FLOWS: usize = 4;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let places = usize::from(input.byte() % 5);
    let max_frame_len = usize::from(input.word());
    let link = usize::from(input.byte() % 24);
    let mut program = Program { input, link, ids: [0xfffe; FLOWS], seqs: [0xffff_ff00; FLOWS] };
    let mut coalescer = Coalescer::new(vec![0xaa; places * max_frame_len], link, max_frame_len);
    let mut expected = vec![VecDeque::new(); FLOWS];
    let mut left = Vec::new();
    while !program.input.0.is_empty() {
        let (flow, bytes, checksum) = program.step();
        let mut sink = |frame: FrameView<'_>| {
            assert!(frame.gso.is_none() || frame.bytes.len() <= max_frame_len);
            left.push((frame.bytes.to_vec(), frame.checksum, frame.gso));
        };
        coalescer.push(FrameView::new(&bytes, checksum), &mut sink);
        match flow {
            Some(flow) => expected[flow].push_back(bytes),
            // What was changed may be of any flow, so nothing is known of its order.
            None => expected.push(VecDeque::from([bytes])),
        }
    }
    coalescer.flush(|frame| left.push((frame.bytes.to_vec(), frame.checksum, frame.gso)));
    assert!(coalescer.is_empty());

    for (bytes, checksum, gso) in left {
        let Some(gso) = gso else {
            assert!(take(&mut expected, &bytes), "a frame that did not come, or not now");
            continue;
        };
        let frame = SuperFrame::parse(&bytes, link, gso).expect("what was coalesced can be cut");
        assert_eq!(checksum, RxChecksum::Partial(frame.checksum_field()));
        assert_eq!(usize::from(gso.header_len), frame.headers_len());
        // Its frames came in one way or the other; `Program::step` makes them tell.
        let came = [SegmentChecksum::Complete, SegmentChecksum::Partial]
            .into_iter()
            .find_map(|checksum| without(&expected, &frame, checksum));
        expected = came.expect("segments that did not come, or not now");
    }
    assert!(expected.iter().all(VecDeque::is_empty), "frames are missing");
});

/// Takes the frame from the flow whose next it is.
fn take(expected: &mut [VecDeque<Vec<u8>>], frame: &[u8]) -> bool {
    let flow = expected.iter_mut().find(|flow| flow.front().is_some_and(|next| next == frame));
    flow.is_some_and(|flow| flow.pop_front().is_some())
}

/// The flows without the segments of a super-frame, if each was the next of one.
fn without(
    expected: &[VecDeque<Vec<u8>>],
    frame: &SuperFrame<'_>,
    checksum: SegmentChecksum,
) -> Option<Vec<VecDeque<Vec<u8>>>> {
    let mut rest = expected.to_vec();
    let mut piece = vec![0x55; frame.max_segment_len()];
    for segment in frame.segments(checksum) {
        let len = segment.write(&mut piece).expect("the buffer holds the longest");
        if !take(&mut rest, &piece[..len]) {
            return None;
        }
    }
    Some(rest)
}

struct Program<'a> {
    input: Input<'a>,
    link: usize,
    ids: [u16; FLOWS],
    seqs: [u32; FLOWS],
}

impl Program<'_> {
    /// The next frame, its flow if that is certain, and the state of its checksum. An operation is
    /// a byte: two bits of flow, three of what is odd about the frame, one of whether it is changed
    /// before its checksums are made, two of the checksum's state; then its length and a value.
    fn step(&mut self) -> (Option<usize>, Vec<u8>, RxChecksum) {
        let operation = self.input.byte();
        let flow = usize::from(operation & 3);
        let odd = operation >> 2 & 7;
        let before_checksums = operation & 0x20 != 0;
        let len = usize::from(self.input.byte().max(2));
        let value = self.input.byte();
        if odd == 6 {
            return (None, self.input.bytes(len).to_vec(), RxChecksum::Unverified);
        }
        let flags = if odd == 3 { value } else { 0x10 };
        self.ids[flow] = self.ids[flow].wrapping_add(if odd == 4 { u16::from(value) } else { 1 });
        if odd == 5 {
            self.seqs[flow] = self.seqs[flow].wrapping_add(u32::from(value));
        }
        let partial = operation & 0x80 != 0;
        let mut frame = self.frame(flow, flags, len);
        // A frame whose checksum is partial has another payload, in two bytes at least: so it is
        // to be seen in a super-frame how its frames came in, even where one byte is changed.
        for byte in frame.iter_mut().rev().take(len).filter(|_| partial) {
            *byte ^= 0x80;
        }
        self.seqs[flow] = self.seqs[flow].wrapping_add(len as u32);
        let changed = usize::from(value) % frame.len();
        let change = if odd == 7 { self.input.byte() } else { 0 };
        if before_checksums {
            frame[changed] ^= change;
        }
        let field = self.put_checksums(&mut frame, flow, partial);
        if !before_checksums {
            frame[changed] ^= change;
        }
        let right = verify_transport(&frame[self.link..]) == Verdict::Correct;
        let checksum = match (partial, operation & 0x40 != 0) {
            (true, _) => RxChecksum::Partial(field),
            (false, true) if right => RxChecksum::Valid,
            (false, _) => RxChecksum::Unverified,
        };
        ((change == 0).then_some(flow), frame, checksum)
    }

    fn frame(&self, flow: usize, flags: u8, len: usize) -> Vec<u8> {
        let tcp = flow < 2;
        let (transport_len, protocol) = if tcp { (20 + len, 6) } else { (8 + len, 17) };
        let mut frame = vec![0xee; self.link];
        let word = |len: usize| (len as u16).to_be_bytes();
        if flow.is_multiple_of(2) {
            frame.extend([0x45, 0]);
            frame.extend(word(20 + transport_len));
            frame.extend(self.ids[flow].to_be_bytes());
            frame.extend([0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(word(transport_len));
            frame.extend([protocol, 64]);
            frame.extend([1; 16].into_iter().chain([2; 16]));
        }
        frame.extend([3, 0xe8, 0, 80]);
        if tcp {
            frame.extend(self.seqs[flow].to_be_bytes());
            frame.extend([0, 0, 0, 7, 0x50, flags, 2, 0, 0, 0, 0, 0]);
        } else {
            frame.extend(word(transport_len));
            frame.extend([0, 0]);
        }
        frame.extend((0..len).map(|at| at as u8));
        frame
    }

    /// Puts the checksums of a frame of that flow, whatever its bytes say, and gives the place of
    /// the transport's.
    fn put_checksums(&self, frame: &mut [u8], flow: usize, partial: bool) -> ChecksumField {
        let packet = &mut frame[self.link..];
        let (start, addresses) = if flow.is_multiple_of(2) { (20, 12..20) } else { (40, 8..40) };
        if start == 20 {
            packet[10..12].fill(0);
            let checksum = naive_checksum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        let (offset, protocol) = if flow < 2 { (16, 6) } else { (6, 17) };
        let (network, transport) = packet.split_at_mut(start);
        transport[offset..offset + 2].fill(0);
        let [high, low] = (transport.len() as u16).to_be_bytes();
        let pseudo_header = [&network[addresses], &[0, protocol, high, low]].concat();
        let value = match (partial, naive_checksum(&[&pseudo_header, transport])) {
            (true, _) => !naive_checksum(&[&pseudo_header]),
            (false, 0) if protocol == 17 => 0xffff,
            (false, checksum) => checksum,
        };
        transport[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
        ChecksumField { start: (self.link + start) as u16, offset: offset as u16 }
    }
}
