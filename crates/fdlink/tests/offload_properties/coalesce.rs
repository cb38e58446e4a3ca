//! What holds of coalescing for any burst: cutting what left gives back what came in, byte for byte
//! and flow by flow, and what was cut comes together again.

use super::packets::{Network, Packet, Transport, packet_of, tcp, udp};
use fdlink::offload::checksum::seed;
use fdlink::offload::coalesce::{Coalescer, FrameView, UDP_MAX_SEGMENTS};
use fdlink::offload::segment::{SegmentChecksum, SuperFrame};
use fdlink::offload::vnet::{ChecksumField, Gso, RxChecksum};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::VecDeque;

/// Length of a link header in these tests.
const LINK: usize = 14;

/// One flow's frames, in order, with the state of each one's checksum.
type Frames = VecDeque<(Vec<u8>, RxChecksum)>;

/// What comes between the segments of a flow.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    /// The segment is left out.
    Lost,
    /// The segment comes twice.
    Twice,
    /// A byte of it is not what it was.
    Damaged(u8),
    /// Its flags, or its type of service, are others; checksums are not mended.
    Marked(u8),
    /// Bytes are missing at its end.
    Short,
    /// It was verified, or said to be.
    Verified,
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        Just(Disturbance::Lost),
        Just(Disturbance::Twice),
        any::<u8>().prop_map(Disturbance::Damaged),
        any::<u8>().prop_map(Disturbance::Marked),
        Just(Disturbance::Short),
        Just(Disturbance::Verified),
    ]
}

/// A super-frame and the size to cut it to: several segments, as many as a kernel would take.
fn to_cut() -> impl Strategy<Value = (Packet, u16)> {
    (packet_of(prop_oneof![tcp(), udp()], 2..9000), any::<Index>()).prop_map(|(packet, size)| {
        let len = packet.payload.len();
        let least = len.div_ceil(UDP_MAX_SEGMENTS);
        let size = least + size.index(len - least);
        (packet, u16::try_from(size).unwrap())
    })
}

/// The frame behind a link header, and how it is to be cut.
fn super_frame(packet: &Packet, size: u16) -> (Vec<u8>, Gso) {
    let frame = [&[0xee; LINK][..], &packet.bytes()].concat();
    let header_len = u16::try_from(frame.len() - packet.payload.len()).unwrap();
    let ecn = matches!(packet.transport, Transport::Tcp { flags, .. } if flags & 0x80 != 0);
    (frame, Gso { kind: packet.gso_kind().unwrap(), size, header_len, ecn })
}

fn cut(frame: &[u8], gso: Gso, checksum: SegmentChecksum) -> (Frames, ChecksumField) {
    let frame = SuperFrame::parse(frame, LINK, gso).unwrap();
    let field = frame.checksum_field();
    let state = match checksum {
        SegmentChecksum::Complete => RxChecksum::Unverified,
        SegmentChecksum::Partial => RxChecksum::Partial(field),
    };
    let mut buffer = vec![0xaa; frame.max_segment_len()];
    let written = frame.segments(checksum).map(|segment| {
        let len = segment.write(&mut buffer).unwrap();
        (buffer[..len].to_vec(), state)
    });
    (written.collect(), field)
}

fn disturb(frames: &mut Frames, at: Index, disturbance: Disturbance) {
    let at = at.index(frames.len());
    let (frame, checksum) = &mut frames[at];
    match disturbance {
        Disturbance::Lost => {
            frames.remove(at);
        }
        Disturbance::Twice => {
            let again = frames[at].clone();
            frames.insert(at, again);
        }
        // The last byte is payload, whatever the headers are.
        Disturbance::Damaged(value) => *frame.last_mut().unwrap() = value,
        Disturbance::Marked(value) => frame[LINK + 1] ^= value & 0x0f,
        Disturbance::Short => {
            frame.pop();
        }
        Disturbance::Verified => {
            if *checksum == RxChecksum::Unverified {
                *checksum = RxChecksum::Valid;
            }
        }
    }
}

/// Makes the flow one that no other of the test is.
fn numbered(packet: &mut Packet, number: u8) {
    match &mut packet.network {
        Network::V4 { source, .. } => source[0] = number,
        Network::V6 { source, .. } => source[0] = number,
    }
}

proptest! {
    #[test]
    fn cutting_gives_back_what_came_in(
        mut flows in vec((to_cut(), any::<bool>(), vec((any::<Index>(), disturbance()), 0..4)), 1..6),
        order in vec(any::<Index>(), 0..600),
        places in 0_usize..5,
        max_frame_len in prop_oneof![200_usize..12_000, Just(65_376)],
    ) {
        let mut incoming: Vec<Frames> = Vec::new();
        for (number, ((packet, size), partial, disturbances)) in (0..).zip(&mut flows) {
            numbered(packet, number);
            let (frame, gso) = super_frame(packet, *size);
            let checksum =
                if *partial { SegmentChecksum::Partial } else { SegmentChecksum::Complete };
            let (whole, _) = cut(&frame, gso, checksum);
            let mut frames = whole.clone();
            for (at, disturbance) in disturbances.drain(..) {
                if !frames.is_empty() {
                    disturb(&mut frames, at, disturbance);
                }
            }
            // Who says that a damaged frame is valid is believed, and it does not come back.
            for (frame, checksum) in &mut frames {
                if *checksum == RxChecksum::Valid && whole.iter().all(|(whole, _)| whole != frame) {
                    *checksum = RxChecksum::Unverified;
                }
            }
            incoming.push(frames);
        }
        let mut outgoing = incoming.clone();

        let mut left = Vec::new();
        let mut sink = |frame: FrameView<'_>| {
            assert!(frame.gso.is_none() || frame.bytes.len() <= max_frame_len);
            match (frame.gso, frame.checksum) {
                (None, checksum) => left.push((frame.bytes.to_vec(), checksum)),
                (Some(gso), RxChecksum::Partial(field)) => {
                    // What came in partial comes back so; nothing in the super-frame says which.
                    let complete = cut(frame.bytes, gso, SegmentChecksum::Complete);
                    assert_eq!(complete.1, field);
                    let partial = cut(frame.bytes, gso, SegmentChecksum::Partial).0;
                    let first = &partial[0].0;
                    let was_partial =
                        incoming.iter().flatten().any(|(frame, _)| frame == first);
                    left.extend(if was_partial { partial } else { complete.0 });
                }
                (Some(_), checksum) => panic!("a super-frame whose checksum is {checksum:?}"),
            }
        };
        let mut coalescer = Coalescer::new(vec![0; places * max_frame_len], LINK, max_frame_len);
        let mut order = order.into_iter();
        while outgoing.iter().any(|frames| !frames.is_empty()) {
            outgoing.retain(|frames| !frames.is_empty());
            let flow = order.next().map_or(0, |flow| flow.index(outgoing.len()));
            let (frame, checksum) = outgoing[flow].pop_front().unwrap();
            coalescer.push(FrameView::new(&frame, checksum), &mut sink);
        }
        coalescer.flush(&mut sink);

        // Every frame that left is the next of a flow, and none is missing.
        let mut expected = incoming;
        for (frame, _) in left {
            let flow = expected
                .iter_mut()
                .find(|frames| frames.front().is_some_and(|(next, _)| *next == frame));
            prop_assert!(flow.is_some(), "not the next frame of any flow");
            flow.unwrap().pop_front();
        }
        prop_assert!(expected.iter().all(VecDeque::is_empty), "frames are missing");
    }

    #[test]
    fn what_was_cut_comes_together_again((packet, size) in to_cut(), partial: bool) {
        let (mut frame, gso) = super_frame(&packet, size);
        let checksum = if partial { SegmentChecksum::Partial } else { SegmentChecksum::Complete };
        let (segments, field) = cut(&frame, gso, checksum);
        prop_assert_eq!(seed(&mut frame, LINK), Some(field));
        let mut left = Vec::new();
        let mut sink = |frame: FrameView<'_>| {
            left.push((frame.bytes.to_vec(), frame.checksum, frame.gso));
        };
        let mut coalescer = Coalescer::new(vec![0; 65_550], LINK, 65_550);
        for (segment, checksum) in &segments {
            coalescer.push(FrameView::new(segment, *checksum), &mut sink);
        }
        coalescer.flush(&mut sink);
        prop_assert_eq!(left, [(frame, RxChecksum::Partial(field), Some(gso))]);
    }
}
