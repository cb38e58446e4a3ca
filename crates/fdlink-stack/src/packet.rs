//! IP headers as the stack needs them: found in a packet that arrived, written in front of a
//! packet that leaves, and the transport headers' fixed fields.
//!
//! # Theory of operation
//!
//! [`parse`] walks a packet once, from the version nibble to the transport header, and gives an
//! [`IpView`]: addresses and offsets, no borrowed bytes. Every offset in a view lies inside the
//! packet it was made from, so later code may index with them as long as the packet keeps its
//! length. Nothing else in the crate walks IP headers.
//!
//! * IPv4 (RFC 791): the header checksum is verified; options are skipped.
//! * IPv6 (RFC 8200 section 4): hop-by-hop and destination options, routing and fragment headers
//!   are walked by [`chain`]. A packet that still has segments left to visit, or an option that
//!   says "discard me if you do not know me", is refused (sections 4.2 and 4.4). An atomic fragment
//!   (offset 0, no more) is a whole packet (RFC 6946).
//! * Lengths: what lies behind the packet's own length is padding. A super-frame can be longer than
//!   the 16-bit field counts; then the field is 0 (BIG TCP) or has wrapped, and the slice's length
//!   counts. In a frame short enough for the field to tell the truth, the field is believed.
//! * A packet quoted in an ICMP error is cut short; [`parse_quoted`] takes what is there.
//!
//! What is not here: whether an address may be used, which is the stack's policy, and checksums of
//! the transport, which [`fdlink::offload::checksum`] verifies.
#![forbid(unsafe_code)]

mod chain;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use fdlink::offload::checksum::{self, Sum};

pub(crate) use chain::{FRAGMENT, HOP_BY_HOP, ROUTING};

/// Protocol numbers (IANA).
pub(crate) const ICMPV4: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) const IPV4_HEADER_LEN: usize = 20;
pub(crate) const IPV6_HEADER_LEN: usize = 40;
pub(crate) const FRAGMENT_HEADER_LEN: usize = 8;
pub(crate) const UDP_HEADER_LEN: usize = 8;
const TCP_HEADER_LEN: usize = 20;

/// "Don't fragment" and "more fragments" in the flags of IPv4.
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset below those flags, in units of 8 bytes.
const OFFSET_MASK: u16 = 0x1fff;

/// A packet's IP header, walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IpView {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Of the transport, after extension headers; for a fragment, what its fragment header names.
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
    pub(crate) dscp_ecn: u8,
    /// Offset of the transport header; in a fragment, of the fragment's data.
    pub(crate) transport: usize,
    /// End of the packet by its length field; bytes behind it are padding.
    pub(crate) end: usize,
    pub(crate) fragment: Option<Fragment>,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) ident: u32,
    /// Of its data in the whole packet's, in bytes.
    pub(crate) offset: usize,
    pub(crate) more: bool,
    /// Length of the header part that every fragment repeats, IPv6's fragment header not included.
    pub(crate) unfragmentable: usize,
    /// IPv6: offset of the byte in the repeated part that names the fragment header.
    pub(crate) named_at: usize,
}

/// Why a packet is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("shorter than its headers say")]
    Short,
    #[error("neither IPv4 nor IPv6")]
    Version,
    #[error("an IPv4 header length below 20 bytes")]
    HeaderLength,
    #[error("a total length that does not fit the header or the frame")]
    TotalLength,
    #[error("a wrong IPv4 header checksum")]
    HeaderChecksum,
    #[error("extension headers out of bounds, out of order or too many")]
    ExtensionChain,
    #[error("an option that asks to be discarded where it is not known")]
    UnknownOption,
    #[error("a routing header with segments left")]
    Routing,
}

/// How much of the packet must be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All of it, and the IPv4 header checksum right.
    Whole,
    /// As much as an ICMP error quotes: cut short, its header perhaps changed on the way.
    Quoted,
}

/// Walks the headers of an IP packet.
pub(crate) fn parse(packet: &[u8]) -> Result<IpView, Malformed> {
    parse_extent(packet, Extent::Whole)
}

/// Walks the headers of a packet that may have been cut short. The IPv4 header checksum is not
/// looked at: what is quoted has crossed a hop that may have changed it (RFC 1812 section 4.3.2.3).
pub(crate) fn parse_quoted(packet: &[u8]) -> Result<IpView, Malformed> {
    parse_extent(packet, Extent::Quoted)
}

fn parse_extent(packet: &[u8], extent: Extent) -> Result<IpView, Malformed> {
    match packet.first().ok_or(Malformed::Short)? >> 4 {
        4 => parse_v4(packet, extent),
        6 => parse_v6(packet, extent),
        _ => Err(Malformed::Version),
    }
}

fn parse_v4(packet: &[u8], extent: Extent) -> Result<IpView, Malformed> {
    let fixed = packet.first_chunk::<IPV4_HEADER_LEN>().ok_or(Malformed::Short)?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    if header_len < IPV4_HEADER_LEN {
        return Err(Malformed::HeaderLength);
    }
    let header = packet.get(..header_len).ok_or(Malformed::Short)?;
    if extent == Extent::Whole && checksum::sum(header).finish() != 0 {
        return Err(Malformed::HeaderChecksum);
    }
    let end = end_of_packet(packet, 0, be16(fixed, 2), extent)?;
    if end < header_len {
        return Err(Malformed::TotalLength);
    }
    let flags = be16(fixed, 6);
    let (offset, more) = (usize::from(flags & OFFSET_MASK) * 8, flags & MORE_FRAGMENTS != 0);
    let fragment = (offset > 0 || more).then(|| Fragment {
        ident: be16(fixed, 4).into(),
        offset,
        more,
        unfragmentable: header_len,
        named_at: 9,
    });
    Ok(IpView {
        source: v4_at(fixed, 12),
        destination: v4_at(fixed, 16),
        protocol: fixed[9],
        hop_limit: fixed[8],
        dscp_ecn: fixed[1],
        transport: header_len,
        end,
        fragment,
    })
}

fn parse_v6(packet: &[u8], extent: Extent) -> Result<IpView, Malformed> {
    let fixed = packet.first_chunk::<IPV6_HEADER_LEN>().ok_or(Malformed::Short)?;
    let end = end_of_packet(packet, IPV6_HEADER_LEN, be16(fixed, 4), extent)?;
    let chain = chain::walk(&packet[..end], fixed[6])?;
    Ok(IpView {
        source: v6_at(fixed, 8),
        destination: v6_at(fixed, 24),
        protocol: chain.protocol,
        hop_limit: fixed[7],
        dscp_ecn: (fixed[0] << 4) | (fixed[1] >> 4),
        transport: chain.transport,
        end,
        fragment: chain.fragment,
    })
}

/// Where the packet ends: `base` and what its length field counts from there.
fn end_of_packet(
    packet: &[u8],
    base: usize,
    field: u16,
    extent: Extent,
) -> Result<usize, Malformed> {
    let counted = packet.len().saturating_sub(base);
    let beyond = counted > usize::from(u16::MAX);
    if beyond && (field == 0 || usize::from(field) == counted & usize::from(u16::MAX)) {
        return Ok(packet.len());
    }
    let end = base + usize::from(field);
    match extent {
        Extent::Whole if end > packet.len() => Err(Malformed::TotalLength),
        Extent::Whole => Ok(end),
        // A super-frame's field is 0 in the quote as well.
        Extent::Quoted if field == 0 => Ok(packet.len()),
        Extent::Quoted => Ok(end.min(packet.len())),
    }
}

/// Length of the header that [`write_header`] writes.
pub(crate) fn header_len(of: IpAddr) -> usize {
    match of {
        IpAddr::V4(_) => IPV4_HEADER_LEN,
        IpAddr::V6(_) => IPV6_HEADER_LEN,
    }
}

/// Writes an IP header without options and gives its length; 0, and nothing written, if `out` is
/// too short or the addresses are of different versions.
///
/// `ident` 0 says that the packet is not to be fragmented: "don't fragment" is set, and the field
/// needs no unique value (RFC 6864 section 4.1). A packet too long for the length field has 0
/// there.
pub(crate) fn write_header(
    out: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload_len: usize,
    ident: u16,
    hop_limit: u8,
) -> usize {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let Some(out) = out.first_chunk_mut::<IPV4_HEADER_LEN>() else { return 0 };
            let total = payload_len.saturating_add(IPV4_HEADER_LEN);
            let flags = if ident == 0 { DONT_FRAGMENT } else { 0 };
            out[0] = 0x45;
            out[1] = 0;
            out[2..4].copy_from_slice(&length_field(total));
            out[4..6].copy_from_slice(&ident.to_be_bytes());
            out[6..8].copy_from_slice(&flags.to_be_bytes());
            out[8] = hop_limit;
            out[9] = protocol;
            out[12..16].copy_from_slice(&source.octets());
            out[16..].copy_from_slice(&destination.octets());
            fill_header_checksum(out);
            IPV4_HEADER_LEN
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let Some(out) = out.first_chunk_mut::<IPV6_HEADER_LEN>() else { return 0 };
            out[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            out[4..6].copy_from_slice(&length_field(payload_len));
            out[6] = protocol;
            out[7] = hop_limit;
            out[8..24].copy_from_slice(&source.octets());
            out[24..].copy_from_slice(&destination.octets());
            IPV6_HEADER_LEN
        }
        _ => 0,
    }
}

fn length_field(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(0).to_be_bytes()
}

/// Puts the checksum into an IPv4 header of at least 20 bytes (RFC 791 section 3.1).
pub(crate) fn fill_header_checksum(header: &mut [u8]) {
    if header.len() >= IPV4_HEADER_LEN {
        let sum = checksum::ipv4_header_checksum(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The pseudo header's sum, folded and not complemented: what a checksum field holds when the rest
/// is left to the other side. 0 for addresses of different versions.
pub(crate) fn pseudo_header_sum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    len: usize,
) -> u16 {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => checksum::pseudo_header_v4(from, to, protocol, len),
        (IpAddr::V6(from), IpAddr::V6(to)) => checksum::pseudo_header_v6(from, to, protocol, len),
        _ => Sum::default(),
    }
    .value()
}

/// The checksum over a transport header and payload whose checksum field holds 0: what goes there.
/// Never 0 for UDP, where that means that there is none (RFC 768).
pub(crate) fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    segment: &[u8],
) -> u16 {
    let sum = transport_sum(source, destination, protocol, segment);
    if protocol == UDP { sum.finish_nonzero() } else { sum.finish() }
}

/// Whether the checksum in a packet's transport header, which lies in `segment`, is right.
pub(crate) fn transport_is_valid(view: &IpView, protocol: u8, segment: &[u8]) -> bool {
    transport_sum(view.source, view.destination, protocol, segment).finish() == 0
}

fn transport_sum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> Sum {
    let sum = checksum::sum(segment);
    if protocol == ICMPV4 {
        // RFC 792: the only transport here without a pseudo header.
        return sum;
    }
    sum.combine(Sum::of_word(pseudo_header_sum(source, destination, protocol, segment.len())))
}

/// A UDP header, and where its payload lies in the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Udp {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload: Range<usize>,
}

/// Reads the UDP header of a packet that is whole; `None` for a fragment, another protocol, and a
/// length that does not fit.
pub(crate) fn parse_udp(packet: &[u8], view: &IpView) -> Option<Udp> {
    let datagram = transport(packet, view, UDP)?;
    let header = datagram.first_chunk::<UDP_HEADER_LEN>()?;
    let len = match usize::from(be16(header, 4)) {
        // As in the IP header: a super-frame's length does not fit the field (RFC 2675 section 4).
        0 if datagram.len() > usize::from(u16::MAX) => datagram.len(),
        len => len,
    };
    if !(UDP_HEADER_LEN..=datagram.len()).contains(&len) {
        return None;
    }
    Some(Udp {
        source_port: be16(header, 0),
        destination_port: be16(header, 2),
        payload: view.transport + UDP_HEADER_LEN..view.transport + len,
    })
}

/// The fixed fields of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// Options included.
    pub(crate) header_len: usize,
}

/// Reads the TCP header of a packet that is whole; `None` for a fragment, another protocol, and a
/// header that does not fit.
pub(crate) fn parse_tcp(packet: &[u8], view: &IpView) -> Option<Tcp> {
    let segment = transport(packet, view, TCP)?;
    let header = segment.first_chunk::<TCP_HEADER_LEN>()?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if !(TCP_HEADER_LEN..=segment.len()).contains(&header_len) {
        return None;
    }
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    Some(Tcp {
        source_port: be16(header, 0),
        destination_port: be16(header, 2),
        flags: header[13],
        seq: word(4),
        ack: word(8),
        header_len,
    })
}

/// The transport's bytes of a whole packet of that protocol.
pub(crate) fn transport<'a>(packet: &'a [u8], view: &IpView, protocol: u8) -> Option<&'a [u8]> {
    if view.protocol != protocol || view.fragment.is_some() {
        return None;
    }
    packet.get(view.transport..view.end)
}

/// Two bytes at an offset that the caller knows to lie inside.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn v4_at(header: &[u8; IPV4_HEADER_LEN], at: usize) -> IpAddr {
    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into()
}

fn v6_at(header: &[u8; IPV6_HEADER_LEN], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    Ipv6Addr::from(octets).into()
}

#[cfg(test)]
pub(crate) mod tests;
