//! A hash of the flow that a packet belongs to, the same in both directions: it spreads flows over
//! queues and keeps each of them, with its answers, on one.
//!
//! # Theory of operation
//!
//! What goes in, each as a 64-bit word in network order:
//!
//! ```text
//!  lower address (IPv4: both addresses, one word; IPv6: two words each), higher address
//!  port of the lower, port of the higher, protocol
//! ```
//!
//! The ends are sorted by address, then by port, as the kernel does (`__flow_hash_consistentify`,
//! net/core/flow_dissector.c), which makes both directions the same. Fragments have no ports, not
//! even the first, so that all of a packet go one way; nor have packets that are cut short before
//! them. Options, IPv6 extension headers and the flow label do not count: a flow may change them.
//!
//! Each word is mixed in by a step that can be undone, so that two flows whose words differ in one
//! place only never have the same hash. The same packet and seed give the same value on every
//! machine and in every release. The seed keeps outsiders from guessing which flows meet in a
//! queue; the hash is not made to withstand one who sees its values, so tables use their own.
#![forbid(unsafe_code)]

use super::ip::{IPPROTO_TCP, IPPROTO_UDP, IpPacket, Version};

// linux/in.h
const IPPROTO_DCCP: u8 = 33;
const IPPROTO_SCTP: u8 = 132;
const IPPROTO_UDPLITE: u8 = 136;

/// The hash of an IP packet's flow: of addresses, protocol and, where there are, ports. Only the
/// headers need to be there. 0 for what is not IP or is cut short in its network headers.
pub fn flow_hash(packet: &[u8], seed: u64) -> u64 {
    let Some(packet) = IpPacket::parse(packet) else {
        return 0;
    };
    let addresses = packet.addresses();
    let (source, destination) = addresses.split_at(addresses.len() / 2);
    let (source_port, destination_port) = ports(&packet);
    let source = (source, source_port);
    let destination = (destination, destination_port);
    let (low, high) =
        if source <= destination { (source, destination) } else { (destination, source) };
    let hash = match packet.version {
        Version::V4 => mix(seed, [word(low.0) << 32 | word(high.0)]),
        Version::V6 => {
            let ((a, b), (c, d)) = (low.0.split_at(8), high.0.split_at(8));
            mix(seed, [word(a), word(b), word(c), word(d)])
        }
    };
    let ports = u64::from(low.1) << 16 | u64::from(high.1);
    mix(hash, [ports << 8 | u64::from(packet.protocol)])
}

/// Which of `queues` a hash falls to, evenly; 0 where there are none.
pub fn pick(hash: u64, queues: usize) -> usize {
    // `usize` is 64 bits wide, or the value is less than `queues`: neither conversion fails.
    let queues = u64::try_from(queues).unwrap_or(u64::MAX);
    hash.checked_rem(queues).map_or(0, |queue| usize::try_from(queue).unwrap_or(0))
}

/// Source and destination port, or 0 and 0.
fn ports(packet: &IpPacket<'_>) -> (u16, u16) {
    let has_ports = matches!(
        packet.protocol,
        IPPROTO_TCP | IPPROTO_UDP | IPPROTO_DCCP | IPPROTO_SCTP | IPPROTO_UDPLITE
    );
    match packet.payload() {
        &[a, b, c, d, ..] if has_ports && !packet.fragment => {
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }
        _ => (0, 0),
    }
}

/// Eight bytes, or an IPv4 address's four, as a number in network order.
fn word(bytes: &[u8]) -> u64 {
    match *bytes {
        [a, b, c, d] => u64::from(u32::from_be_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}

/// The finalizer of MurmurHash3 (Austin Appleby, public domain) after each word: a bijection whose
/// every input bit changes every output bit in about half of the cases.
fn mix<const N: usize>(seed: u64, words: [u64; N]) -> u64 {
    words.into_iter().fold(seed, |hash, word| {
        // Without the constant, a seed of 0 would leave a word of 0 as it is.
        let mut x = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ x >> 33
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet from port 1000 at 10.0.0.1 to port 80 at 10.0.0.2.
    fn v4(protocol: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 24, 0, 1, 0, 0, 64, protocol, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x03, 0xe8, 0, 80]);
        packet
    }

    /// The same over IPv6, between ::1 and ::2, behind the extension headers in `chain`.
    fn v6(protocol: u8, chain: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        packet.extend([0; 15].into_iter().chain([1]).chain([0; 15]).chain([2]));
        packet.extend(chain);
        packet.extend([0x03, 0xe8, 0, 80]);
        packet
    }

    /// The answer to an IPv4 packet without options.
    fn answer(packet: &[u8]) -> Vec<u8> {
        let mut answer = packet.to_vec();
        answer[12..16].copy_from_slice(&packet[16..20]);
        answer[16..20].copy_from_slice(&packet[12..16]);
        answer[20..22].copy_from_slice(&packet[22..24]);
        answer[22..24].copy_from_slice(&packet[20..22]);
        answer
    }

    fn changed(packet: &[u8], at: usize, value: u8) -> Vec<u8> {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    }

    #[test]
    fn values_never_change() {
        // Worked out apart from this code, from the description on top.
        assert_eq!(flow_hash(&v4(6), 1), 0x1dd5_422a_94de_f3a7);
        assert_eq!(flow_hash(&v6(6, &[]), 1), 0x9d04_4637_3410_b05c);
    }

    #[test]
    fn both_directions_are_one_flow() {
        assert_eq!(flow_hash(&v4(6), 7), flow_hash(&answer(&v4(6)), 7));
        let same_host = changed(&v4(17), 19, 1);
        assert_eq!(flow_hash(&same_host, 7), flow_hash(&answer(&same_host), 7));
    }

    #[test]
    fn what_makes_another_flow() {
        let base = flow_hash(&v4(6), 0);
        for (name, packet) in [
            ("an address", changed(&v4(6), 15, 9)),
            ("a port", changed(&v4(6), 23, 81)),
            ("the protocol", v4(17)),
            (
                "ports the other way round",
                answer(&v4(6))[..20].iter().chain(&v4(6)[20..]).copied().collect(),
            ),
        ] {
            assert_ne!(flow_hash(&packet, 0), base, "{name}");
        }
        assert_ne!(flow_hash(&v4(6), 1), base, "the seed");
    }

    #[test]
    fn what_does_not() {
        let base = flow_hash(&v4(6), 0);
        let mut options = changed(&v4(6), 0, 0x46);
        options.splice(20..20, [1, 1, 1, 0]);
        for (name, packet) in [
            ("the id", changed(&v4(6), 5, 99)),
            ("the time to live", changed(&v4(6), 8, 1)),
            ("options", options),
            ("more bytes", [&v4(6)[..], &[1, 2, 3]].concat()),
        ] {
            assert_eq!(flow_hash(&packet, 0), base, "{name}");
        }
        let hop_by_hop = v6(0, &[6, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(flow_hash(&hop_by_hop, 0), flow_hash(&v6(6, &[]), 0));
    }

    #[test]
    fn fragments_of_a_packet_go_one_way() {
        let first = changed(&v4(17), 6, 0x20);
        let later = changed(&changed(&v4(17), 7, 100), 20, 0xff);
        assert_eq!(flow_hash(&first, 0), flow_hash(&later, 0));
        let first = v6(44, &[17, 0, 0, 1, 0, 0, 0, 1]);
        let later = changed(&v6(44, &[17, 0, 4, 0, 0, 0, 0, 1]), 48, 0xff);
        assert_eq!(flow_hash(&first, 0), flow_hash(&later, 0));
    }

    #[test]
    fn no_ports_without_a_protocol_that_has_them() {
        assert_eq!(flow_hash(&v4(1), 0), flow_hash(&changed(&v4(1), 21, 1), 0));
        assert_ne!(flow_hash(&v4(132), 0), flow_hash(&changed(&v4(132), 21, 1), 0));
        assert_eq!(flow_hash(&v4(6)[..20], 0), flow_hash(&v4(6)[..23], 0));
    }

    #[test]
    fn what_is_not_ip_has_no_hash() {
        for packet in [&[][..], &[0; 60], &[0x45; 19], &[0x60; 39]] {
            assert_eq!(flow_hash(packet, 1), 0);
        }
    }

    #[test]
    fn flows_spread_over_queues() {
        let mut counts = [0; 4];
        for port in 0..=255 {
            counts[pick(flow_hash(&changed(&v4(6), 21, port), 0), 4)] += 1;
        }
        // 64 are expected in each; five standard deviations (7 each) on either side.
        assert!(counts.iter().all(|count| (29..=99).contains(count)), "{counts:?}");
        assert_eq!((pick(u64::MAX, 0), pick(u64::MAX, 1)), (0, 0));
    }
}
