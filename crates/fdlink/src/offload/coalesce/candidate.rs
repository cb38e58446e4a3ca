//! The rules of what goes together: whether a frame could have been cut from a super-frame, whether
//! it is the next one, and the headers of the super-frame that results. Which flows have one open,
//! and when it leaves, is the business of the [`Coalescer`](super::Coalescer).

use super::{FrameView, UDP_MAX_SEGMENTS};
use crate::offload::checksum::{Sum, ipv4_header_checksum, pseudo_header, sum};
use crate::offload::ip::{IPPROTO_TCP, IPPROTO_UDP, IPV6_HEADER_LEN, IpPacket, Version};
use crate::offload::segment::{TCP_CWR, TCP_FIN_PSH, Transport, transport_header_len};
use crate::offload::vnet::{ChecksumField, Gso, GsoKind, RxChecksum};

/// SYN, RST and URG in TCP's byte of flags (RFC 9293, section 3.1).
const TCP_SYN_RST_URG: u8 = 0x02 | 0x04 | 0x20;
/// Where TCP's byte of flags is in its header.
const TCP_FLAGS: usize = 13;
/// Longest packet of a super-frame: what an IPv4 header can say. (An IPv6 header does not count
/// itself and could say 40 bytes more, which no `gso_max_size` has room for by default.)
const MAX_PACKET_LEN: usize = 0xffff;

/// Whose frames keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// Both addresses; zeros behind IPv4's.
    addresses: [u8; 32],
    /// Protocol and ports. A fragment has none, nor has what is neither TCP nor UDP.
    ports: Option<(u8, [u8; 4])>,
}

impl Flow {
    pub(super) fn of(packet: &IpPacket<'_>) -> Self {
        let mut addresses = [0; 32];
        for (to, from) in addresses.iter_mut().zip(packet.addresses()) {
            *to = *from;
        }
        let has_ports = matches!(packet.protocol, IPPROTO_TCP | IPPROTO_UDP) && !packet.fragment;
        let ports = packet.payload().first_chunk().filter(|_| has_ports);
        Self { addresses, ports: ports.map(|ports| (packet.protocol, *ports)) }
    }

    /// Whether `other`, whose ports may not be known, may be the same.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        self.addresses == other.addresses && (other.ports.is_none() || self.ports == other.ports)
    }
}

/// How the headers of a frame lie, and the state of its checksum: the same in all of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    version: Version,
    transport: Transport,
    network_at: usize,
    /// Where the transport header begins, and its checksum's place.
    field: ChecksumField,
    /// Length of all headers, from the start of the frame.
    headers_len: u16,
    /// Whether the checksum is left partial.
    partial: bool,
}

impl Layout {
    fn transport_at(&self) -> usize {
        usize::from(self.field.start)
    }

    fn kind(&self) -> GsoKind {
        match (self.transport, self.version) {
            (Transport::Tcp, Version::V4) => GsoKind::TcpV4,
            (Transport::Tcp, Version::V6) => GsoKind::TcpV6,
            (Transport::Udp, _) => GsoKind::UdpSegments,
        }
    }

    /// Whether two frames' headers are the same but for what may differ (and is looked at
    /// elsewhere, or was found right in each frame for itself).
    fn same_headers(&self, one: &[u8], other: &[u8]) -> bool {
        let (network, transport) = (self.network_at, self.transport_at());
        // IPv4: length and id, header checksum. IPv6: length.
        let network = match self.version {
            Version::V4 => [network + 2..network + 6, network + 10..network + 12],
            Version::V6 => [network + 4..network + 6, network + 6..network + 6],
        };
        // TCP: sequence number, flags, checksum. UDP: length and checksum.
        let transport = match self.transport {
            Transport::Tcp => [
                transport + 4..transport + 8,
                transport + TCP_FLAGS..transport + TCP_FLAGS + 1,
                transport + 16..transport + 18,
            ],
            Transport::Udp => [4..8, 8..8, 8..8].map(|at| transport + at.start..transport + at.end),
        };
        let mut at = 0;
        for differs in network.into_iter().chain(transport) {
            if one[at..differs.start] != other[at..differs.start] {
                return false;
            }
            at = differs.end;
        }
        let end = usize::from(self.headers_len);
        one[at..end] == other[at..end]
    }
}

/// A frame that cutting a super-frame could have made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) bytes: &'a [u8],
    checksum: RxChecksum,
    layout: Layout,
    /// The pseudo-header's sum, all but the length.
    pseudo_header: Sum,
}

impl<'a> Candidate<'a> {
    /// `packet` is that of `frame`, behind a link header of that length.
    pub(super) fn of(
        frame: &FrameView<'a>,
        packet: &IpPacket<'_>,
        link_header_len: usize,
    ) -> Option<Self> {
        let transport = match packet.protocol {
            IPPROTO_TCP => Transport::Tcp,
            IPPROTO_UDP => Transport::Udp,
            _ => return None,
        };
        let whole = !(packet.fragment || packet.routed || packet.odd_extensions)
            && packet.declared_len == packet.bytes.len();
        if frame.gso.is_some() || !whole {
            return None;
        }
        let segment = packet.payload();
        let start = link_header_len + packet.headers_len;
        let headers_len = start + transport_header_len(transport, segment).ok()?;
        let offset = transport.checksum_offset();
        let layout = Layout {
            version: packet.version,
            transport,
            network_at: link_header_len,
            field: ChecksumField { start: u16::try_from(start).ok()?, offset },
            headers_len: u16::try_from(headers_len).ok()?,
            partial: matches!(frame.checksum, RxChecksum::Partial(_)),
        };
        let pseudo_header = pseudo_header(packet, 0);
        let this = Self { bytes: frame.bytes, checksum: frame.checksum, layout, pseudo_header };
        let never_cut = this.payload().is_empty()
            || transport == Transport::Tcp && this.flags() & TCP_SYN_RST_URG != 0;
        let network = &packet.bytes[..packet.headers_len];
        let network_right = packet.version == Version::V6
            || ipv4_header_checksum(network).to_be_bytes() == network[10..12];
        let right = !never_cut && network_right && this.has_the_checksum_of_a_cut(segment);
        right.then_some(this)
    }

    fn payload(&self) -> &'a [u8] {
        &self.bytes[usize::from(self.layout.headers_len)..]
    }

    /// Whether nothing can follow it in a super-frame, whatever its length.
    pub(super) fn is_last(&self) -> bool {
        self.layout.transport == Transport::Tcp && self.flags() & TCP_FIN_PSH != 0
    }

    fn flags(&self) -> u8 {
        self.bytes[self.layout.transport_at() + TCP_FLAGS]
    }

    /// Whether the checksum is the one that cutting writes: right, or partial with the right seed.
    fn has_the_checksum_of_a_cut(&self, segment: &[u8]) -> bool {
        let at = usize::from(self.layout.field.offset);
        let held = u16::from_be_bytes([segment[at], segment[at + 1]]);
        // 0 and 0xffff are one sum. TCP's is written as it is, and the sum of a pseudo-header is
        // never 0, so TCP's is never 0xffff; with UDP, 0 would mean none.
        let written = match self.layout.transport {
            Transport::Tcp => held != 0xffff,
            Transport::Udp => held != 0,
        };
        let pseudo_header = self.pseudo_header.combine(Sum::of_double_word(bounded(segment.len())));
        match self.checksum {
            RxChecksum::Partial(field) => {
                field == self.layout.field && held == pseudo_header.value()
            }
            RxChecksum::Unverified => written && pseudo_header.combine(sum(segment)).finish() == 0,
            RxChecksum::Valid => written,
        }
    }
}

/// A super-frame that may still grow, or a frame that is alone yet. Its bytes are in a buffer that
/// each method is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) flow: Flow,
    /// Its number among all that were begun.
    pub(super) begun: u64,
    layout: Layout,
    /// What the first frame came with.
    checksum: RxChecksum,
    pseudo_header: Sum,
    /// Length of all that is there.
    len: usize,
    /// Frames in it.
    count: usize,
    /// Payload of every frame but the last.
    size: usize,
    closed: bool,
}

impl Open {
    /// What a first frame makes, which the buffer holds.
    pub(super) fn new(candidate: &Candidate<'_>, flow: Flow, begun: u64) -> Self {
        Self {
            flow,
            begun,
            layout: candidate.layout,
            checksum: candidate.checksum,
            pseudo_header: candidate.pseudo_header,
            len: candidate.bytes.len(),
            count: 1,
            size: candidate.payload().len(),
            closed: false,
        }
    }

    /// Whether nothing more can be appended.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Appends a frame of the same flow, or says no and changes nothing.
    pub(super) fn append(&mut self, buffer: &mut [u8], candidate: &Candidate<'_>) -> bool {
        let payload = candidate.payload();
        let end = self.len + payload.len();
        let room = buffer.len().min(self.layout.network_at + MAX_PACKET_LEN);
        if end > room || payload.len() > self.size || !self.is_followed_by(buffer, candidate) {
            return false;
        }
        buffer[self.len..end].copy_from_slice(payload);
        if candidate.is_last() {
            buffer[self.layout.transport_at() + TCP_FLAGS] |= candidate.flags() & TCP_FIN_PSH;
        }
        self.len = end;
        self.count += 1;
        self.closed = candidate.is_last()
            || payload.len() < self.size
            || self.layout.transport == Transport::Udp && self.count == UDP_MAX_SEGMENTS;
        true
    }

    /// Whether cutting would give the frame's headers to the next piece.
    fn is_followed_by(&self, buffer: &[u8], next: &Candidate<'_>) -> bool {
        if self.layout != next.layout || !self.layout.same_headers(buffer, next.bytes) {
            return false;
        }
        let (network, transport) = (self.layout.network_at, self.layout.transport_at());
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let id = |bytes: &[u8]| u32::from(word(bytes, network + 4));
        let step = id(next.bytes).wrapping_sub(id(buffer)) & 0xffff;
        if self.layout.version == Version::V4 && step != bounded(self.count) & 0xffff {
            return false;
        }
        let seq = |bytes: &[u8]| {
            let at = transport + 4;
            u32::from(word(bytes, at)) << 16 | u32::from(word(bytes, at + 2))
        };
        let payload_len = bounded(self.len - usize::from(self.layout.headers_len));
        self.layout.transport == Transport::Udp
            || seq(next.bytes).wrapping_sub(seq(buffer)) == payload_len
                && next.flags() & !TCP_FIN_PSH == buffer[transport + TCP_FLAGS] & !TCP_CWR
    }

    /// What leaves: the frame as it came if it is alone, or the super-frame, headers and all.
    pub(super) fn finish<'b>(&self, buffer: &'b mut [u8]) -> FrameView<'b> {
        let bytes = &mut buffer[..self.len];
        if self.count == 1 {
            return FrameView::new(bytes, self.checksum);
        }
        let (network, transport) = bytes.split_at_mut(self.layout.transport_at());
        let network = &mut network[self.layout.network_at..];
        let packet_len = network.len() + transport.len();
        match self.layout.version {
            Version::V4 => {
                network[2..4].copy_from_slice(&word_of(packet_len));
                let checksum = ipv4_header_checksum(network);
                network[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            Version::V6 => {
                network[4..6].copy_from_slice(&word_of(packet_len - IPV6_HEADER_LEN));
            }
        }
        let ecn = match self.layout.transport {
            Transport::Tcp => transport[TCP_FLAGS] & TCP_CWR != 0,
            Transport::Udp => {
                let len = word_of(transport.len());
                transport[4..6].copy_from_slice(&len);
                false
            }
        };
        let pseudo_header = Sum::of_double_word(bounded(transport.len()));
        let pseudo_header = self.pseudo_header.combine(pseudo_header).value();
        let at = usize::from(self.layout.field.offset);
        transport[at..at + 2].copy_from_slice(&pseudo_header.to_be_bytes());
        let gso = Gso {
            kind: self.layout.kind(),
            size: u16::from_be_bytes(word_of(self.size)),
            header_len: self.layout.headers_len,
            ecn,
        };
        FrameView { bytes, checksum: RxChecksum::Partial(self.layout.field), gso: Some(gso) }
    }
}

/// A length that [`MAX_PACKET_LEN`] bounds, or a frame's that its own header does.
fn bounded(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The same, as two bytes of a header.
fn word_of(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes()
}
