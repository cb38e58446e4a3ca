use etherparse::{ArpOperation as Operation, LinkSlice, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::packet::tests::almost_packets;

const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x15]);
const OUR4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const PEER4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const OUR6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0x12, 0x3456);
const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0, 0x15);

fn frame(write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Vec<u8> {
    let mut out = vec![0xee; 86];
    let len = write(&mut out).unwrap();
    out.truncate(len);
    out
}

/// Source and destination of the frame, as etherparse reads them.
fn link(sliced: &SlicedPacket<'_>) -> (MacAddr, MacAddr) {
    let Some(LinkSlice::Ethernet2(ethernet)) = &sliced.link else { panic!("Ethernet") };
    (MacAddr(ethernet.source()), MacAddr(ethernet.destination()))
}

fn check_arp(bytes: &[u8], to: MacAddr, operation: Operation, addresses: [Ipv4Addr; 2]) {
    let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
    assert_eq!(link(&sliced), (OURS, to));
    let Some(NetSlice::Arp(arp)) = sliced.net else { panic!("ARP") };
    assert_eq!(arp.operation(), operation);
    assert_eq!(arp.sender_hw_addr(), OURS.0);
    assert_eq!(arp.sender_protocol_addr(), addresses[0].octets());
    assert_eq!(arp.target_protocol_addr(), addresses[1].octets());
    let target = if operation == Operation::REPLY { to } else { MacAddr::default() };
    assert_eq!(arp.target_hw_addr(), target.0);
}

#[test]
fn arp_requests_and_replies() {
    let request = frame(|out| arp_request(out, OURS, OUR4, PEER4));
    check_arp(&request, MacAddr::BROADCAST, Operation::REQUEST, [OUR4, PEER4]);
    let read = parse_arp(&request[14..]).unwrap();
    assert_eq!(read, Arp { request: true, sender: OUR4, sender_mac: OURS, target: PEER4 });
    assert_eq!(read.claim(), Some((OUR4.into(), OURS)));

    let asked = Arp { request: true, sender: PEER4, sender_mac: PEER, target: OUR4 };
    let reply = frame(|out| arp_reply(out, OURS, &asked));
    check_arp(&reply, PEER, Operation::REPLY, [OUR4, PEER4]);
    assert!(!parse_arp(&reply[14..]).unwrap().request);
    assert_eq!(arp_reply(&mut [0; 41], OURS, &asked), None);
}

#[test]
fn an_arp_probe_claims_nothing_and_is_answered() {
    let probe =
        Arp { request: true, sender: Ipv4Addr::UNSPECIFIED, sender_mac: PEER, target: OUR4 };
    assert_eq!(probe.claim(), None);
    let reply = frame(|out| arp_reply(out, OURS, &probe));
    check_arp(&reply, PEER, Operation::REPLY, [OUR4, Ipv4Addr::UNSPECIFIED]);
}

#[test]
fn nobody_claims_a_group() {
    for (sender, sender_mac) in [
        (Ipv4Addr::BROADCAST, PEER),
        (Ipv4Addr::new(224, 0, 0, 1), PEER),
        (Ipv4Addr::LOCALHOST, PEER),
        (PEER4, MacAddr::BROADCAST),
        (PEER4, MacAddr([1, 0, 0x5e, 0, 0, 1])),
        (PEER4, MacAddr::default()),
    ] {
        let arp = Arp { request: true, sender, sender_mac, target: OUR4 };
        assert_eq!(arp.claim(), None, "{arp:?}");
        assert_eq!(arp_reply(&mut [0; 64], OURS, &arp).is_some(), sender_mac == PEER);
    }
}

#[test]
fn other_kinds_of_arp_are_not_read() {
    let good = frame(|out| arp_request(out, OURS, OUR4, PEER4))[14..].to_vec();
    assert_eq!(parse_arp(&good[..27]), None);
    // Hardware type, protocol type, the two lengths, the operation.
    for at in [1, 2, 4, 5, 7] {
        let mut other = good.clone();
        other[at] += 3;
        assert_eq!(parse_arp(&other), None, "{at}");
    }
}

/// Asserts link and IP addresses, hop limit and checksum, and gives what is read here.
fn check_ndp(bytes: &[u8], to: MacAddr, source: Ipv6Addr, destination: Ipv6Addr) -> Ndp {
    let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
    assert_eq!(link(&sliced), (OURS, to));
    let header = sliced.net.as_ref().unwrap().ipv6_ref().unwrap().header();
    assert_eq!((header.source_addr(), header.destination_addr()), (source, destination));
    assert_eq!(header.hop_limit(), 255);
    let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else { panic!("ICMPv6") };
    assert!(icmp.is_checksum_valid(source.octets(), destination.octets()));
    parse_ndp(&bytes[14..], &packet::parse(&bytes[14..]).unwrap()).unwrap()
}

#[test]
fn solicitations_go_to_the_group_of_the_target() {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x15);
    let group_mac = MacAddr([0x33, 0x33, 0xff, 0, 0, 0x15]);
    let asked = frame(|out| neighbor_solicitation(out, OURS, OUR6, PEER6));
    let link_address = Some(OURS);
    let expected = Solicitation { source: OUR6, target: PEER6, link_address };
    assert_eq!(check_ndp(&asked, group_mac, OUR6, group), Ndp::Solicitation(expected));
    assert_eq!(expected.claim(), Some((OUR6.into(), OURS)));

    let none = Ipv6Addr::UNSPECIFIED;
    let probe = frame(|out| neighbor_solicitation(out, OURS, none, PEER6));
    let expected = Solicitation { source: none, target: PEER6, link_address: None };
    assert_eq!(check_ndp(&probe, group_mac, none, group), Ndp::Solicitation(expected));
    assert_eq!(expected.claim(), None);
    assert_eq!(neighbor_solicitation(&mut [0; 85], OURS, OUR6, PEER6), None);
}

#[test]
fn advertisements_answer_whoever_asked() {
    let mut asked = Solicitation { source: PEER6, target: OUR6, link_address: Some(PEER) };
    let mut expected =
        Advertisement { target: OUR6, link_address: Some(OURS), solicited: true, overrides: true };
    let answer = frame(|out| neighbor_advertisement(out, OURS, &asked, MacAddr::BROADCAST));
    assert_eq!(check_ndp(&answer, PEER, OUR6, PEER6), Ndp::Advertisement(expected));
    assert_eq!(expected.claim(), Some((OUR6.into(), OURS)));

    // Asked directly, without the option: the frame says who asked.
    asked.link_address = None;
    let answer = frame(|out| neighbor_advertisement(out, OURS, &asked, PEER));
    assert_eq!(check_ndp(&answer, PEER, OUR6, PEER6), Ndp::Advertisement(expected));
    assert_eq!(neighbor_advertisement(&mut [0; 86], OURS, &asked, MacAddr::BROADCAST), None);

    asked.source = Ipv6Addr::UNSPECIFIED;
    expected.solicited = false;
    let all_nodes = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
    let answer = frame(|out| neighbor_advertisement(out, OURS, &asked, PEER));
    assert_eq!(check_ndp(&answer, all_nodes, OUR6, ALL_NODES), Ndp::Advertisement(expected));
}

/// A message of neighbour discovery with a right checksum.
fn message(
    (kind, code, hop_limit): (u8, u8, u8),
    source: Ipv6Addr,
    destination: Ipv6Addr,
    (flags, target): (u8, Ipv6Addr),
    options: &[u8],
) -> Vec<u8> {
    let (source, destination) = (source.into(), destination.into());
    let mut body = vec![kind, code, 0, 0, flags, 0, 0, 0];
    body.extend(target.octets());
    body.extend(options);
    let sum = packet::transport_checksum(source, destination, ICMPV6, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut out = vec![0; 40];
    packet::write_header(&mut out, source, destination, ICMPV6, body.len(), 0, hop_limit);
    out.extend(body);
    out
}

fn read(packet: &[u8]) -> Option<Ndp> {
    parse_ndp(packet, &packet::parse(packet).unwrap())
}

#[test]
fn what_rfc_4861_calls_invalid_is_not_read() {
    const SOLICIT: (u8, u8, u8) = (135, 0, 255);
    const ADVERT: (u8, u8, u8) = (136, 0, 255);
    let link_address: &[u8] = &[1, 1, 2, 0, 0, 0, 0, 0x15];
    let group = solicited_node(OUR6);
    let none = Ipv6Addr::UNSPECIFIED;
    let ours = (0, OUR6);
    let peers = (0x60, PEER6);
    let table = [
        ("good", message(SOLICIT, PEER6, group, ours, link_address), true),
        ("direct", message(SOLICIT, PEER6, OUR6, ours, &[]), true),
        ("hop limit", message((135, 0, 254), PEER6, group, ours, link_address), false),
        ("code", message((135, 1, 255), PEER6, group, ours, link_address), false),
        ("group target", message(SOLICIT, PEER6, group, (0, group), link_address), false),
        ("empty option", message(SOLICIT, PEER6, group, ours, &[1, 0, 0, 0, 0, 0, 0, 0]), false),
        ("cut option", message(SOLICIT, PEER6, group, ours, &[1, 2, 0, 0, 0, 0, 0, 0]), false),
        ("half an option", message(SOLICIT, PEER6, group, ours, &[1]), false),
        (
            "other options",
            message(
                SOLICIT,
                PEER6,
                group,
                ours,
                &[[99, 1, 0, 0, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0, 0, 0]].concat(),
            ),
            true,
        ),
        ("probe", message(SOLICIT, none, group, ours, &[]), true),
        ("probe with address", message(SOLICIT, none, group, ours, link_address), false),
        ("probe to elsewhere", message(SOLICIT, none, ALL_NODES, ours, &[]), false),
        ("answer", message(ADVERT, PEER6, OUR6, peers, &[]), true),
        ("answer to all", message(ADVERT, PEER6, ALL_NODES, peers, &[]), false),
        ("news to all", message(ADVERT, PEER6, ALL_NODES, (0x20, PEER6), &[]), true),
        ("router solicitation", message((133, 0, 255), PEER6, ALL_NODES, ours, &[]), false),
        ("redirect", message((137, 0, 255), PEER6, OUR6, ours, &[0; 16]), false),
    ];
    for (name, packet, valid) in table {
        assert_eq!(read(&packet).is_some(), valid, "{name}");
        let mut wrong = packet.clone();
        wrong[42] ^= 1;
        assert_eq!(read(&wrong), None, "{name}, wrong checksum");
    }
}

#[test]
fn groups_have_their_link_addresses() {
    for (address, expected) in [
        ("255.255.255.255", Some("ff:ff:ff:ff:ff:ff")),
        ("224.0.0.251", Some("01:00:5e:00:00:fb")),
        ("239.255.1.2", Some("01:00:5e:7f:01:02")),
        ("ff02::1:ff12:3456", Some("33:33:ff:12:34:56")),
        ("10.0.2.2", None),
        ("fd00::1", None),
    ] {
        let found = group_mac(address.parse().unwrap()).map(|mac| mac.to_string());
        assert_eq!(found.as_deref(), expected, "{address}");
    }
    assert_eq!(solicited_node(OUR6), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
}

#[test]
fn a_request_has_one_version() {
    let mut out = [0; 86];
    assert_eq!(request(&mut out, OURS, OUR4.into(), PEER4.into()), Some(42));
    assert_eq!(request(&mut out, OURS, OUR6.into(), PEER6.into()), Some(86));
    assert_eq!(request(&mut out, OURS, OUR4.into(), PEER6.into()), None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in almost_packets()) {
        let _ = parse_arp(&bytes);
        if let Ok(view) = packet::parse(&bytes) {
            let _ = parse_ndp(&bytes, &view);
        }
    }

    #[test]
    fn no_options_make_it_panic(
        kind in 130_u8..140,
        options in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let packet = message((kind, 0, 255), PEER6, OUR6, (0, OUR6), &options);
        let _ = read(&packet);
    }
}
