use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::chain::{DESTINATION_OPTIONS, MAX_EXTENSIONS};
use super::*;

const V4: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)));
const V6: (IpAddr, IpAddr) = (
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0, 0x15)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
);

fn packet((source, destination): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; header_len(source) + payload.len()];
    let at = write_header(&mut out, source, destination, protocol, payload.len(), 0, 64);
    out[at..].copy_from_slice(payload);
    out
}

/// An IPv6 packet with these bytes behind its header, the first of type `next`.
fn chain(next: u8, parts: &[&[u8]]) -> Vec<u8> {
    packet(V6, next, &parts.concat())
}

#[test]
fn headers_written_here_are_read_by_etherparse() {
    for (source, destination) in [V4, V6] {
        let packet = packet((source, destination), UDP, &[0, 1, 0, 2, 0, 9, 0, 0, 0xaa]);
        let sliced = SlicedPacket::from_ip(&packet).unwrap();
        match sliced.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(IpAddr::V4(header.source_addr()), source);
                assert_eq!(IpAddr::V4(header.destination_addr()), destination);
                assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                assert_eq!((header.dont_fragment(), header.ttl()), (true, 64));
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                assert_eq!(IpAddr::V6(header.source_addr()), source);
                assert_eq!(IpAddr::V6(header.destination_addr()), destination);
                assert_eq!(header.hop_limit(), 64);
            }
            NetSlice::Arp(_) => panic!("an IP packet"),
        }
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("UDP") };
        assert_eq!((udp.source_port(), udp.payload()), (1, &[0xaa][..]));
    }
}

#[test]
fn packets_built_by_etherparse_are_read_here() {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ipv4([10, 0, 2, 15], [192, 0, 2, 7], 3);
    builder.tcp(1000, 443, 77, 500).syn().ack(99).write(&mut bytes, b"abc").unwrap();
    let view = parse(&bytes).unwrap();
    assert_eq!((view.source, view.destination, view.hop_limit), (V4.0, V4.1, 3));
    assert_eq!((view.transport, view.end, view.fragment), (20, bytes.len(), None));
    let tcp = parse_tcp(&bytes, &view).unwrap();
    assert_eq!((tcp.source_port, tcp.destination_port), (1000, 443));
    assert_eq!((tcp.flags, tcp.seq, tcp.ack, tcp.header_len), (0x12, 77, 99, 20));
    assert!(transport_is_valid(&view, TCP, &bytes[20..]));
    assert_eq!(parse_udp(&bytes, &view), None);

    let mut bytes = Vec::new();
    let builder = PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
        etherparse::Ipv6Header {
            traffic_class: 0xb9,
            source: [0xfd; 16],
            destination: [0x20; 16],
            hop_limit: 9,
            ..Default::default()
        },
        Default::default(),
    ));
    builder.udp(53, 5353).write(&mut bytes, b"hello").unwrap();
    bytes.extend([0; 6]);
    let view = parse(&bytes).unwrap();
    assert_eq!((view.hop_limit, view.dscp_ecn, view.end), (9, 0xb9, bytes.len() - 6));
    let udp = parse_udp(&bytes, &view).unwrap();
    assert_eq!((udp.source_port, udp.destination_port), (53, 5353));
    assert_eq!(&bytes[udp.payload], b"hello");
    let mut segment = bytes[view.transport..view.end].to_vec();
    assert!(transport_is_valid(&view, UDP, &segment));
    let sum = be16(&segment, 6);
    segment[6..8].fill(0);
    assert_eq!(transport_checksum(view.source, view.destination, UDP, &segment), sum);
    assert!(!transport_is_valid(&view, UDP, &segment));
}

#[test]
fn extension_headers_are_walked() {
    const TRANSPORT: &[u8] = b"the transport";
    let options: &[u8] = &[UDP, 0, 1, 4, 0, 0, 0, 0];
    let then_options: &[u8] = &[DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0];
    let long: &[u8] = &[UDP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let arrived: &[u8] = &[UDP, 0, 0, 0, 0, 0, 0, 0];
    let to_visit: &[u8] = &[UDP, 0, 0, 1, 0, 0, 0, 0];
    let atomic: &[u8] = &[UDP, 0, 0, 0, 1, 2, 3, 4];
    let nobody_knows: &[u8] = &[UDP, 0, 0x81, 4, 0, 0, 0, 0];
    let harmless: &[u8] = &[UDP, 0, 0x3e, 4, 0, 0, 0, 0];
    let past_its_end: &[u8] = &[UDP, 0, 1, 5, 0, 0, 0, 0];
    let reaches_too_far: &[u8] = &[UDP, 200, 1, 4, 0, 0, 0, 0];
    let many = [then_options; MAX_EXTENSIONS].concat();
    let too_many = [then_options; MAX_EXTENSIONS + 1].concat();
    let table = [
        ("none", chain(UDP, &[TRANSPORT]), Ok((UDP, 40))),
        ("no next header", chain(59, &[]), Ok((59, 40))),
        ("both", chain(HOP_BY_HOP, &[then_options, options, TRANSPORT]), Ok((UDP, 56))),
        ("two units", chain(DESTINATION_OPTIONS, &[long, TRANSPORT]), Ok((UDP, 56))),
        ("arrived", chain(ROUTING, &[arrived, TRANSPORT]), Ok((UDP, 48))),
        ("to visit", chain(ROUTING, &[to_visit, TRANSPORT]), Err(Malformed::Routing)),
        ("atomic", chain(FRAGMENT, &[atomic, TRANSPORT]), Ok((UDP, 48))),
        ("discard", chain(HOP_BY_HOP, &[nobody_knows]), Err(Malformed::UnknownOption)),
        ("skip", chain(HOP_BY_HOP, &[harmless, TRANSPORT]), Ok((UDP, 48))),
        ("option", chain(HOP_BY_HOP, &[past_its_end]), Err(Malformed::ExtensionChain)),
        ("header", chain(ROUTING, &[reaches_too_far]), Err(Malformed::ExtensionChain)),
        ("too many", chain(DESTINATION_OPTIONS, &[&too_many]), Err(Malformed::ExtensionChain)),
    ];
    for (name, packet, expected) in table {
        let found = parse(&packet).map(|view| (view.protocol, view.transport));
        assert_eq!(found, expected, "{name}");
    }
    let deepest = chain(DESTINATION_OPTIONS, &[&many[..many.len() - 8], options, TRANSPORT]);
    assert_eq!(parse(&deepest).unwrap().transport, 40 + 8 * MAX_EXTENSIONS);
    let late = chain(DESTINATION_OPTIONS, &[&[HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0], options]);
    assert_eq!(parse(&late), Err(Malformed::ExtensionChain));
}

#[test]
fn fragments_say_where_they_belong() {
    let mut first = packet(V4, UDP, &[7; 24]);
    first[4..8].copy_from_slice(&[0x12, 0x34, 0x20, 0]);
    fill_header_checksum(&mut first[..20]);
    let view = parse(&first).unwrap();
    let fragment =
        Fragment { ident: 0x1234, offset: 0, more: true, unfragmentable: 20, named_at: 9 };
    assert_eq!(view.fragment, Some(fragment));
    assert_eq!((parse_udp(&first, &view), view.transport), (None, 20));

    let options: &[u8] = &[FRAGMENT, 0, 1, 4, 0, 0, 0, 0];
    let later = chain(HOP_BY_HOP, &[options, &[UDP, 0, 0x01, 0x08, 9, 8, 7, 6], &[1; 16]]);
    let view = parse(&later).unwrap();
    let fragment =
        Fragment { ident: 0x0908_0706, offset: 264, more: false, unfragmentable: 48, named_at: 40 };
    assert_eq!(view.fragment, Some(fragment));
    assert_eq!((view.protocol, view.transport, view.end), (UDP, 56, 72));
}

#[test]
fn what_is_no_packet_is_named() {
    let good = packet(V4, UDP, &[0; 8]);
    let altered = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        fill_header_checksum(&mut bytes[..20]);
        bytes
    };
    let mut wrong_sum = good.clone();
    wrong_sum[8] ^= 1;
    let table = [
        ("nothing", vec![], Malformed::Short),
        ("version", vec![0x55; 40], Malformed::Version),
        ("IPv4 header", good[..19].to_vec(), Malformed::Short),
        ("IPv6 header", packet(V6, UDP, &[])[..39].to_vec(), Malformed::Short),
        ("IHL 4", altered(0, 0x44), Malformed::HeaderLength),
        ("IHL past the end", altered(0, 0x4f), Malformed::Short),
        ("sum", wrong_sum, Malformed::HeaderChecksum),
        ("longer than the frame", altered(3, 29), Malformed::TotalLength),
        ("shorter than the header", altered(3, 19), Malformed::TotalLength),
        ("no length", altered(3, 0), Malformed::TotalLength),
        ("IPv6 cut", packet(V6, UDP, &[0; 9])[..48].to_vec(), Malformed::TotalLength),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(parse(&bytes), Err(expected), "{name}");
    }
}

#[test]
fn a_super_frame_is_as_long_as_it_is() {
    // 0 in the length field, as BIG TCP has it, and wrapped, as TSO without BIG TCP leaves it.
    for (addresses, base) in [(V4, 0), (V6, IPV6_HEADER_LEN)] {
        let mut bytes = packet(addresses, TCP, &[0; 66_000]);
        assert_eq!(parse(&bytes).map(|view| view.end), Ok(bytes.len()), "zero");
        let at = if base == 0 { 2 } else { 4 };
        let wrapped = u16::try_from((bytes.len() - base) & 0xffff).unwrap();
        bytes[at..at + 2].copy_from_slice(&wrapped.to_be_bytes());
        if base == 0 {
            fill_header_checksum(&mut bytes[..20]);
        }
        assert_eq!(parse(&bytes).map(|view| view.end), Ok(bytes.len()), "wrapped");
    }
    // A small packet without a payload is one.
    let mut padded = packet(V6, 59, &[]);
    padded.resize(46, 0);
    assert_eq!(parse(&padded).map(|view| view.end), Ok(40));
}

#[test]
fn a_quote_may_be_cut_anywhere_behind_its_header() {
    for (addresses, header) in [(V4, 20), (V6, 40)] {
        let whole = packet(addresses, UDP, &[0; 100]);
        for cut in header..whole.len() {
            assert_eq!(parse_quoted(&whole[..cut]).map(|view| view.end), Ok(cut));
            assert!(parse(&whole[..cut]).is_err());
        }
        assert!(parse_quoted(&whole[..header - 1]).is_err());
    }
    let mut hopped = packet(V4, UDP, &[0; 8]);
    hopped[8] -= 1;
    assert!(parse_quoted(&hopped).is_ok());
}

#[test]
fn transport_headers_that_do_not_fit_are_refused() {
    for len in 0..8 {
        let bytes = packet(V4, UDP, &vec![0; len]);
        assert_eq!(parse_udp(&bytes, &parse(&bytes).unwrap()), None);
    }
    for (field, payload) in [(0, None), (7, None), (8, Some(0)), (12, Some(4)), (13, None)] {
        let bytes = packet(V6, UDP, &[0, 1, 0, 2, 0, field, 0, 0, 1, 2, 3, 4]);
        let udp = parse_udp(&bytes, &parse(&bytes).unwrap());
        assert_eq!(udp.map(|udp| udp.payload.len()), payload, "{field}");
    }
    for (len, offset, header_len) in
        [(19, 5, None), (20, 4, None), (20, 5, Some(20)), (20, 6, None), (60, 15, Some(60))]
    {
        let mut segment = vec![0; len];
        segment[12] = offset << 4;
        let bytes = packet(V6, TCP, &segment);
        let tcp = parse_tcp(&bytes, &parse(&bytes).unwrap());
        assert_eq!(tcp.map(|tcp| tcp.header_len), header_len, "{len} {offset}");
    }
}

#[test]
fn a_udp_checksum_is_never_none() {
    // A source port that makes the sum all ones, and so the checksum 0.
    let mut segment = [0, 0, 0, 53, 0, 8, 0, 0];
    let rest = transport_sum(V4.0, V4.1, UDP, &segment).finish();
    segment[..2].copy_from_slice(&rest.to_be_bytes());
    assert_eq!(transport_checksum(V4.0, V4.1, UDP, &segment), 0xffff);
}

#[test]
fn addresses_of_two_versions_make_no_header() {
    let mut out = [0; 64];
    assert_eq!(write_header(&mut out, V4.0, V6.1, UDP, 8, 0, 64), 0);
    assert_eq!(write_header(&mut out[..19], V4.0, V4.1, UDP, 8, 0, 64), 0);
    assert_eq!(write_header(&mut out[..39], V6.0, V6.1, UDP, 8, 0, 64), 0);
    assert_eq!(out, [0; 64]);
    assert_eq!(pseudo_header_sum(V4.0, V6.1, UDP, 8), 0);
}

/// Random bytes, and bytes that look enough like a packet to get past the first checks.
pub(crate) fn almost_packets() -> impl Strategy<Value = Vec<u8>> {
    let random = proptest::collection::vec(any::<u8>(), 0..200);
    let kind =
        prop_oneof![Just(ICMPV4), Just(TCP), Just(UDP), Just(ICMPV6), Just(FRAGMENT), 0..64_u8];
    (random, any::<bool>(), kind, any::<bool>()).prop_map(|(bytes, v4, kind, header)| {
        if !header {
            return bytes;
        }
        let mut bytes = packet(if v4 { V4 } else { V6 }, kind, &bytes);
        if v4 && bytes.len().is_multiple_of(3) {
            bytes[6] = 0x20;
            fill_header_checksum(&mut bytes[..20]);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in almost_packets()) {
        for found in [parse(&bytes), parse_quoted(&bytes)].into_iter().flatten() {
            prop_assert!(found.transport <= found.end && found.end <= bytes.len());
            if let Some(fragment) = found.fragment {
                prop_assert!(fragment.unfragmentable <= found.transport);
                prop_assert!(fragment.named_at < fragment.unfragmentable);
            }
            if let Some(udp) = parse_udp(&bytes, &found) {
                prop_assert!(udp.payload.end <= found.end);
            }
            if let Some(tcp) = parse_tcp(&bytes, &found) {
                prop_assert!(found.transport + tcp.header_len <= found.end);
            }
        }
    }

    #[test]
    fn what_is_written_is_read(
        v4: bool,
        protocol in prop_oneof![Just(TCP), Just(UDP), Just(ICMPV6), Just(59_u8), 61..=255_u8],
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        padding in 0_usize..30,
    ) {
        let addresses = if v4 { V4 } else { V6 };
        let mut bytes = packet(addresses, protocol, &payload);
        let end = bytes.len();
        bytes.resize(end + padding, 0);
        let view = parse(&bytes).unwrap();
        prop_assert_eq!((view.source, view.destination), addresses);
        prop_assert_eq!((view.protocol, view.end, view.hop_limit), (protocol, end, 64));
        prop_assert_eq!(&bytes[view.transport..end], &payload[..]);
    }
}
