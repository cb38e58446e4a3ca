use etherparse::PacketBuilder;

use super::*;
use crate::offload::checksum::{Verdict, complete, ipv4_header_checksum, seed, verify_transport};
use crate::offload::segment::{SegmentChecksum, SuperFrame};
use crate::offload::vnet::{ChecksumField, GsoKind};

/// Bytes of link header: anything, for it is only compared and copied.
const LINK: [u8; 14] = [0xee; 14];
const UNVERIFIED: RxChecksum = RxChecksum::Unverified;

/// A frame that left, owned.
#[derive(Clone, Debug, PartialEq)]
struct Left {
    bytes: Vec<u8>,
    checksum: RxChecksum,
    gso: Option<Gso>,
}

/// Where the frames below have IPv4's id and TCP's flags, over IPv4 and over IPv6.
const ID: usize = 18;
const FLAGS: usize = 47;
const FLAGS_V6: usize = 67;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Segment number `index` of a flow whose segments have 100 bytes, but for the last. Both its id
/// and its sequence number wrap.
fn tcp_v4(port: u16, index: u16, len: usize) -> Vec<u8> {
    let mut frame = LINK.to_vec();
    PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(port, 80, 0xffff_ffc0_u32.wrapping_add(100 * u32::from(index)), 512)
        .ack(7)
        .write(&mut frame, &vec![0x61; len])
        .unwrap();
    let [high, low] = 0xfffe_u16.wrapping_add(index).to_be_bytes();
    changed(&frame, &[(ID, high), (ID + 1, low)])
}

fn tcp_v6(index: u32, len: usize) -> Vec<u8> {
    let mut frame = LINK.to_vec();
    PacketBuilder::ipv6([1; 16], [2; 16], 64)
        .tcp(1000, 80, 100 * index, 512)
        .ack(7)
        .write(&mut frame, &vec![0x62; len])
        .unwrap();
    frame
}

fn udp_v6(len: usize) -> Vec<u8> {
    let mut frame = LINK.to_vec();
    PacketBuilder::ipv6([1; 16], [2; 16], 64)
        .udp(1000, 53)
        .write(&mut frame, &vec![0x63; len])
        .unwrap();
    frame
}

/// The frame with some bytes changed and its checksums right again.
fn changed(frame: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for (at, value) in changes {
        frame[*at] = *value;
    }
    if frame[14] >> 4 == 4 {
        let end = 14 + usize::from(frame[14] & 0xf) * 4;
        let checksum = ipv4_header_checksum(&frame[14..end]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    if let Some(field) = seed(&mut frame, 14) {
        complete(&mut frame, field).unwrap();
    }
    frame
}

/// What leaves when the frames come in one burst.
fn coalesce<'a>(
    frames: impl IntoIterator<Item = &'a Vec<u8>>,
    flows: usize,
    max_frame_len: usize,
) -> Vec<Left> {
    let frames = frames.into_iter().map(|frame| FrameView::new(frame, UNVERIFIED));
    coalesce_views(frames, flows, max_frame_len)
}

fn coalesce_views<'a>(
    frames: impl IntoIterator<Item = FrameView<'a>>,
    flows: usize,
    max_frame_len: usize,
) -> Vec<Left> {
    let mut coalescer = Coalescer::new(vec![0xaa; flows * max_frame_len], 14, max_frame_len);
    assert_eq!(coalescer.flows(), flows.min(MAX_FLOWS));
    let mut left = Vec::new();
    let mut sink = |frame: FrameView<'_>| {
        let FrameView { bytes, checksum, gso } = frame;
        left.push(Left { bytes: bytes.to_vec(), checksum, gso });
    };
    for frame in frames {
        coalescer.push(frame, &mut sink);
    }
    coalescer.flush(&mut sink);
    assert!(coalescer.is_empty());
    left
}

/// What cutting gives back.
fn cut(left: &[Left]) -> Vec<Vec<u8>> {
    let cut = |left: &Left| match left.gso {
        None => vec![left.bytes.clone()],
        Some(gso) => {
            let frame = SuperFrame::parse(&left.bytes, 14, gso).unwrap();
            assert_eq!(left.checksum, RxChecksum::Partial(frame.checksum_field()));
            assert_eq!(usize::from(gso.header_len), frame.headers_len());
            let mut buffer = vec![0xaa; frame.max_segment_len()];
            let segments = frame.segments(SegmentChecksum::Complete).map(|segment| {
                let len = segment.write(&mut buffer).unwrap();
                buffer[..len].to_vec()
            });
            segments.collect()
        }
    };
    left.iter().flat_map(cut).collect()
}

fn lens(left: &[Left]) -> Vec<usize> {
    left.iter().map(|left| left.bytes.len()).collect()
}

#[test]
fn segments_become_a_super_frame() {
    let first = changed(&tcp_v4(1000, 0, 100), &[(FLAGS, ACK | CWR)]);
    let last = changed(&tcp_v4(1000, 3, 40), &[(FLAGS, ACK | PSH | FIN)]);
    let frames = [first, tcp_v4(1000, 1, 100), tcp_v4(1000, 2, 100), last];
    let left = coalesce(&frames, 1, 1000);
    let gso = Gso { kind: GsoKind::TcpV4, size: 100, header_len: 54, ecn: true };
    assert_eq!(left[0].gso, Some(gso));
    assert_eq!(left[0].bytes[FLAGS], ACK | PSH | FIN | CWR);
    assert_eq!(left[0].bytes[16..18], 380_u16.to_be_bytes());
    assert_eq!(lens(&left), [54 + 340]);
    assert_eq!(cut(&left), frames);
    let RxChecksum::Partial(field) = left[0].checksum else { panic!("{:?}", left[0].checksum) };
    let mut completed = left[0].bytes.clone();
    complete(&mut completed, field).unwrap();
    assert_eq!(verify_transport(&completed[14..]), Verdict::Correct);
    assert_eq!(ipv4_header_checksum(&completed[14..34]).to_be_bytes(), completed[24..26]);
}

#[test]
fn ipv6_and_udp_as_well() {
    let tcp = [tcp_v6(0, 100), tcp_v6(1, 100), tcp_v6(2, 1)];
    let udp = [udp_v6(50), udp_v6(50), udp_v6(50), udp_v6(7)];
    let cases = [(&tcp[..], GsoKind::TcpV6, 100, 74), (&udp[..], GsoKind::UdpSegments, 50, 62)];
    for (frames, kind, size, header_len) in cases {
        let left = coalesce(frames, 1, 1000);
        assert_eq!(left.len(), 1, "{kind:?}");
        assert_eq!(left[0].gso, Some(Gso { kind, size, header_len, ecn: false }));
        assert_eq!(cut(&left), frames, "{kind:?}");
    }
}

#[test]
fn what_does_not_follow_begins_anew() {
    let next = tcp_v4(1000, 1, 100);
    let cases: [(&str, &[(usize, u8)]); 15] = [
        ("link header", &[(3, 0)]),
        ("type of service", &[(15, 1)]),
        ("an id that stands still", &[(ID, 0xff), (ID + 1, 0xfe)]),
        ("an id two on", &[(ID, 0), (ID + 1, 0)]),
        ("do not fragment", &[(20, 0)]),
        ("time to live", &[(22, 63)]),
        ("a gap", &[(41, 0x25)]),
        ("from long ago", &[(38, 0x7f)]),
        ("acknowledgement", &[(45, 8)]),
        ("a reserved bit", &[(46, 0x51)]),
        ("ECE", &[(FLAGS, ACK | 0x40)]),
        ("CWR", &[(FLAGS, ACK | CWR)]),
        ("no ACK", &[(FLAGS, 0)]),
        ("window", &[(48, 3)]),
        ("urgent pointer", &[(53, 1)]),
    ];
    assert_eq!(coalesce(&[tcp_v4(1000, 0, 100), next.clone()], 1, 1000).len(), 1);
    for (name, changes) in cases {
        let frames = [tcp_v4(1000, 0, 100), changed(&next, changes)];
        let left = coalesce(&frames, 1, 1000);
        assert_eq!(cut(&left), frames, "{name}");
        assert!(left.iter().all(|left| left.gso.is_none()), "{name}");
    }
}

#[test]
fn what_is_no_segment_of_a_super_frame_passes() {
    let tcp = tcp_v4(1000, 1, 100);
    let mut wrong = tcp.clone();
    wrong[60] ^= 1;
    let mut wrong_header = tcp.clone();
    wrong_header[24] ^= 1;
    let cases = [
        ("a wrong checksum", wrong),
        ("a wrong IP checksum", wrong_header),
        ("padding", [&tcp[..], &[0]].concat()),
        ("cut short", tcp[..153].to_vec()),
        ("cut in its header", tcp[..50].to_vec()),
        ("an acknowledgement", tcp_v4(1000, 1, 0)),
        ("SYN", changed(&tcp, &[(FLAGS, ACK | 0x02)])),
        ("RST", changed(&tcp, &[(FLAGS, ACK | 0x04)])),
        ("URG", changed(&tcp, &[(FLAGS, ACK | 0x20)])),
        ("a fragment", changed(&tcp, &[(20, 0x20)])),
        ("SCTP", changed(&tcp, &[(23, 132)])),
        ("a runt", LINK[..10].to_vec()),
        ("empty", vec![]),
        ("not IP", [&LINK[..], &[0; 46]].concat()),
    ];
    for (name, frame) in cases {
        let mut coalescer = Coalescer::new(vec![0; 1000], 14, 1000);
        let mut left = Vec::new();
        coalescer.push(FrameView::new(&frame, UNVERIFIED), |frame| left.push(frame.bytes.to_vec()));
        assert!(coalescer.is_empty(), "{name}");
        assert_eq!(left, [frame], "{name}");
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_alone() {
    let datagram = |id: u8| {
        let mut frame = LINK.to_vec();
        let ends = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1000, 80);
        ends.write(&mut frame, &[1; 100]).unwrap();
        changed(&frame, &[(ID + 1, id)])
    };
    let mut frames = [datagram(1), datagram(2)];
    assert_eq!(coalesce(&frames, 1, 1000).len(), 1);
    for frame in &mut frames {
        frame[40..42].fill(0);
    }
    assert_eq!(cut(&coalesce(&frames, 1, 1000)), frames);
    for checksum in [UNVERIFIED, RxChecksum::Valid] {
        let views = frames.iter().map(|frame| FrameView::new(frame, checksum));
        assert_eq!(coalesce_views(views, 1, 1000).len(), 2, "{checksum:?}");
    }
}

#[test]
fn extension_headers_that_a_kernel_would_not_copy() {
    // Behind a header of 8 bytes: hop-by-hop, destination options, a segments-left of 0, then an
    // atomic fragment, a source route with hops to go, and a mobility header.
    for (extension, together) in
        [(0, true), (60, true), (43, true), (44, false), (43_u8, false), (135, false)]
    {
        let mut frames = [udp_v6(50), udp_v6(50)];
        for frame in &mut frames {
            let left = u8::from(extension == 43 && !together);
            let payload_len = u16::try_from(frame.len() - 54 + 8).unwrap();
            frame.splice(54..54, [17, 0, 0, left, 0, 0, 0, 0]);
            frame[18..20].copy_from_slice(&payload_len.to_be_bytes());
            frame[20] = extension;
        }
        let left = coalesce(&frames, 1, 1000);
        assert_eq!(left.len() == 1, together, "{extension}");
        assert_eq!(cut(&left), frames, "{extension}");
    }
}

#[test]
fn what_ends_a_super_frame_lets_it_leave_at_once() {
    for (name, last) in [
        ("short", tcp_v6(2, 99)),
        ("PSH", changed(&tcp_v6(2, 100), &[(FLAGS_V6, ACK | PSH)])),
        ("FIN", changed(&tcp_v6(2, 100), &[(FLAGS_V6, ACK | FIN)])),
    ] {
        let mut coalescer = Coalescer::new(vec![0; 1000], 14, 1000);
        let mut left = 0;
        for (frame, expected) in [(tcp_v6(0, 100), 0), (tcp_v6(1, 100), 0), (last.clone(), 1)] {
            coalescer.push(FrameView::new(&frame, UNVERIFIED), |_| left += 1);
            assert_eq!(left, expected, "{name}");
        }
        assert!(coalescer.is_empty(), "{name}");
        // Alone, PSH and FIN are not held back at all; what is merely short may be followed.
        coalescer.push(FrameView::new(&last, UNVERIFIED), |_| left += 1);
        assert_eq!(coalescer.is_empty(), name != "short", "{name}");
    }
}

#[test]
fn longer_than_the_first_begins_anew() {
    let frames = [udp_v6(50), udp_v6(51), udp_v6(51)];
    let left = coalesce(&frames, 1, 1000);
    assert_eq!(lens(&left), [62 + 50, 62 + 102]);
    assert_eq!(cut(&left), frames);
}

#[test]
fn super_frames_are_bounded() {
    // By the length that was asked for, by what IP can say, and by the number of datagrams.
    let cases = [
        (vec![udp_v6(50); 5], 62 + 100, vec![162, 162, 112]),
        (vec![udp_v6(50); 5], 62 + 149, vec![162, 162, 112]),
        (vec![udp_v6(1400); 60], 70_000, vec![62 + 46 * 1400, 62 + 14 * 1400]),
        (vec![udp_v6(1); 300], 70_000, vec![62 + 128, 62 + 128, 62 + 44]),
        (vec![udp_v6(50); 2], 62 + 49, vec![112, 112]),
    ];
    for (frames, max_frame_len, expected) in cases {
        let left = coalesce(&frames, 1, max_frame_len);
        assert_eq!(lens(&left), expected, "{max_frame_len}");
        assert_eq!(cut(&left), frames);
    }
}

#[test]
fn flows_are_kept_apart_and_in_order() {
    let frame = |port: u16, index: u16| tcp_v4(port, index, 100);
    let acknowledgement = tcp_v4(2, 2, 0);
    let frames = [
        [frame(1, 0), frame(2, 0), frame(1, 1), frame(2, 1)],
        [acknowledgement.clone(), frame(1, 2), frame(2, 2), frame(1, 3)],
    ];
    let left = coalesce(frames.iter().flatten(), 2, 1000);
    // Flow 2 leaves first, for its acknowledgement.
    assert_eq!(lens(&left), [54 + 200, 54, 54 + 400, 54 + 100]);
    assert_eq!(left[1].bytes, acknowledgement);
    let expected = [
        frame(2, 0),
        frame(2, 1),
        acknowledgement,
        frame(1, 0),
        frame(1, 1),
        frame(1, 2),
        frame(1, 3),
        frame(2, 2),
    ];
    assert_eq!(cut(&left), expected);
}

#[test]
fn the_oldest_makes_room() {
    let frames = [(1, 0), (2, 0), (1, 1), (3, 0), (2, 1)];
    let frames = frames.map(|(port, index)| tcp_v4(port, index, 100));
    let ends = |left: &[Left]| {
        left.iter().map(|left| (left.bytes[35], left.bytes.len() - 54)).collect::<Vec<_>>()
    };
    assert_eq!(ends(&coalesce(&frames, 2, 1000)), [(1, 200), (2, 200), (3, 100)]);
    assert_eq!(ends(&coalesce(&frames, 1, 1000)).len(), 5);
    // More places than there can be.
    let many: Vec<_> = (1..=10).map(|port| tcp_v4(port, 0, 100)).collect();
    assert_eq!(cut(&coalesce(&many, 10, 1000)), many);
}

#[test]
fn a_fragment_lets_its_ends_leave_first() {
    let fragment = changed(&tcp_v4(9, 0, 100), &[(20, 0x20)]);
    let other = changed(&tcp_v4(3, 0, 100), &[(33, 9)]);
    let frames = [tcp_v4(1, 0, 100), other.clone(), tcp_v4(2, 0, 100), fragment.clone()];
    let left = coalesce(&frames, 4, 1000);
    let bytes: Vec<_> = left.into_iter().map(|left| left.bytes).collect();
    assert_eq!(bytes, [tcp_v4(1, 0, 100), tcp_v4(2, 0, 100), fragment, other]);
}

#[test]
fn checksums_are_all_right_or_all_partial() {
    let complete = [tcp_v6(0, 100), tcp_v6(1, 100)];
    let mut partial = complete.clone();
    let field = seed(&mut partial[0], 14).unwrap();
    assert_eq!(seed(&mut partial[1], 14), Some(field));
    let mut wrong = complete[1].clone();
    wrong[80] ^= 1;
    let elsewhere = ChecksumField { start: 50, offset: 20 };
    let (valid, partial_at) = (RxChecksum::Valid, RxChecksum::Partial);
    let cases = [
        ("nobody looked", &complete[0], UNVERIFIED, &complete[1], UNVERIFIED, true),
        ("one verified", &complete[0], UNVERIFIED, &complete[1], valid, true),
        ("partial", &partial[0], partial_at(field), &partial[1], partial_at(field), true),
        ("mixed", &complete[0], UNVERIFIED, &partial[1], partial_at(field), false),
        ("wrong", &complete[0], UNVERIFIED, &wrong, UNVERIFIED, false),
        ("wrong and believed", &complete[0], UNVERIFIED, &wrong, valid, true),
        ("not the seed", &partial[0], partial_at(field), &wrong, partial_at(field), false),
        ("elsewhere", &partial[0], partial_at(field), &partial[1], partial_at(elsewhere), false),
    ];
    for (name, first, first_checksum, second, second_checksum, together) in cases {
        let frames =
            [FrameView::new(first, first_checksum), FrameView::new(second, second_checksum)];
        let left = coalesce_views(frames, 1, 1000);
        assert_eq!(left.len() == 1, together, "{name}");
        if together {
            assert_eq!(left[0].checksum, partial_at(field), "{name}");
        } else {
            // Alone, each leaves as it came.
            let as_it_came = |(left, frame): (&Left, FrameView<'_>)| {
                left.bytes == frame.bytes && left.checksum == frame.checksum
            };
            assert!(left.iter().zip(frames).all(as_it_came), "{name}");
        }
    }
}

#[test]
fn a_checksum_of_zero_is_the_only_form_of_it() {
    // The last word of the payload takes up what the checksum was.
    let mut zero = tcp_v6(1, 100);
    let held = u16::from_be_bytes([zero[70], zero[71]]);
    let word = u16::from_be_bytes([zero[172], zero[173]]);
    let (word, carry) = word.overflowing_add(held);
    zero[172..].copy_from_slice(&(word + u16::from(carry)).to_be_bytes());
    for (form, together) in [(0x00, true), (0xff, false)] {
        zero[70..72].fill(form);
        assert_eq!(verify_transport(&zero[14..]), Verdict::Correct);
        let frames = [tcp_v6(0, 100), zero.clone()];
        let left = coalesce(&frames, 1, 1000);
        assert_eq!(left.len() == 1, together, "{form}");
        assert_eq!(cut(&left), frames, "{form}");
    }
}

#[test]
fn a_super_frame_passes_behind_its_flow() {
    let whole = tcp_v6(1, 500);
    let gso = Gso { kind: GsoKind::TcpV6, size: 100, header_len: 74, ecn: false };
    let super_frame = FrameView { gso: Some(gso), ..FrameView::new(&whole, RxChecksum::Valid) };
    let first = tcp_v6(0, 100);
    let left = coalesce_views([FrameView::new(&first, UNVERIFIED), super_frame], 1, 1000);
    assert_eq!(lens(&left), [174, 574]);
    assert_eq!((left[1].gso, left[1].checksum), (Some(gso), RxChecksum::Valid));
}

#[test]
fn without_memory_everything_passes() {
    let frames = [udp_v6(50), udp_v6(50), tcp_v6(0, 10)];
    for (memory, max_frame_len) in [(0, 1000), (999, 1000), (1000, 0), (0, 0)] {
        let mut coalescer = Coalescer::new(vec![0; memory], 14, max_frame_len);
        assert_eq!(coalescer.flows(), 0);
        let mut left = Vec::new();
        for frame in &frames {
            let frame = FrameView::new(frame, UNVERIFIED);
            coalescer.push(frame, |frame| left.push(frame.bytes.to_vec()));
            assert!(coalescer.is_empty());
        }
        assert_eq!(left, frames);
    }
}
