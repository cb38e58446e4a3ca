//! The network headers of a packet, walked once and within bounds: what checksums, segmentation
//! and the flow hash need to know of them.
//!
//! # Theory of operation
//!
//! ```text
//!  0                    headers_len                 declared_len     bytes.len()
//!  | IPv4 with options  | transport header, payload | link padding   |
//!  | IPv6, extensions   | (or a fragment's part)    |                |
//! ```
//!
//! Only `headers_len <= bytes.len()` is certain: the packet may be cut short behind its headers (a
//! caller may hold no more than them), and its own length field may say anything. Who reads past
//! the headers checks the length by the rule that holds there.
//!
//! IPv6 extension headers are those of RFC 8200, section 4, and of the IANA registry that have
//! its format; ESP and "no next header" end the walk, and so does the header of a real fragment,
//! behind which the same protocol number stands in every fragment of a packet.
#![forbid(unsafe_code)]

/// Length of an IPv4 header without options (RFC 791, section 3.1).
const IPV4_HEADER_LEN: usize = 20;
/// Length of an IPv6 header (RFC 8200, section 3).
pub(super) const IPV6_HEADER_LEN: usize = 40;

/// Protocol numbers of IANA's registry, under their names in linux/in.h and linux/in6.h.
const IPPROTO_HOPOPTS: u8 = 0;
pub(super) const IPPROTO_ICMP: u8 = 1;
pub(super) const IPPROTO_TCP: u8 = 6;
pub(super) const IPPROTO_UDP: u8 = 17;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
pub(super) const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;
const IPPROTO_MH: u8 = 135;
const IPPROTO_HIP: u8 = 139;
const IPPROTO_SHIM6: u8 = 140;

/// How many extension headers are walked: more is nobody's traffic but an attempt to make the walk
/// long (`MAX_FLOW_DISSECT_HDRS`, net/core/flow_dissector.c).
const MAX_EXTENSIONS: usize = 15;

/// Which IP it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

/// A packet whose network headers lie within its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct IpPacket<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) version: Version,
    /// Length of all network headers, options and extensions included.
    pub(super) headers_len: usize,
    /// What follows them.
    pub(super) protocol: u8,
    /// What the header says of the packet's length, headers included.
    pub(super) declared_len: usize,
    /// Whether it is one of several fragments, the first included.
    pub(super) fragment: bool,
    /// Whether it has routers to visit yet, so that its destination is not the pseudo-header's
    /// (RFC 8200, section 8.1).
    pub(super) routed: bool,
    /// Whether it has extension headers other than those that Linux copies when it cuts a packet
    /// (`INET6_PROTO_GSO_EXTHDR`, net/ipv6/exthdrs_offload.c).
    pub(super) odd_extensions: bool,
}

impl<'a> IpPacket<'a> {
    /// Walks the headers; `None` for what is not IP and for headers that reach past the end.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<IPV4_HEADER_LEN>()?;
        let headers_len = usize::from(header[0] & 0xf) * 4;
        if headers_len < IPV4_HEADER_LEN || headers_len > bytes.len() {
            return None;
        }
        // MF and the offset; DF says nothing here.
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        Some(Self {
            bytes,
            version: Version::V4,
            headers_len,
            protocol: header[9],
            declared_len: usize::from(u16::from_be_bytes([header[2], header[3]])),
            fragment,
            routed: false,
            odd_extensions: false,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<IPV6_HEADER_LEN>()?;
        let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut packet = Self {
            bytes,
            version: Version::V6,
            headers_len: IPV6_HEADER_LEN,
            protocol: header[6],
            declared_len: IPV6_HEADER_LEN + payload_len,
            fragment: false,
            routed: false,
            odd_extensions: false,
        };
        for _ in 0..=MAX_EXTENSIONS {
            let Some(extension) = packet.extension()? else {
                return Some(packet);
            };
            packet.headers_len += extension.len();
            packet.protocol = extension[0];
            if packet.fragment {
                return Some(packet);
            }
        }
        None
    }

    /// The extension header that is next, with what it says noted down; `None` inside where it is
    /// no extension, outside where it reaches past the end.
    fn extension(&mut self) -> Option<Option<&'a [u8]>> {
        let rest = self.bytes.get(self.headers_len..)?;
        let units = |rest: &[u8]| rest.get(1).copied().map(usize::from);
        let len = match self.protocol {
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_MH | IPPROTO_HIP
            | IPPROTO_SHIM6 => (units(rest)? + 1) * 8,
            // RFC 4302, section 2.2: in 32-bit words, minus 2.
            IPPROTO_AH => (units(rest)? + 2) * 4,
            IPPROTO_FRAGMENT => 8,
            _ => return Some(None),
        };
        let extension = rest.get(..len)?;
        self.odd_extensions |=
            !matches!(self.protocol, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS);
        match self.protocol {
            IPPROTO_ROUTING => self.routed |= extension[3] != 0,
            // An "atomic fragment" (offset 0, M 0) is a whole packet (RFC 6946).
            IPPROTO_FRAGMENT => {
                self.fragment = u16::from_be_bytes([extension[2], extension[3]]) & 0xfff9 != 0;
            }
            _ => {}
        }
        Some(Some(extension))
    }

    /// Whether the length is in a hop-by-hop option and the header's field is 0 (RFC 2675).
    pub(super) fn is_jumbogram(&self) -> bool {
        self.version == Version::V6
            && self.declared_len == IPV6_HEADER_LEN
            && self.bytes[6] == IPPROTO_HOPOPTS
    }

    /// Whether the packet is as long as its header says. A super-frame may be longer than the
    /// header's 16 bits can say: then they are 0 (the kernel's BIG TCP) or what is left of the
    /// length (AF_PACKET lets that pass).
    pub(super) fn spans_its_bytes(&self) -> bool {
        let uncounted = match self.version {
            Version::V4 => 0,
            Version::V6 => IPV6_HEADER_LEN,
        };
        let (said, is) = (self.declared_len - uncounted, self.bytes.len() - uncounted);
        said == is || is > 0xffff && (said == 0 || said == is & 0xffff)
    }

    /// Source and destination address, one after the other as they stand in the header.
    pub(super) fn addresses(&self) -> &'a [u8] {
        match self.version {
            Version::V4 => &self.bytes[12..20],
            Version::V6 => &self.bytes[8..40],
        }
    }

    /// What follows the network headers, as far as there are bytes.
    pub(super) fn payload(&self) -> &'a [u8] {
        &self.bytes[self.headers_len..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER_LEN];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
        packet[6] = next;
        packet.extend(rest);
        packet
    }

    #[test]
    fn extension_headers_are_walked() {
        // Next header, bytes behind the IPv6 header; then protocol, length of headers, flags.
        let cases: [(u8, Vec<u8>, u8, usize, bool, bool); 8] = [
            (IPPROTO_TCP, vec![], IPPROTO_TCP, 40, false, false),
            (IPPROTO_HOPOPTS, vec![6, 0, 1, 4, 0, 0, 0, 0], 6, 48, false, false),
            (
                IPPROTO_DSTOPTS,
                [[17, 1], [0; 2], [0; 2], [0; 2]].concat().repeat(2),
                17,
                56,
                false,
                false,
            ),
            (IPPROTO_ROUTING, vec![6, 0, 4, 0, 0, 0, 0, 0], 6, 48, false, false),
            (IPPROTO_ROUTING, vec![6, 0, 4, 1, 0, 0, 0, 0], 6, 48, false, true),
            (IPPROTO_AH, vec![6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 6, 52, false, false),
            (IPPROTO_FRAGMENT, vec![6, 0, 0, 0, 0, 0, 0, 9], 6, 48, false, false),
            // The fragment's own bytes look like one more extension and must not be walked.
            (IPPROTO_FRAGMENT, vec![0, 0, 0, 8, 0, 0, 0, 9, 6, 0], 0, 48, true, false),
        ];
        for (next, rest, protocol, headers_len, fragment, routed) in cases {
            let bytes = v6(next, &rest);
            let packet = IpPacket::parse(&bytes).unwrap();
            let got = (packet.protocol, packet.headers_len, packet.fragment, packet.routed);
            assert_eq!(got, (protocol, headers_len, fragment, routed), "{next} {rest:?}");
            assert_eq!(packet.declared_len, bytes.len());
        }
    }

    #[test]
    fn headers_that_reach_past_the_end_are_none() {
        let mut long_v4 = [0; 20];
        long_v4[0] = 0x46;
        let mut short_v4 = [0; 24];
        short_v4[0] = 0x44;
        let cases: [&[u8]; 9] = [
            &[],
            &[0x45; 19],
            &[0x60; 39],
            &[0x50; 60],
            &long_v4,
            &short_v4,
            &v6(IPPROTO_HOPOPTS, &[6]),
            &v6(IPPROTO_HOPOPTS, &[6, 1, 0, 0, 0, 0, 0, 0]),
            &v6(IPPROTO_FRAGMENT, &[6, 0, 0, 0, 0, 0, 0]),
        ];
        for bytes in cases {
            assert!(IpPacket::parse(bytes).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn a_chain_of_extensions_that_goes_on_and_on_is_none() {
        let chain = |count: usize| {
            let mut rest = [IPPROTO_DSTOPTS, 0, 0, 0, 0, 0, 0, 0].repeat(count);
            rest[(count - 1) * 8] = IPPROTO_TCP;
            v6(IPPROTO_DSTOPTS, &rest)
        };
        assert!(IpPacket::parse(&chain(MAX_EXTENSIONS)).is_some());
        assert!(IpPacket::parse(&chain(MAX_EXTENSIONS + 1)).is_none());
    }

    #[test]
    fn ipv4_fragments_are_told_from_dont_fragment() {
        let cases = [(0x0000, false), (0x4000, false), (0x2000, true), (0x0001, true)];
        for (field, fragment) in cases {
            let mut bytes = [0; 20];
            bytes[0] = 0x45;
            bytes[6..8].copy_from_slice(&u16::to_be_bytes(field));
            assert_eq!(IpPacket::parse(&bytes).unwrap().fragment, fragment, "{field:#x}");
        }
    }
}
