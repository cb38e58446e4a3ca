//! Cuts a super-frame into segments in software, as the kernel's GSO does: for a frame whose other
//! side cannot.
//!
//! # Theory of operation
//!
//! ```text
//!  super-frame   | link | IP | TCP or UDP | payload ............................ |
//!  segments      | link | IP | TCP or UDP | size |
//!                | link | IP | TCP or UDP |       | size |
//!                | link | IP | TCP or UDP |              | rest |
//! ```
//!
//! [`SuperFrame::parse`] checks everything once; a [`Segment`] then is a piece of the payload,
//! borrowed, and headers that are written into the caller's memory. Nothing is allocated. Who can
//! gather writes [`headers`](Segment::write_headers) only and sends the payload from where it is.
//!
//! The segments are those of Linux 6.18 byte for byte, as a veth without offloads showed. What
//! differs between their headers (`inet_gso_segment`, net/ipv4/af_inet.c; `tcp_gso_segment`,
//! net/ipv4/tcp_offload.c; `__udp_gso_segment`, net/ipv4/udp_offload.c):
//!
//! * IP: length; IPv4 also id, one more in each segment, and header checksum. IPv6 extension
//!   headers are copied.
//! * TCP: sequence number; FIN and PSH in the last segment only, CWR in the first only (RFC 3168,
//!   section 6.1.2). Other flags and all options are copied.
//! * UDP: length.
//! * The transport checksum, complete or left partial; what the super-frame has there is not used.
//!   A UDP datagram gets one even where the super-frame had none.
//!
//! The length of the headers is read from the packet: [`Gso::header_len`] is a hint of the other
//! side's. A payload of no more than one size makes one segment. Who takes frames from a peer and
//! wants a bound on the work looks at [`Segments::len`] first: a size of 1 is a legal one.
//!
//! What is not here: IP fragments of a UDP datagram ([`GsoKind::UdpFragments`]), which Linux has
//! not made since 4.14.
#![forbid(unsafe_code)]

use super::checksum::{Sum, ipv4_header_checksum, pseudo_header, sum};
use super::ip::{IPPROTO_TCP, IPPROTO_UDP, IPV6_HEADER_LEN, IpPacket, Version};
use super::vnet::{ChecksumField, Gso, GsoKind};

/// FIN and PSH in TCP's byte of flags (RFC 9293, section 3.1).
pub(super) const TCP_FIN_PSH: u8 = 0x01 | 0x08;
/// CWR there (RFC 3168, section 6.1).
pub(super) const TCP_CWR: u8 = 0x80;

/// What becomes of each segment's transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentChecksum {
    /// It is computed.
    Complete,
    /// Its field gets the pseudo-header's sum; the rest is left to the other side, with
    /// [`SuperFrame::checksum_field`] as the offload.
    Partial,
}

/// Why a frame cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The caller's buffer is too small for the segment.
    #[error("the segment needs a buffer of {needed} bytes")]
    BufferTooSmall {
        /// How large it has to be.
        needed: usize,
    },
    /// The frame's length is not what its headers say.
    #[error("the length of the frame is not what its headers say")]
    LengthMismatch,
    /// The headers are not IP with TCP or UDP, or reach past the end of the frame.
    #[error("the frame's headers are cut short or malformed")]
    MalformedHeaders,
    /// To be cut into segments of no size.
    #[error("a super-frame without a segment size")]
    NoGsoSize,
    /// A fragment, a jumbogram, or a source-routed packet on its way.
    #[error("a fragment, a jumbogram or a source-routed packet cannot be cut")]
    NotWhole,
    /// A segment, or the frame, is longer than its headers can say.
    #[error("the segments or the frame are longer than headers can say")]
    TooLong,
    /// Cutting into IP fragments is not done here.
    #[error("cutting a datagram into IP fragments is not supported")]
    UdpFragments,
    /// The frame's protocols are not those of the kind of super-frame that it is said to be.
    #[error("the frame is not of the kind of super-frame that it is said to be")]
    WrongKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Where its checksum is in its header.
    pub(super) fn checksum_offset(self) -> u16 {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// A super-frame that can be cut.
#[derive(Clone, Copy, Debug)]
pub struct SuperFrame<'a> {
    /// Link, network and transport header.
    headers: &'a [u8],
    payload: &'a [u8],
    size: usize,
    version: Version,
    transport: Transport,
    /// Where the network header begins in `headers`.
    network_at: usize,
    /// Where the transport header begins in `headers`, and the checksum's place from there.
    field: ChecksumField,
    /// The pseudo-header's sum, all but the length.
    pseudo_header: Sum,
}

impl<'a> SuperFrame<'a> {
    /// Checks that `frame`, with a link header of that length, can be cut as `gso` says.
    ///
    /// # Errors
    ///
    /// Every [`SegmentError`] but `BufferTooSmall`. Cutting does not fail for another reason after.
    pub fn parse(frame: &'a [u8], link_header_len: usize, gso: Gso) -> Result<Self, SegmentError> {
        let packet = frame.get(link_header_len..).and_then(IpPacket::parse);
        let packet = packet.ok_or(SegmentError::MalformedHeaders)?;
        let transport = transport_of(&packet, gso.kind)?;
        if gso.size == 0 {
            return Err(SegmentError::NoGsoSize);
        }
        if packet.fragment || packet.routed || packet.is_jumbogram() {
            return Err(SegmentError::NotWhole);
        }
        if !packet.spans_its_bytes() {
            return Err(SegmentError::LengthMismatch);
        }
        let transport_at = link_header_len + packet.headers_len;
        let transport_len = transport_header_len(transport, packet.payload())?;
        let (headers, payload) = frame.split_at(transport_at + transport_len);
        let start = u16::try_from(transport_at).map_err(|_| SegmentError::TooLong)?;
        let this = Self {
            headers,
            payload,
            size: usize::from(gso.size),
            version: packet.version,
            transport,
            network_at: link_header_len,
            field: ChecksumField { start, offset: transport.checksum_offset() },
            pseudo_header: pseudo_header(&packet, 0),
        };
        // The longest segment and the farthest sequence number: all others follow.
        this.ip_len(payload.len().min(this.size))?;
        u32::try_from(payload.len()).map_err(|_| SegmentError::TooLong)?;
        Ok(this)
    }

    /// Length of the headers of every segment, link header included.
    pub fn headers_len(&self) -> usize {
        self.headers.len()
    }

    /// Length of the longest segment, link header included: what a buffer must hold.
    pub fn max_segment_len(&self) -> usize {
        self.headers.len() + self.payload.len().min(self.size)
    }

    /// Where every segment has its transport checksum.
    pub fn checksum_field(&self) -> ChecksumField {
        self.field
    }

    /// The segments, in order; at least one.
    pub fn segments(&self, checksum: SegmentChecksum) -> Segments<'a> {
        self.runs(1, checksum)
    }

    /// Smaller super-frames in place of this one, in order and at least one: each has the headers
    /// of its first segment and the payload of up to `segments` (0 counts as 1). For another side
    /// that takes a bounded number at a time, as Linux takes 128 of UDP.
    pub fn runs(&self, segments: usize, checksum: SegmentChecksum) -> Segments<'a> {
        let run = segments.max(1);
        let step = self.size.saturating_mul(run);
        let count = self.payload.len().div_ceil(step).max(1);
        Segments { frame: *self, checksum, run, next: 0, count }
    }

    /// The IP header's length field for a segment with that much payload.
    fn ip_len(&self, payload_len: usize) -> Result<u16, SegmentError> {
        let uncounted = match self.version {
            Version::V4 => 0,
            Version::V6 => IPV6_HEADER_LEN,
        };
        let len = self.headers.len() - self.network_at - uncounted + payload_len;
        u16::try_from(len).map_err(|_| SegmentError::TooLong)
    }
}

/// The transport of a packet of that kind.
fn transport_of(packet: &IpPacket<'_>, kind: GsoKind) -> Result<Transport, SegmentError> {
    match (kind, packet.version, packet.protocol) {
        (GsoKind::UdpFragments, ..) => Err(SegmentError::UdpFragments),
        (GsoKind::TcpV4, Version::V4, IPPROTO_TCP) => Ok(Transport::Tcp),
        (GsoKind::TcpV6, Version::V6, IPPROTO_TCP) => Ok(Transport::Tcp),
        (GsoKind::UdpSegments, _, IPPROTO_UDP) => Ok(Transport::Udp),
        _ => Err(SegmentError::WrongKind),
    }
}

/// Length of the transport header at the start of `bytes`, which go on to the end of the packet.
pub(super) fn transport_header_len(
    transport: Transport,
    bytes: &[u8],
) -> Result<usize, SegmentError> {
    match (transport, bytes) {
        (Transport::Udp, &[_, _, _, _, high, low, _, _, ..]) => {
            if usize::from(u16::from_be_bytes([high, low])) != bytes.len() {
                return Err(SegmentError::LengthMismatch);
            }
            Ok(8)
        }
        (Transport::Tcp, bytes) => {
            let data_offset = bytes.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
            if data_offset < 20 || data_offset > bytes.len() {
                return Err(SegmentError::MalformedHeaders);
            }
            Ok(data_offset)
        }
        (Transport::Udp, _) => Err(SegmentError::MalformedHeaders),
    }
}

/// The segments of a [`SuperFrame`], or [runs](SuperFrame::runs) of them, in order.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    frame: SuperFrame<'a>,
    checksum: SegmentChecksum,
    /// How many segments are handed out as one.
    run: usize,
    next: usize,
    count: usize,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        if self.next >= self.count {
            return None;
        }
        let index = self.next * self.run;
        self.next += 1;
        let offset = index * self.frame.size;
        let len = self.frame.size.saturating_mul(self.run);
        let end = self.frame.payload.len().min(offset.saturating_add(len));
        Some(Segment {
            frame: self.frame,
            checksum: self.checksum,
            index,
            offset,
            payload: &self.frame.payload[offset..end],
        })
    }

    // Whoever sends a part and later the rest starts in the middle.
    fn nth(&mut self, n: usize) -> Option<Segment<'a>> {
        self.next = self.next.saturating_add(n).min(self.count);
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count - self.next, Some(self.count - self.next))
    }
}

impl ExactSizeIterator for Segments<'_> {}

/// One segment, not yet written.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    frame: SuperFrame<'a>,
    checksum: SegmentChecksum,
    index: usize,
    /// Of `payload`, in the super-frame's.
    offset: usize,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Its payload, where it is in the super-frame.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Whether nothing is left to the other side.
    pub(crate) fn is_complete(&self) -> bool {
        self.checksum == SegmentChecksum::Complete
    }

    /// Length of its headers and payload, link header included.
    pub fn frame_len(&self) -> usize {
        self.frame.headers.len() + self.payload.len()
    }

    /// Writes headers and payload to the front of `out` and gives their length.
    ///
    /// # Errors
    ///
    /// [`SegmentError::BufferTooSmall`].
    pub fn write(&self, out: &mut [u8]) -> Result<usize, SegmentError> {
        let needed = self.frame_len();
        let out = out.get_mut(..needed).ok_or(SegmentError::BufferTooSmall { needed })?;
        let (headers, payload) = out.split_at_mut(self.frame.headers.len());
        self.write_headers(headers)?;
        payload.copy_from_slice(self.payload);
        Ok(needed)
    }

    /// Writes the headers to the front of `out`, for a frame that is gathered from them and
    /// [`payload`](Self::payload), and gives their length.
    ///
    /// # Errors
    ///
    /// [`SegmentError::BufferTooSmall`].
    pub fn write_headers(&self, out: &mut [u8]) -> Result<usize, SegmentError> {
        let needed = self.frame.headers.len();
        let out = out.get_mut(..needed).ok_or(SegmentError::BufferTooSmall { needed })?;
        out.copy_from_slice(self.frame.headers);
        let (before, transport) = out.split_at_mut(usize::from(self.frame.field.start));
        self.edit_network_header(&mut before[self.frame.network_at..])?;
        match self.frame.transport {
            Transport::Tcp => self.edit_tcp_header(transport)?,
            Transport::Udp => self.edit_udp_header(transport)?,
        }
        self.put_checksum(transport)?;
        Ok(needed)
    }

    fn edit_network_header(&self, header: &mut [u8]) -> Result<(), SegmentError> {
        let len = self.frame.ip_len(self.payload.len())?.to_be_bytes();
        match self.frame.version {
            Version::V4 => {
                header[2..4].copy_from_slice(&len);
                let id = u16::from_be_bytes([header[4], header[5]]);
                // Modulo 2^16, as the field is.
                let step = u16::try_from(self.index & 0xffff).unwrap_or(0);
                header[4..6].copy_from_slice(&id.wrapping_add(step).to_be_bytes());
                let checksum = ipv4_header_checksum(header);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            Version::V6 => header[4..6].copy_from_slice(&len),
        }
        Ok(())
    }

    fn edit_tcp_header(&self, header: &mut [u8]) -> Result<(), SegmentError> {
        let offset = u32::try_from(self.offset).map_err(|_| SegmentError::TooLong)?;
        let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        header[4..8].copy_from_slice(&seq.wrapping_add(offset).to_be_bytes());
        if self.offset + self.payload.len() < self.frame.payload.len() {
            header[13] &= !TCP_FIN_PSH;
        }
        if self.index > 0 {
            header[13] &= !TCP_CWR;
        }
        Ok(())
    }

    fn edit_udp_header(&self, header: &mut [u8]) -> Result<(), SegmentError> {
        let len = u16::try_from(header.len() + self.payload.len());
        header[4..6].copy_from_slice(&len.map_err(|_| SegmentError::TooLong)?.to_be_bytes());
        Ok(())
    }

    fn put_checksum(&self, header: &mut [u8]) -> Result<(), SegmentError> {
        let len = u32::try_from(header.len() + self.payload.len());
        let len = Sum::of_double_word(len.map_err(|_| SegmentError::TooLong)?);
        let pseudo_header = self.frame.pseudo_header.combine(len);
        let at = usize::from(self.frame.field.offset);
        header[at..at + 2].fill(0);
        // Both transport headers have an even length.
        let whole = || pseudo_header.combine(sum(header)).combine(sum(self.payload));
        let value = match (self.checksum, self.frame.transport) {
            (SegmentChecksum::Partial, _) => pseudo_header.value(),
            (SegmentChecksum::Complete, Transport::Tcp) => whole().finish(),
            (SegmentChecksum::Complete, Transport::Udp) => whole().finish_nonzero(),
        };
        header[at..at + 2].copy_from_slice(&value.to_be_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
