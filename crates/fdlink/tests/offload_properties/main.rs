//! What holds of `fdlink::offload` for any input, with etherparse and naive code as oracles.
#![expect(clippy::unwrap_used, reason = "a test whose input cannot be built has failed")]

mod coalesce;
mod flows;
mod packets;

use self::packets::{Network, Packet, Transport, any_packet, gso, packet_of, tcp, udp};
use etherparse::{LaxSlicedPacket, SlicedPacket, TransportSlice};
use fdlink::offload::checksum::{
    Verdict, complete, ipv4_header_checksum, seed, sum, verify_transport,
};
use fdlink::offload::coalesce::{Coalescer, FrameView};
use fdlink::offload::flow_hash::flow_hash;
use fdlink::offload::segment::{SegmentChecksum, SuperFrame};
use fdlink::offload::vnet::{ChecksumField, Gso, RxChecksum, TxOffload, VnetHeader};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// RFC 1071, section 4.1, word by word.
fn naive_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum, word| {
        let word = u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        let sum = u32::from(sum) + word;
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    })
}

/// A packet that is whole in etherparse's eyes, and whose checksums are right in ours.
fn parse_whole(bytes: &[u8]) -> SlicedPacket<'_> {
    assert_eq!(verify_transport(bytes), Verdict::Correct);
    let sliced = SlicedPacket::from_ip(bytes).unwrap();
    if let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net {
        assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
    }
    sliced
}

/// Makes the IP header's length that of the bytes, so that a cut shows only further in.
fn say_true_length(bytes: &mut [u8]) {
    let (at, uncounted) = if bytes[0] >> 4 == 4 { (2, 0) } else { (4, 40) };
    let len = bytes.len().checked_sub(uncounted).and_then(|len| u16::try_from(len).ok());
    if let (Some(field), Some(len)) = (bytes.get_mut(at..at + 2), len) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

/// Everything that takes bytes from outside.
fn call_all(bytes: &mut [u8], link_header_len: usize, field: ChecksumField, gso: Gso) {
    if let Some(header) = VnetHeader::parse(bytes) {
        let _ = (header.checksum(bytes.len()), header.gso(bytes.len()));
        header.write(&mut bytes.to_vec());
    }
    let _ = (verify_transport(bytes), ipv4_header_checksum(bytes), flow_hash(bytes, 1));
    let mut out = vec![0; 70_000];
    if let Ok(frame) = SuperFrame::parse(bytes, link_header_len, gso) {
        for segment in frame.segments(SegmentChecksum::Complete) {
            assert!(segment.write(&mut out).is_ok());
        }
    }
    let mut coalescer = Coalescer::new(&mut out[..], link_header_len, 35_000);
    for checksum in [RxChecksum::Unverified, RxChecksum::Valid, RxChecksum::Partial(field)] {
        let mut left = 0;
        coalescer.push(FrameView::new(bytes, checksum), |_| left += 1);
        coalescer.push(FrameView::new(bytes, checksum), |_| left += 1);
        coalescer.flush(|_| left += 1);
        assert!(left == 1 || left == 2);
    }
    let _ = complete(bytes, field);
    let _ = seed(bytes, link_header_len);
}

proptest! {
    #[test]
    fn vnet_header_round_trip(bytes: [u8; 10]) {
        let header = VnetHeader::parse(&bytes).unwrap();
        prop_assert_eq!(header.to_bytes(), bytes);
        let mut out = [0xff; VnetHeader::LEN_MRG];
        header.write(&mut out);
        prop_assert_eq!(&out[..10], &bytes[..]);
        prop_assert_eq!(&out[10..], &[0, 0]);
    }

    #[test]
    fn what_a_sender_leaves_arrives(start: u16, offset: u16, gso in gso()) {
        let field = ChecksumField { start, offset };
        let header = VnetHeader::for_tx(TxOffload { checksum: Some(field), gso: Some(gso) }, 0);
        let len = field.range().end.max(usize::from(gso.header_len));
        prop_assert_eq!(header.checksum(len), Ok(RxChecksum::Partial(field)));
        prop_assert_eq!(header.gso(len), Ok(Some(gso)));
        prop_assert!(header.checksum(field.range().end - 1).is_err());
    }

    #[test]
    fn sums_are_those_of_the_naive_loop(bytes in vec(any::<u8>(), 0..3000), at: Index, cut: Index) {
        // Any alignment, any length, in one piece or two.
        let bytes = &bytes[at.index(bytes.len() + 1)..];
        let cut = cut.index(bytes.len() + 1);
        let pieces = sum(&bytes[..cut]).combine_at(cut, sum(&bytes[cut..]));
        prop_assert_eq!(sum(bytes).value(), naive_sum(bytes));
        prop_assert_eq!(pieces.value(), naive_sum(bytes));
    }

    #[test]
    fn what_etherparse_builds_is_correct(packet in any_packet(), padding in vec(any::<u8>(), 0..20)) {
        let mut bytes = packet.bytes();
        bytes.extend(padding);
        prop_assert_eq!(verify_transport(&bytes), Verdict::Correct);
    }

    #[test]
    fn a_partial_checksum_is_completed_to_etherparses(
        packet in packet_of(prop_oneof![tcp(), udp()], 0..2000),
        link_header in vec(any::<u8>(), 0..20),
    ) {
        let built = packet.bytes();
        let mut frame = [&link_header[..], &built].concat();
        let field = seed(&mut frame, link_header.len()).unwrap();
        complete(&mut frame, field).unwrap();
        // 0 and 0xffff are one value; which of them a TCP checksum is written as is free.
        let place = field.range();
        let ours = u16::from_be_bytes(frame[place.clone()].try_into().unwrap());
        let place = place.start - link_header.len()..place.end - link_header.len();
        let theirs = u16::from_be_bytes(built[place.clone()].try_into().unwrap());
        prop_assert_eq!(u32::from(ours) % 0xffff, u32::from(theirs) % 0xffff);
        frame[place.start + link_header.len()..][..2].copy_from_slice(&built[place]);
        prop_assert_eq!(&frame[link_header.len()..], built);
    }

    #[test]
    fn a_flipped_bit_is_noticed(packet in packet_of(tcp(), 0..600), at: Index) {
        let mut bytes = packet.bytes();
        let headers_len = bytes.len() - packet.payload.len();
        let addresses = match packet.network {
            Network::V4 { .. } => 12..20,
            Network::V6 { .. } => 8..40,
        };
        let Transport::Tcp { options, .. } = &packet.transport else { unreachable!() };
        let tcp = headers_len - 20 - options.len()..bytes.len();
        let covered: Vec<usize> = addresses.chain(tcp).collect();
        let bit = at.index(covered.len() * 8);
        bytes[covered[bit / 8]] ^= 1 << (bit % 8);
        prop_assert_eq!(verify_transport(&bytes), Verdict::Wrong);
    }

    #[test]
    fn segments_are_the_super_frame_again(
        packet in packet_of(prop_oneof![tcp(), udp()], 0..9000),
        size in 1_u16..3000,
        link_header in vec(any::<u8>(), 0..20),
    ) {
        let whole = packet.bytes();
        let frame = [&link_header[..], &whole].concat();
        let gso = Gso { kind: packet.gso_kind().unwrap(), size, header_len: 0, ecn: false };
        let frame = SuperFrame::parse(&frame, link_header.len(), gso).unwrap();
        let mut buffer = vec![0xaa; frame.max_segment_len()];
        let mut payload = Vec::new();
        let segments = frame.segments(SegmentChecksum::Complete);
        let count = segments.len();
        prop_assert_eq!(count, packet.payload.len().div_ceil(usize::from(size)).max(1));
        for (index, segment) in segments.enumerate() {
            let len = segment.write(&mut buffer).unwrap();
            prop_assert_eq!(&buffer[..link_header.len()], &link_header[..]);
            let bytes = &buffer[link_header.len()..len];
            let (headers, piece) = bytes.split_at(frame.headers_len() - link_header.len());
            prop_assert!(piece.len() <= usize::from(size));
            prop_assert!(piece.len() == usize::from(size) || index + 1 == count);
            check_headers(&packet, headers, bytes, index, payload.len(), index + 1 == count);
            payload.extend_from_slice(piece);
        }
        prop_assert_eq!(payload, packet.payload);
    }

    #[test]
    fn no_bytes_make_anything_panic(
        mut bytes in vec(any::<u8>(), 0..200),
        link_header_len: usize,
        start: u16,
        offset: u16,
        gso in gso(),
    ) {
        let field = ChecksumField { start, offset };
        call_all(&mut bytes, link_header_len, field, gso);
        call_all(&mut bytes, link_header_len % 16, field, gso);
    }

    /// Reaches deeper than random bytes do.
    #[test]
    fn no_damaged_packet_makes_anything_panic(
        packet in any_packet(),
        changes in vec(any::<(Index, u8)>(), 0..4),
        len: Index,
        mend: bool,
        mut gso in gso(),
        size in prop_oneof![1_u16..100, any::<u16>()],
    ) {
        let mut bytes = packet.bytes();
        let headers_len = bytes.len() - packet.payload.len();
        for (at, value) in changes {
            bytes[at.index(headers_len)] = value;
        }
        bytes.truncate(len.index(bytes.len()) + 1);
        if mend {
            say_true_length(&mut bytes);
        }
        gso.kind = packet.gso_kind().unwrap_or(gso.kind);
        gso.size = size;
        let field = ChecksumField { start: 20, offset: 16 };
        call_all(&mut bytes, 0, field, gso);
    }
}

/// The headers of one segment, by etherparse, against those of the super-frame.
fn check_headers(
    packet: &Packet,
    headers: &[u8],
    bytes: &[u8],
    index: usize,
    offset: usize,
    last: bool,
) {
    let sliced = parse_whole(bytes);
    let whole = packet.bytes();
    let original = LaxSlicedPacket::from_ip(&whole).unwrap();
    let mut expected = whole[..headers.len()].to_vec();
    match (&sliced.net, &packet.network) {
        (Some(etherparse::NetSlice::Ipv4(ip)), Network::V4 { id, .. }) => {
            let step = u16::try_from(index % 0x1_0000).unwrap();
            assert_eq!(ip.header().identification(), id.wrapping_add(step));
            // Length, id and checksum differ; they were looked at.
            for range in [2..6, 10..12] {
                expected[range.clone()].copy_from_slice(&headers[range]);
            }
        }
        (Some(etherparse::NetSlice::Ipv6(_)), Network::V6 { .. }) => {
            expected[4..6].copy_from_slice(&headers[4..6]);
        }
        _ => panic!("another IP version"),
    }
    match (&sliced.transport, &original.transport) {
        (Some(TransportSlice::Tcp(tcp)), Some(TransportSlice::Tcp(original))) => {
            let seq = original.sequence_number().wrapping_add(u32::try_from(offset).unwrap());
            assert_eq!(tcp.sequence_number(), seq);
            let mut header = original.to_header();
            header.sequence_number = seq;
            (header.fin, header.psh) = (header.fin && last, header.psh && last);
            header.cwr &= index == 0;
            header.checksum = tcp.checksum();
            let at = headers.len() - header.header_len();
            expected[at..].copy_from_slice(&header.to_bytes());
        }
        (Some(TransportSlice::Udp(udp)), Some(TransportSlice::Udp(_))) => {
            let at = headers.len() - 8;
            assert_eq!(usize::from(udp.length()), bytes.len() - at);
            expected[at + 4..].copy_from_slice(&headers[at + 4..]);
        }
        _ => panic!("another transport"),
    }
    assert_eq!(headers, expected);
}
