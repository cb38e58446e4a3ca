use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket};
use etherparse::{TransportSlice, icmpv4, icmpv6};
use proptest::prelude::*;

use super::*;
use crate::packet::tests::almost_packets;

const GUEST4: [u8; 4] = [10, 0, 2, 15];
const HOST4: [u8; 4] = [192, 0, 2, 7];
const GUEST6: [u8; 16] = [0xfd, 0, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15];
const HOST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const ROUTER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
const ROUTER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0, 2));

fn built(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    build(&mut bytes);
    bytes
}

fn udp4(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(source, destination, 64).udp(4000, 53);
    built(|out| builder.write(out, payload).unwrap())
}

fn udp6(source: [u8; 16], destination: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv6(source, destination, 64).udp(4000, 53);
    built(|out| builder.write(out, payload).unwrap())
}

fn view(packet: &[u8]) -> IpView {
    packet::parse(packet).unwrap()
}

/// Asserts that etherparse finds both checksums right.
fn check_sums(bytes: &[u8]) {
    let sliced = SlicedPacket::from_ip(bytes).unwrap();
    let ip = sliced.net.as_ref().unwrap();
    match sliced.transport.unwrap() {
        TransportSlice::Icmpv4(icmp) => {
            let header = icmp.header();
            let sum = header.icmp_type.calc_checksum(icmp.payload());
            assert_eq!(header.checksum, sum);
            let header = ip.ipv4_ref().unwrap().header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
        }
        TransportSlice::Icmpv6(icmp) => {
            let header = ip.ipv6_ref().unwrap().header().to_header();
            assert!(icmp.is_checksum_valid(header.source, header.destination));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_echo_request_is_answered_with_its_data() {
    let v4 = PacketBuilder::ipv4(GUEST4, HOST4, 64).icmpv4_echo_request(77, 3);
    let v6 = PacketBuilder::ipv6(GUEST6, HOST6, 64).icmpv6_echo_request(77, 3);
    let requests = [
        built(|out| v4.write(out, b"ping!").unwrap()),
        built(|out| v6.write(out, b"ping!").unwrap()),
    ];
    for request in requests {
        let asked = view(&request);
        let echo = parse_echo(&request, &asked).unwrap();
        assert_eq!((echo.request, echo.ident, echo.sequence), (true, 77, 3));
        let mut out = [0xee; 100];
        let len = echo_reply(&mut out, &request, &asked).unwrap();
        assert_eq!(len, request.len());
        check_sums(&out[..len]);
        let reply = view(&out[..len]);
        assert_eq!((reply.source, reply.destination), (asked.destination, asked.source));
        let echo = parse_echo(&out[..len], &reply).unwrap();
        assert_eq!((echo.request, echo.ident, echo.sequence), (false, 77, 3));
        assert_eq!(&out[echo.payload], b"ping!");
        // Its reply is not answered again; nor is there one where it does not fit.
        assert_eq!(echo_reply(&mut [0; 100], &out[..len], &reply), None);
        assert_eq!(echo_reply(&mut out[..len - 1], &request, &asked), None);
        let mut wrong = request.clone();
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(parse_echo(&wrong, &asked), None);
    }
}

#[test]
fn groups_do_not_answer_echoes() {
    for (source, destination) in [
        (GUEST4, [224, 0, 0, 1]),
        (GUEST4, [255; 4]),
        ([0; 4], HOST4),
        ([224, 0, 0, 1], HOST4),
        ([127, 0, 0, 1], HOST4),
    ] {
        let builder = PacketBuilder::ipv4(source, destination, 64).icmpv4_echo_request(1, 1);
        let request = built(|out| builder.write(out, &[]).unwrap());
        assert_eq!(echo_reply(&mut [0; 100], &request, &view(&request)), None);
    }
}

#[test]
fn errors_are_what_etherparse_expects() {
    use etherparse::icmpv4::DestUnreachableHeader as V4;
    use etherparse::icmpv6::DestUnreachableCode as V6;
    let table = [
        (Unreachable::Network, V4::Network, V6::NoRoute),
        (Unreachable::Host, V4::Host, V6::Address),
        (Unreachable::Port, V4::Port, V6::Port),
        (Unreachable::Prohibited, V4::FilterProhibited, V6::Prohibited),
    ];
    let (about4, about6) = (udp4(GUEST4, HOST4, b"lost"), udp6(GUEST6, HOST6, b"lost"));
    let mut out = [0xee; 2000];
    for (why, v4, v6) in table {
        let len = unreachable(&mut out, why, &about4, ROUTER4).unwrap();
        assert_v4(&out[..len], Icmpv4Type::DestinationUnreachable(v4), &about4);
        let len = unreachable(&mut out, why, &about6, ROUTER6).unwrap();
        assert_v6(&out[..len], Icmpv6Type::DestinationUnreachable(v6), &about6);
    }
    let len = too_big(&mut out, 1400, &about4, ROUTER4).unwrap();
    let expected = V4::FragmentationNeeded { next_hop_mtu: 1400 };
    assert_v4(&out[..len], Icmpv4Type::DestinationUnreachable(expected), &about4);
    let len = too_big(&mut out, 1400, &about6, ROUTER6).unwrap();
    assert_v6(&out[..len], Icmpv6Type::PacketTooBig { mtu: 1400 }, &about6);
    let len = reassembly_time_exceeded(&mut out, &about4, ROUTER4).unwrap();
    let code = icmpv4::TimeExceededCode::FragmentReassemblyTimeExceeded;
    assert_v4(&out[..len], Icmpv4Type::TimeExceeded(code), &about4);
    let len = reassembly_time_exceeded(&mut out, &about6, ROUTER6).unwrap();
    let code = icmpv6::TimeExceededCode::FragmentReassemblyTimeExceeded;
    assert_v6(&out[..len], Icmpv6Type::TimeExceeded(code), &about6);
}

fn assert_v4(error: &[u8], expected: Icmpv4Type, about: &[u8]) {
    check_sums(error);
    let sliced = SlicedPacket::from_ip(error).unwrap();
    let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("ICMPv4") };
    assert_eq!((icmp.icmp_type(), icmp.payload()), (expected, about));
    let found = view(error);
    assert_eq!((found.source, found.destination), (ROUTER4, IpAddr::from(GUEST4)));
}

fn assert_v6(error: &[u8], expected: Icmpv6Type, about: &[u8]) {
    check_sums(error);
    let sliced = SlicedPacket::from_ip(error).unwrap();
    let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("ICMPv6") };
    assert_eq!((icmp.icmp_type(), icmp.payload()), (expected, about));
    let found = view(error);
    assert_eq!((found.source, found.destination), (ROUTER6, IpAddr::from(GUEST6)));
}

#[test]
fn errors_quote_as_much_as_they_may() {
    let mut out = [0; 2000];
    let long = udp4(GUEST4, HOST4, &[7; 1400]);
    let len = unreachable(&mut out, Unreachable::Port, &long, ROUTER4).unwrap();
    assert_eq!((len, &out[28..len]), (576, &long[..548]));
    let long = udp6(GUEST6, HOST6, &[7; 1400]);
    let len = unreachable(&mut out, Unreachable::Port, &long, ROUTER6).unwrap();
    assert_eq!((len, &out[48..len]), (1280, &long[..1232]));
    check_sums(&out[..len]);
    // Padding behind the packet is not quoted.
    let mut padded = udp4(GUEST4, HOST4, b"x");
    let end = padded.len();
    padded.resize(46, 0);
    let len = unreachable(&mut out, Unreachable::Port, &padded, ROUTER4).unwrap();
    assert_eq!(len, 28 + end);
    assert_eq!(unreachable(&mut out[..len - 1], Unreachable::Port, &padded, ROUTER4), None);
    assert_eq!(unreachable(&mut out, Unreachable::Port, &padded, ROUTER6), None, "versions");
}

#[test]
fn some_packets_are_never_reported() {
    let icmp4 = |kind: Icmpv4Type| {
        let builder = PacketBuilder::ipv4(GUEST4, HOST4, 64).icmpv4(kind);
        built(|out| builder.write(out, &[0; 28]).unwrap())
    };
    let icmp6 = |kind: u8| {
        let builder = PacketBuilder::ipv6(GUEST6, HOST6, 64).icmpv6_raw(kind, 0, [0; 4]);
        built(|out| builder.write(out, &[0; 48]).unwrap())
    };
    let mut later = udp4(GUEST4, HOST4, &[0; 16]);
    later[7] = 5;
    let mut first = udp4(GUEST4, HOST4, &[0; 16]);
    first[6] = 0x20;
    let echo = IcmpEchoHeader { id: 1, seq: 1 };
    let port = icmpv4::DestUnreachableHeader::Port;
    let in_transit = icmpv4::TimeExceededCode::TtlExceededInTransit;
    let table = [
        ("a packet", udp4(GUEST4, HOST4, b""), true),
        ("an echo", icmp4(Icmpv4Type::EchoRequest(echo)), true),
        ("unreachable", icmp4(Icmpv4Type::DestinationUnreachable(port)), false),
        ("time exceeded", icmp4(Icmpv4Type::TimeExceeded(in_transit)), false),
        (
            "a redirect",
            icmp4(Icmpv4Type::Unknown { type_u8: 5, code_u8: 0, bytes5to8: [0; 4] }),
            false,
        ),
        ("a first fragment", first, true),
        ("a later fragment", later, false),
        ("to all", udp4(GUEST4, [255; 4], b""), false),
        ("to a group", udp4(GUEST4, [239, 1, 1, 1], b""), false),
        ("from nobody", udp4([0; 4], HOST4, b""), false),
        ("from this network", udp4([0, 0, 0, 9], HOST4, b""), false),
        ("from a group", udp4([224, 0, 0, 1], HOST4, b""), false),
        ("from the reserved", udp4([250, 0, 0, 1], HOST4, b""), false),
        ("from all", udp4([255; 4], HOST4, b""), false),
        ("from loopback", udp4([127, 0, 0, 1], HOST4, b""), false),
        ("IPv6", udp6(GUEST6, HOST6, b""), true),
        ("an IPv6 echo", icmp6(128), true),
        ("an IPv6 error", icmp6(1), false),
        ("an unknown IPv6 error", icmp6(127), false),
        ("an IPv6 redirect", icmp6(137), false),
        ("to an IPv6 group", udp6(GUEST6, [0xff; 16], b""), false),
        ("from an IPv6 group", udp6([0xff; 16], HOST6, b""), false),
        ("from no IPv6 address", udp6([0; 16], HOST6, b""), false),
    ];
    for (name, packet, reported) in table {
        let source = if packet[0] >> 4 == 4 { ROUTER4 } else { ROUTER6 };
        let written = unreachable(&mut [0; 1280], Unreachable::Host, &packet, source);
        assert_eq!(written.is_some(), reported, "{name}");
    }
}

#[test]
fn errors_about_our_flows_are_understood() {
    let mut out = [0; 2000];
    let flow = |source: IpAddr, destination: IpAddr| {
        (UDP, SocketAddr::new(source, 4000), SocketAddr::new(destination, 53))
    };
    let flow4 = flow(GUEST4.into(), HOST4.into());
    let flow6 = flow(GUEST6.into(), HOST6.into());
    for payload in [&[][..], &[1; 1400]] {
        let about = [(udp4(GUEST4, HOST4, payload), flow4), (udp6(GUEST6, HOST6, payload), flow6)];
        for (about, flow) in about {
            let source = if about[0] >> 4 == 4 { ROUTER4 } else { ROUTER6 };
            let check = |len: Option<usize>, kind, out: &[u8]| {
                let error = &out[..len.unwrap()];
                let found = parse_error(error, &view(error)).unwrap();
                assert_eq!(found.kind, kind);
                assert_eq!((found.protocol, found.source, found.destination), flow);
            };
            for why in [
                Unreachable::Network,
                Unreachable::Host,
                Unreachable::Port,
                Unreachable::Prohibited,
            ] {
                let len = unreachable(&mut out, why, &about, source);
                check(len, ErrorKind::Unreachable(why), &out);
            }
            let len = too_big(&mut out, 1300, &about, source);
            check(len, ErrorKind::TooBig { mtu: 1300 }, &out);
            let len = reassembly_time_exceeded(&mut out, &about, source);
            check(len, ErrorKind::TimeExceeded, &out);
        }
    }
}

#[test]
fn impossible_mtus_are_not_followed() {
    let mut out = [0; 2000];
    let (about4, about6) = (udp4(GUEST4, HOST4, b""), udp6(GUEST6, HOST6, b""));
    for (about, source, told, followed) in [
        (&about4, ROUTER4, 0, 576),
        (&about4, ROUTER4, 20, 68),
        (&about4, ROUTER4, 100_000, 65_535),
        (&about6, ROUTER6, 0, 1280),
        (&about6, ROUTER6, 100_000, 100_000),
    ] {
        let len = too_big(&mut out, told, about, source).unwrap();
        let found = parse_error(&out[..len], &view(&out[..len])).unwrap();
        assert_eq!(found.kind, ErrorKind::TooBig { mtu: followed });
    }
}

#[test]
fn errors_that_concern_nobody_here_are_not_read() {
    let mut out = [0; 2000];
    let about = udp4(GUEST4, HOST4, b"");
    let len = unreachable(&mut out, Unreachable::Port, &about, ROUTER4).unwrap();
    let good = out[..len].to_vec();
    assert!(parse_error(&good, &view(&good)).is_some());
    let mut wrong_sum = good.clone();
    wrong_sum[22] ^= 1;
    assert_eq!(parse_error(&wrong_sum, &view(&wrong_sum)), None);
    // Quotes a packet that came from elsewhere than where the error goes.
    let builder = PacketBuilder::ipv4([10, 0, 2, 2], HOST4, 64)
        .icmpv4(Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port));
    let elsewhere = built(|out| builder.write(out, &about).unwrap());
    assert_eq!(parse_error(&elsewhere, &view(&elsewhere)), None);
    // Quotes less than the ports.
    let builder = PacketBuilder::ipv4([10, 0, 2, 2], GUEST4, 64)
        .icmpv4(Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port));
    let short = built(|out| builder.write(out, &about[..27]).unwrap());
    assert_eq!(parse_error(&short, &view(&short)), None);
}

#[test]
fn the_limiter_lets_a_burst_through_and_then_a_rate() {
    let start = Instant::now();
    let mut limiter = ErrorLimiter::new(10, 5);
    let passed =
        |limiter: &mut ErrorLimiter, at: Instant| (0..20).filter(|_| limiter.allow(at)).count();
    assert_eq!(passed(&mut limiter, start), 5);
    assert_eq!(passed(&mut limiter, start + Duration::from_millis(99)), 0);
    assert_eq!(passed(&mut limiter, start + Duration::from_millis(100)), 1);
    assert_eq!(passed(&mut limiter, start + Duration::from_millis(350)), 2);
    assert_eq!(passed(&mut limiter, start + Duration::from_secs(60)), 5);
    assert_eq!(limiter.refused(), 15 + 20 + 19 + 18 + 15);
    // A clock that seems to go back does no harm.
    assert_eq!(passed(&mut limiter, start), 0);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in almost_packets(), mtu: u32, room in 0_usize..600) {
        let mut out = vec![0; room];
        for source in [ROUTER4, ROUTER6] {
            let written = [
                unreachable(&mut out, Unreachable::Port, &bytes, source),
                too_big(&mut out, mtu, &bytes, source),
                reassembly_time_exceeded(&mut out, &bytes, source),
            ];
            prop_assert!(written.into_iter().flatten().all(|len| len <= room));
        }
        if let Ok(view) = packet::parse(&bytes) {
            let _ = (parse_echo(&bytes, &view), parse_error(&bytes, &view));
            let _ = echo_reply(&mut out, &bytes, &view);
        }
    }

    #[test]
    fn no_quote_makes_it_panic(bytes in almost_packets(), kind in 0_u8..13, v4: bool) {
        let head = Head { kind, code: 3, rest: [0; 4] };
        let (source, destination) =
            if v4 { (ROUTER4, GUEST4.into()) } else { (ROUTER6, GUEST6.into()) };
        let mut out = vec![0; 1000];
        let len = write_message(&mut out, source, destination, head, &bytes).unwrap();
        let _ = parse_error(&out[..len], &view(&out[..len]));
    }
}
