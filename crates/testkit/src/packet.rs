//! Builders of packets and frames with right checksums, written for clarity and on their own: they
//! share no code with what they test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// EtherTypes.
pub const ETH_IPV4: u16 = 0x0800;
/// ARP.
pub const ETH_ARP: u16 = 0x0806;
/// IPv6.
pub const ETH_IPV6: u16 = 0x86dd;
/// Free for experiments (IEEE 802), so no kernel answers to it.
pub const ETH_EXPERIMENT: u16 = 0x88b5;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// TCP flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// First segment.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// An Ethernet frame.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], protocol: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &protocol.to_be_bytes(), payload].concat()
}

/// An Ethernet frame around an IP packet.
pub fn ethernet_ip(destination: [u8; 6], source: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let protocol = if packet[0] >> 4 == 4 { ETH_IPV4 } else { ETH_IPV6 };
    ethernet(destination, source, protocol, packet)
}

/// A frame of `len` bytes that no kernel answers to: to a group nobody is in, an experimental
/// EtherType, then a pattern that starts from `seed`. At least 14 bytes.
pub fn pattern_frame(len: usize, seed: u8) -> Vec<u8> {
    let payload: Vec<u8> = (0..len - 14).map(|i| pattern_byte(seed, i)).collect();
    ethernet([0x02, 0, 0, 0, 0, 0x42], [0x02, 0, 0, 0, 0, 0x24], ETH_EXPERIMENT, &payload)
}

/// An IPv4 packet of `len` bytes of an experimental protocol, with a pattern that starts from
/// `seed`: for links without a link header. At least 20 bytes.
pub fn pattern_packet(len: usize, seed: u8) -> Vec<u8> {
    // RFC 3692: protocol 253 is for experiments.
    let payload: Vec<u8> = (0..len - 20).map(|i| pattern_byte(seed, i)).collect();
    ipv4(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2), 253, &payload)
}

fn pattern_byte(seed: u8, i: usize) -> u8 {
    seed.wrapping_add(u8::try_from((i ^ (i >> 8)) & 0xff).unwrap_or(0))
}

/// Who asks, or answers, whom.
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// The sender's link address.
    pub sender_mac: [u8; 6],
    /// The sender's IP address.
    pub sender: Ipv4Addr,
    /// The target's link address; zeros in a question.
    pub target_mac: [u8; 6],
    /// The target's IP address.
    pub target: Ipv4Addr,
}

/// An ARP packet (RFC 826), without a link header.
pub fn arp(arp: Arp) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(arp.operation.to_be_bytes());
    packet.extend(arp.sender_mac);
    packet.extend(arp.sender.octets());
    packet.extend(arp.target_mac);
    packet.extend(arp.target.octets());
    packet
}

/// An IPv4 packet (RFC 791) that may not be fragmented.
///
/// # Panics
///
/// Where it is longer than 65535 bytes.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).expect("an IPv4 packet below 64 KiB");
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv6 packet (RFC 8200).
///
/// # Panics
///
/// Where its payload is longer than 65535 bytes.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("an IPv6 payload below 64 KiB");
    // Neighbour discovery is believed only with a hop limit of 255 (RFC 4861).
    let hop_limit = if protocol == ICMPV6 { 255 } else { 64 };
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([protocol, hop_limit]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// What a TCP segment says.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    /// From where.
    pub source: SocketAddr,
    /// To where; of the same family.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Of [`flag`].
    pub flags: u8,
    /// Unscaled.
    pub window: u16,
    /// Options, a multiple of 4 bytes.
    pub options: &'a [u8],
    /// Data.
    pub payload: &'a [u8],
}

/// An IP packet with a TCP segment (RFC 9293).
///
/// # Panics
///
/// Where it is longer than IP allows, or the families differ.
pub fn tcp(tcp: Tcp<'_>) -> Vec<u8> {
    let words = u8::try_from(5 + tcp.options.len() / 4).expect("at most 40 bytes of options");
    let mut segment = tcp.source.port().to_be_bytes().to_vec();
    segment.extend(tcp.destination.port().to_be_bytes());
    segment.extend(tcp.seq.to_be_bytes());
    segment.extend(tcp.ack.to_be_bytes());
    segment.extend([words << 4, tcp.flags]);
    segment.extend(tcp.window.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(tcp.options);
    segment.extend(tcp.payload);
    transport(tcp.source.ip(), tcp.destination.ip(), TCP, segment, 16)
}

/// An IP packet with a UDP datagram (RFC 768).
///
/// # Panics
///
/// Where it is longer than IP allows, or the families differ.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("a datagram below 64 KiB");
    let mut datagram = source.port().to_be_bytes().to_vec();
    datagram.extend(destination.port().to_be_bytes());
    datagram.extend(len.to_be_bytes());
    datagram.extend([0; 2]);
    datagram.extend(payload);
    transport(source.ip(), destination.ip(), UDP, datagram, 6)
}

/// An IP packet with an ICMP or ICMPv6 echo request.
///
/// # Panics
///
/// Where it is longer than IP allows, or the families differ.
pub fn echo_request(
    source: IpAddr,
    destination: IpAddr,
    (id, seq): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let kind = if source.is_ipv4() { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(seq.to_be_bytes());
    message.extend(payload);
    icmp(source, destination, message)
}

/// An IP packet with an ICMP or ICMPv6 message, whose checksum is put in.
///
/// # Panics
///
/// Where it is longer than IP allows, or the families differ.
pub fn icmp(source: IpAddr, destination: IpAddr, mut message: Vec<u8>) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            ipv4(from, to, ICMP, &message)
        }
        _ => transport(source, destination, ICMPV6, message, 2),
    }
}

/// The internet checksum (RFC 1071), byte by byte.
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The folded sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1): what stands in the checksum
/// field of a packet whose checksum is left to the other side.
///
/// # Panics
///
/// Where the families differ.
pub fn pseudo_header_sum(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u16 {
    let addresses = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => panic!("{source} and {destination} are of different families"),
    };
    let len = u64::try_from(len).expect("a length");
    fold(sum(&addresses) + u64::from(protocol) + (len >> 16) + (len & 0xffff))
}

fn transport(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    mut payload: Vec<u8>,
    checksum_at: usize,
) -> Vec<u8> {
    let pseudo = pseudo_header_sum(source, destination, protocol, payload.len());
    let sum = match !fold(sum(&payload) + u64::from(pseudo)) {
        // In UDP a checksum of zero means that there is none.
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    payload[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, &payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, &payload),
        _ => unreachable!("the pseudo-header was made of one family"),
    }
}

fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_rfc_1071() {
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&example), !0xddf2);
    }

    #[test]
    fn packets_sum_to_zero() {
        let source: SocketAddr = "[fd00::1]:1".parse().unwrap();
        let destination: SocketAddr = "[fd00::2]:2".parse().unwrap();
        let packet = udp(source, destination, b"odd");
        let len = packet.len() - 40;
        let pseudo = pseudo_header_sum(source.ip(), destination.ip(), UDP, len);
        assert_eq!(fold(sum(&packet[40..]) + u64::from(pseudo)), 0xffff);
        assert_eq!(checksum(&ipv4(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 6, &[])), 0);
    }
}
