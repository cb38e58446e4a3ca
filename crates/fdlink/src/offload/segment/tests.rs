use etherparse::{IpHeaders, Ipv4Extensions, Ipv4Header, PacketBuilder, TcpHeader};

use super::*;
use crate::offload::checksum::{Verdict, complete, verify_transport};

/// Bytes of link header: anything, for it is only copied.
const LINK: [u8; 14] = [0xee; 14];

fn gso(kind: GsoKind, size: u16) -> Gso {
    Gso { kind, size, header_len: 0, ecn: false }
}

/// A TCP super-frame over IPv4 with every flag that is treated apart, its id about to wrap and its
/// sequence number, too.
fn tcp_v4(payload: &[u8]) -> Vec<u8> {
    let mut ip = Ipv4Header { identification: 0xffff, time_to_live: 64, ..Ipv4Header::default() };
    (ip.source, ip.destination, ip.dont_fragment) = ([10, 0, 0, 1], [10, 0, 0, 2], true);
    let mut tcp = TcpHeader::new(1000, 80, u32::MAX - 50, 512);
    (tcp.ack, tcp.psh, tcp.fin, tcp.cwr, tcp.ece) = (true, true, true, true, true);
    tcp.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]).unwrap();
    let mut frame = LINK.to_vec();
    PacketBuilder::ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()))
        .tcp_header(tcp)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn tcp_v6(payload: &[u8]) -> Vec<u8> {
    let mut frame = LINK.to_vec();
    PacketBuilder::ipv6([1; 16], [2; 16], 64)
        .tcp(1000, 80, 7, 512)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn udp_v4(payload: &[u8]) -> Vec<u8> {
    let mut frame = LINK.to_vec();
    PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, 53)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn written(frame: &SuperFrame<'_>, checksum: SegmentChecksum) -> Vec<Vec<u8>> {
    let mut buffer = vec![0xaa; frame.max_segment_len()];
    let write = |segment: Segment<'_>| {
        let len = segment.write(&mut buffer).unwrap();
        assert_eq!(len, segment.frame_len());
        buffer[..len].to_vec()
    };
    frame.segments(checksum).map(write).collect()
}

#[test]
fn tcp_headers_differ_where_they_must() {
    let bytes = tcp_v4(&[0x61; 250]);
    let frame = SuperFrame::parse(&bytes, 14, gso(GsoKind::TcpV4, 100)).unwrap();
    assert_eq!((frame.headers_len(), frame.max_segment_len()), (14 + 20 + 32, 166));
    let segments = written(&frame, SegmentChecksum::Complete);
    // Length, id, sequence number, flags: CWR 80, ECE 40, ACK 10, PSH 08, FIN 01.
    let expected =
        [(152, 0xffff, u32::MAX - 50, 0xd0), (152, 0x0000, 49, 0x50), (102, 0x0001, 149, 0x59)];
    assert_eq!(segments.len(), expected.len());
    for (segment, expected) in segments.iter().zip(expected) {
        let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let seq = u32::from(word(38)) << 16 | u32::from(word(40));
        assert_eq!((word(16), word(18), seq, segment[47]), expected);
        assert_eq!(segment[..14], LINK);
        assert_eq!(ipv4_header_checksum(&segment[14..34]), word(24));
        assert_eq!(verify_transport(&segment[14..]), Verdict::Correct);
    }
}

#[test]
fn udp_datagrams_get_length_and_checksum() {
    let mut bytes = udp_v4(&[0x61; 205]);
    bytes[40..42].fill(0);
    let frame = SuperFrame::parse(&bytes, 14, gso(GsoKind::UdpSegments, 100)).unwrap();
    let segments = written(&frame, SegmentChecksum::Complete);
    let lengths: Vec<_> = segments.iter().map(|segment| segment[39]).collect();
    assert_eq!(lengths, [108, 108, 13]);
    for segment in &segments {
        assert_ne!(segment[40..42], [0, 0]);
        assert_eq!(verify_transport(&segment[14..]), Verdict::Correct);
    }
}

#[test]
fn partial_checksums_are_completed_to_the_same_bytes() {
    for (bytes, kind) in [
        (tcp_v4(&[0x61; 250]), GsoKind::TcpV4),
        (tcp_v6(&[0x62; 250]), GsoKind::TcpV6),
        (udp_v4(&[0x63; 250]), GsoKind::UdpSegments),
    ] {
        let frame = SuperFrame::parse(&bytes, 14, gso(kind, 99)).unwrap();
        let mut segments = written(&frame, SegmentChecksum::Partial);
        for segment in &mut segments {
            complete(segment, frame.checksum_field()).unwrap();
        }
        assert_eq!(segments, written(&frame, SegmentChecksum::Complete), "{kind:?}");
    }
}

#[test]
fn what_fits_one_segment_stays_one() {
    for payload in [&[][..], &[1], &[1; 100]] {
        let bytes = tcp_v4(payload);
        let frame = SuperFrame::parse(&bytes, 14, gso(GsoKind::TcpV4, 100)).unwrap();
        assert_eq!(written(&frame, SegmentChecksum::Complete), std::slice::from_ref(&bytes));
    }
}

#[test]
fn headers_and_payload_can_be_gathered() {
    let bytes = tcp_v6(&[7; 150]);
    let frame = SuperFrame::parse(&bytes, 14, gso(GsoKind::TcpV6, 100)).unwrap();
    let whole = written(&frame, SegmentChecksum::Complete);
    let mut segments = frame.segments(SegmentChecksum::Complete);
    assert_eq!(segments.len(), 2);
    for (segment, whole) in segments.by_ref().zip(&whole) {
        let mut headers = vec![0; frame.headers_len()];
        assert_eq!(segment.write_headers(&mut headers), Ok(headers.len()));
        assert_eq!(&[&headers, segment.payload()].concat(), whole);
    }
    assert_eq!(segments.len(), 0);
}

#[test]
fn a_buffer_that_is_too_small_is_named() {
    let bytes = tcp_v6(&[7; 150]);
    let frame = SuperFrame::parse(&bytes, 14, gso(GsoKind::TcpV6, 100)).unwrap();
    let segment = frame.segments(SegmentChecksum::Partial).next().unwrap();
    let too_small = |needed| Err(SegmentError::BufferTooSmall { needed });
    assert_eq!(segment.write(&mut [0; 173]), too_small(174));
    assert_eq!(segment.write_headers(&mut [0; 73]), too_small(74));
}

#[test]
fn a_frame_longer_than_its_header_can_say() {
    // BIG TCP has 0 there; a length that wrapped passes through AF_PACKET.
    let payload = vec![5; 70_000];
    let mut bytes = tcp_v4(&[]);
    bytes.extend(&payload);
    let len = bytes.len() - LINK.len();
    for (said, cuts) in [(0, true), (len & 0xffff, true), (1, false)] {
        bytes[16..18].copy_from_slice(&u16::try_from(said).unwrap().to_be_bytes());
        let frame = SuperFrame::parse(&bytes, 14, gso(GsoKind::TcpV4, 1448));
        let segments = frame.map(|frame| written(&frame, SegmentChecksum::Complete));
        if cuts {
            let segments = segments.unwrap();
            let joined: Vec<u8> = segments.iter().flat_map(|s| s[66..].to_vec()).collect();
            assert!(joined == payload, "{said}");
        } else {
            assert_eq!(segments.unwrap_err(), SegmentError::LengthMismatch);
        }
    }
    bytes[16..18].fill(0);
    let segments_too_long = SuperFrame::parse(&bytes, 14, gso(GsoKind::TcpV4, 65_500));
    assert_eq!(segments_too_long.unwrap_err(), SegmentError::TooLong);
}

#[test]
fn what_cannot_be_cut() {
    use GsoKind::{TcpV4, TcpV6, UdpFragments, UdpSegments};
    let (tcp4, tcp6, udp) = (tcp_v4(&[1; 50]), tcp_v6(&[1; 50]), udp_v4(&[1; 50]));
    let with = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        frame
    };
    let cases = [
        ("empty", vec![], TcpV4, SegmentError::MalformedHeaders),
        ("only a link header", LINK.to_vec(), TcpV4, SegmentError::MalformedHeaders),
        ("not IP", with(&tcp4, 14, 0), TcpV4, SegmentError::MalformedHeaders),
        ("cut in TCP's header", with(&tcp4[..50], 17, 36), TcpV4, SegmentError::MalformedHeaders),
        ("data offset too low", with(&tcp4, 46, 0x40), TcpV4, SegmentError::MalformedHeaders),
        (
            "cut in UDP's header",
            with(&udp[..40], 17, 26),
            UdpSegments,
            SegmentError::MalformedHeaders,
        ),
        ("cut in the payload", tcp4[..80].to_vec(), TcpV4, SegmentError::LengthMismatch),
        ("padded", [&tcp4[..], &[0]].concat(), TcpV4, SegmentError::LengthMismatch),
        ("another UDP length", with(&udp, 39, 9), UdpSegments, SegmentError::LengthMismatch),
        ("a fragment", with(&tcp4, 20, 0x20), TcpV4, SegmentError::NotWhole),
        ("IPv6 said to be IPv4", tcp6.clone(), TcpV4, SegmentError::WrongKind),
        ("IPv4 said to be IPv6", tcp4.clone(), TcpV6, SegmentError::WrongKind),
        ("UDP said to be TCP", udp.clone(), TcpV4, SegmentError::WrongKind),
        ("TCP said to be UDP", tcp4.clone(), UdpSegments, SegmentError::WrongKind),
        ("into fragments", udp.clone(), UdpFragments, SegmentError::UdpFragments),
    ];
    for (name, frame, kind, expected) in cases {
        assert_eq!(SuperFrame::parse(&frame, 14, gso(kind, 20)).unwrap_err(), expected, "{name}");
    }
    let no_size = SuperFrame::parse(&tcp4, 14, gso(TcpV4, 0)).unwrap_err();
    assert_eq!(no_size, SegmentError::NoGsoSize);
}

/// The runs of a super-frame, cut again, are its segments.
#[test]
fn runs_are_smaller_super_frames_of_the_same_segments() {
    for (bytes, kind) in [
        (tcp_v4(&[7; 1030]), GsoKind::TcpV4),
        (tcp_v6(&[7; 1000]), GsoKind::TcpV6),
        (udp_v4(&[7; 1001]), GsoKind::UdpSegments),
    ] {
        let gso = gso(kind, 100);
        let whole = SuperFrame::parse(&bytes, LINK.len(), gso).unwrap();
        let segments = written(&whole, SegmentChecksum::Complete);
        for run in [0, 1, 3, 128, usize::MAX] {
            let mut buffer = vec![0; bytes.len()];
            let mut again = Vec::new();
            for piece in whole.runs(run, SegmentChecksum::Partial) {
                let len = piece.write(&mut buffer).unwrap();
                let piece = SuperFrame::parse(&buffer[..len], LINK.len(), gso).unwrap();
                again.extend(written(&piece, SegmentChecksum::Complete));
            }
            assert_eq!(again, segments, "{kind:?} {run}");
        }
        for skipped in 0..12 {
            let payload = |segment: Segment<'_>| segment.payload().as_ptr();
            let mut rest = whole.segments(SegmentChecksum::Complete);
            let expected = whole.segments(SegmentChecksum::Complete).map(payload).nth(skipped);
            assert_eq!(rest.nth(skipped).map(payload), expected, "{kind:?} {skipped}");
            assert_eq!(rest.len(), segments.len().saturating_sub(skipped + 1));
        }
    }
}
