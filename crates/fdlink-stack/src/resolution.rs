//! Address resolution on Ethernet: ARP (RFC 826) for IPv4, neighbour discovery (RFC 4861) for IPv6.
//!
//! # Theory of operation
//!
//! Read: what an ARP packet, a neighbour solicitation or a neighbour advertisement says, with all
//! that its RFC has a receiver check. Written: whole Ethernet frames, without a vnet header, into
//! the caller's buffer; their length is given, `None` if the buffer is too short (86 bytes do for
//! each) or the other side is no station. The codecs are smoltcp's.
//!
//! * A claim, "this IP address has that link address", is believed only for an address that one
//!   station can have, and a link address that one station can have.
//! * A probe asks whether anybody has an address that the asker means to take: ARP from 0.0.0.0
//!   (RFC 5227 section 1.1), a solicitation from `::` (RFC 4862 section 5.4.2). It claims nothing.
//!   The answer to ARP's goes back to the asker's link address; the answer to the other goes to all
//!   nodes, unsolicited, for there is no address to send it to (RFC 4861 section 7.2.4).
//!
//! Whether a target is ours is the stack's matter, what to do with a claim the cache's
//! ([`crate::neighbor`]). Routers, prefixes and redirects are not read: the stack is told its
//! routes.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fdlink::batch::{ETHERNET_HEADER_LEN, EtherType, MacAddr, ethernet_header};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Message, Icmpv6Packet, Icmpv6Repr,
    NdiscNeighborFlags, NdiscRepr,
};

use crate::packet::{self, ICMPV6, IPV6_HEADER_LEN, IpView};

/// RFC 4861 section 7.1: whoever sent it is on the link, for every router would have counted down.
const NDP_HOP_LIMIT: u8 = 255;
/// A solicitation or advertisement without options (RFC 4861 section 4.3).
const NDP_LEN: usize = 24;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// `ff02::1`.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// An ARP request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) request: bool,
    pub(crate) sender: Ipv4Addr,
    pub(crate) sender_mac: MacAddr,
    pub(crate) target: Ipv4Addr,
}

impl Arp {
    /// What it tells of its sender; nothing if it is a probe.
    pub(crate) fn claim(&self) -> Option<(IpAddr, MacAddr)> {
        claim(self.sender.into(), self.sender_mac)
    }
}

/// Reads an ARP packet for IPv4 on Ethernet, without its link header. Other kinds are `None`.
pub(crate) fn parse_arp(payload: &[u8]) -> Option<Arp> {
    let packet = ArpPacket::new_checked(payload).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    let request = match operation {
        ArpOperation::Request => true,
        ArpOperation::Reply => false,
        ArpOperation::Unknown(_) => return None,
    };
    Some(Arp {
        request,
        sender: source_protocol_addr,
        sender_mac: MacAddr(source_hardware_addr.0),
        target: target_protocol_addr,
    })
}

/// Writes a frame that asks everyone who has an IPv4 address.
pub(crate) fn arp_request(
    out: &mut [u8],
    mac: MacAddr,
    source: Ipv4Addr,
    target: Ipv4Addr,
) -> Option<usize> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: source,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    write_arp(out, mac, MacAddr::BROADCAST, repr)
}

/// Writes the frame that answers a request: its target is ours, and here.
pub(crate) fn arp_reply(out: &mut [u8], mac: MacAddr, request: &Arp) -> Option<usize> {
    if !is_station(request.sender_mac) {
        return None;
    }
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: request.target,
        target_hardware_addr: EthernetAddress(request.sender_mac.0),
        target_protocol_addr: request.sender,
    };
    write_arp(out, mac, request.sender_mac, repr)
}

fn write_arp(out: &mut [u8], from: MacAddr, to: MacAddr, repr: ArpRepr) -> Option<usize> {
    let total = ETHERNET_HEADER_LEN + repr.buffer_len();
    let (header, payload) = out.get_mut(..total)?.split_at_mut(ETHERNET_HEADER_LEN);
    header.copy_from_slice(&ethernet_header(to, from, EtherType::ARP));
    repr.emit(&mut ArpPacket::new_unchecked(payload));
    Some(total)
}

/// A neighbour solicitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Solicitation {
    /// Unspecified in a probe.
    pub(crate) source: Ipv6Addr,
    pub(crate) target: Ipv6Addr,
    pub(crate) link_address: Option<MacAddr>,
}

impl Solicitation {
    /// What it tells of its sender; nothing if it is a probe.
    pub(crate) fn claim(&self) -> Option<(IpAddr, MacAddr)> {
        claim(self.source.into(), self.link_address?)
    }
}

/// A neighbour advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advertisement {
    pub(crate) target: Ipv6Addr,
    pub(crate) link_address: Option<MacAddr>,
    /// Answers a solicitation of ours.
    pub(crate) solicited: bool,
    /// Replaces what is known.
    pub(crate) overrides: bool,
}

impl Advertisement {
    /// What it tells of its target.
    pub(crate) fn claim(&self) -> Option<(IpAddr, MacAddr)> {
        claim(self.target.into(), self.link_address?)
    }
}

/// A message of neighbour discovery that is read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ndp {
    Solicitation(Solicitation),
    Advertisement(Advertisement),
}

/// Reads a neighbour solicitation or advertisement that is valid by RFC 4861 section 7.1.
pub(crate) fn parse_ndp(packet: &[u8], view: &IpView) -> Option<Ndp> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (view.source, view.destination) else {
        return None;
    };
    let bytes = packet::transport(packet, view, ICMPV6)?;
    let valid = packet::transport_is_valid(view, ICMPV6, bytes);
    if view.hop_limit != NDP_HOP_LIMIT || bytes.len() < NDP_LEN || !valid {
        return None;
    }
    let message = Icmpv6Packet::new_checked(bytes).ok()?;
    let (kind, target) = (message.msg_type(), message.target_addr());
    if message.msg_code() != 0 || target.is_multicast() {
        return None;
    }
    let option = |wanted| link_address_option(&bytes[NDP_LEN..], wanted);
    match kind {
        Icmpv6Message::NeighborSolicit => {
            let link_address = option(SOURCE_LINK_ADDRESS)?;
            let probe = source.is_unspecified();
            if probe && (link_address.is_some() || destination != solicited_node(target)) {
                return None;
            }
            Some(Ndp::Solicitation(Solicitation { source, target, link_address }))
        }
        Icmpv6Message::NeighborAdvert => {
            let link_address = option(TARGET_LINK_ADDRESS)?;
            let flags = message.neighbor_flags();
            let solicited = flags.contains(NdiscNeighborFlags::SOLICITED);
            let overrides = flags.contains(NdiscNeighborFlags::OVERRIDE);
            if solicited && destination.is_multicast() {
                return None;
            }
            Some(Ndp::Advertisement(Advertisement { target, link_address, solicited, overrides }))
        }
        _ => None,
    }
}

/// Finds a link address among options. `None` if the options are invalid, which makes the message
/// invalid (RFC 4861 section 7.1: all have a length above 0); `Some(None)` if there is no such one.
///
/// By hand: smoltcp's reader looks into options of every kind, and a peer decides which come.
fn link_address_option(mut options: &[u8], wanted: u8) -> Option<Option<MacAddr>> {
    let mut found = None;
    while !options.is_empty() {
        let (kind, units) = (options[0], *options.get(1)?);
        let option = options.get(..usize::from(units) * 8).filter(|option| !option.is_empty())?;
        // Other lengths are other link layers (RFC 4861 section 4.6.1).
        if let (true, &[_, 1, a, b, c, d, e, f]) = (kind == wanted, option) {
            found = Some(MacAddr([a, b, c, d, e, f]));
        }
        options = &options[option.len()..];
    }
    Some(found)
}

/// Writes a frame that asks the group of an IPv6 address's owner for its link address.
pub(crate) fn neighbor_solicitation(
    out: &mut [u8],
    mac: MacAddr,
    source: Ipv6Addr,
    target: Ipv6Addr,
) -> Option<usize> {
    let group = solicited_node(target);
    // RFC 4861 section 4.3: a probe must not name its link address.
    let lladdr = (!source.is_unspecified()).then(|| EthernetAddress(mac.0).into());
    let repr = NdiscRepr::NeighborSolicit { target_addr: target, lladdr };
    write_ndp(out, (mac, group_mac(group.into())?), (source, group), repr)
}

/// Writes the frame that answers a solicitation, which came in a frame from `sender`: its target is
/// ours, and here.
pub(crate) fn neighbor_advertisement(
    out: &mut [u8],
    mac: MacAddr,
    asked: &Solicitation,
    sender: MacAddr,
) -> Option<usize> {
    let probe = asked.source.is_unspecified();
    let (destination, to) = if probe {
        (ALL_NODES, group_mac(ALL_NODES.into())?)
    } else {
        (asked.source, asked.link_address.unwrap_or(sender))
    };
    if !probe && (destination.is_multicast() || !is_station(to)) {
        return None;
    }
    let mut flags = NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::SOLICITED, !probe);
    let lladdr = Some(EthernetAddress(mac.0).into());
    let repr = NdiscRepr::NeighborAdvert { flags, target_addr: asked.target, lladdr };
    write_ndp(out, (mac, to), (asked.target, destination), repr)
}

fn write_ndp(
    out: &mut [u8],
    (from, to): (MacAddr, MacAddr),
    (source, destination): (Ipv6Addr, Ipv6Addr),
    repr: NdiscRepr<'_>,
) -> Option<usize> {
    const AT: usize = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN;
    let repr = Icmpv6Repr::Ndisc(repr);
    let len = repr.buffer_len();
    let (header, message) = out.get_mut(..AT + len)?.split_at_mut(AT);
    let (link, ip) = header.split_at_mut(ETHERNET_HEADER_LEN);
    link.copy_from_slice(&ethernet_header(to, from, EtherType::IPV6));
    packet::write_header(ip, source.into(), destination.into(), ICMPV6, len, 0, NDP_HOP_LIMIT);
    // smoltcp leaves reserved bytes as they are.
    message.fill(0);
    let unsummed = ChecksumCapabilities::ignored();
    repr.emit(&source, &destination, &mut Icmpv6Packet::new_unchecked(&mut *message), &unsummed);
    let sum = packet::transport_checksum(source.into(), destination.into(), ICMPV6, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(AT + len)
}

/// Writes the frame that asks for a neighbour's link address, whichever its IP version is. `None`
/// also if the addresses are of different versions.
pub(crate) fn request(
    out: &mut [u8],
    mac: MacAddr,
    source: IpAddr,
    target: IpAddr,
) -> Option<usize> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => arp_request(out, mac, source, target),
        (IpAddr::V6(source), IpAddr::V6(target)) => neighbor_solicitation(out, mac, source, target),
        _ => None,
    }
}

/// The group that listens for solicitations of an address (RFC 4291 section 2.7.1).
pub(crate) fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The link address of a group or of everyone (RFC 1112 section 6.4, RFC 2464 section 7); `None`
/// for an address that is to be resolved.
pub(crate) fn group_mac(address: IpAddr) -> Option<MacAddr> {
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some(MacAddr::BROADCAST),
        IpAddr::V4(v4) if v4.is_multicast() => {
            let [_, a, b, c] = v4.octets();
            Some(MacAddr([0x01, 0x00, 0x5e, a & 0x7f, b, c]))
        }
        IpAddr::V6(v6) if v6.is_multicast() => {
            let [.., a, b, c, d] = v6.octets();
            Some(MacAddr([0x33, 0x33, a, b, c, d]))
        }
        _ => None,
    }
}

fn claim(ip: IpAddr, mac: MacAddr) -> Option<(IpAddr, MacAddr)> {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    let one_host = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback() && !broadcast;
    (one_host && is_station(mac)).then_some((ip, mac))
}

fn is_station(mac: MacAddr) -> bool {
    !mac.is_multicast() && mac != MacAddr::default()
}

#[cfg(test)]
mod tests;
