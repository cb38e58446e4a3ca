//! The virtio-net header that stands before a frame where a descriptor has one, and the types
//! that carry its meaning through the library.
//!
//! # Theory of operation
//!
//! Layout (linux/virtio_net.h, `struct virtio_net_hdr`, 10 bytes; `_mrg_rxbuf`, 12 bytes):
//!
//! ```text
//!  0      1         2        4         6           8            10            12
//!  flags  gso_type  hdr_len  gso_size  csum_start  csum_offset  (num_buffers)
//! ```
//!
//! The 16-bit fields are in native byte order, as TUN and AF_PACKET have them unless `TUNSETVNETLE`
//! or `TUNSETVNETBE` asked for another. Offsets count from the first byte of the frame behind the
//! header, link header included.
//!
//! A header that arrives was written by a kernel or a peer and says nothing that is certain:
//! [`VnetHeader::checksum`] and [`VnetHeader::gso`] compare it with the length of the frame, by the
//! rules of `virtio_net_hdr_to_skb` (include/linux/virtio_net.h), and give [`Malformed`] for what
//! the kernel would refuse. After that the offsets may be used without a further check, as long as
//! the frame keeps its length. One that leaves is built from a [`TxOffload`] and is the sender's
//! word: the kernel checks it.
//!
//! What is not here: the tunnel types of Linux 6.17 (`VIRTIO_NET_HDR_GSO_UDP_TUNNEL_*`), which no
//! descriptor gives unless it was asked to, and the hash fields of `virtio_net_hdr_v1_hash`.
#![forbid(unsafe_code)]

use std::ops::Range;

// linux/virtio_net.h
const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
const VIRTIO_NET_HDR_F_DATA_VALID: u8 = 2;
const VIRTIO_NET_HDR_GSO_NONE: u8 = 0;
const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
const VIRTIO_NET_HDR_GSO_UDP: u8 = 3;
const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;
const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = 5;
const VIRTIO_NET_HDR_GSO_ECN: u8 = 0x80;

/// Length of every transport checksum field, in bytes.
const CHECKSUM_LEN: usize = 2;
/// Where TCP (RFC 9293) and UDP (RFC 768) have theirs in their headers.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const UDP_HEADER_LEN: usize = 8;

/// What is known of a received frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RxChecksum {
    /// The sender left it to us: the field holds only the pseudo-header's sum, and the data never
    /// left this machine (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial(ChecksumField),
    /// Nobody has looked.
    #[default]
    Unverified,
    /// Verified by the kernel or the device (`VIRTIO_NET_HDR_F_DATA_VALID`).
    Valid,
}

/// Where a checksum is computed and put, in bytes from the start of the frame (link header
/// included).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ChecksumField {
    /// First byte that is summed; the sum goes on to the end of the frame.
    pub start: u16,
    /// Where the result goes, from `start`.
    pub offset: u16,
}

impl ChecksumField {
    /// Where the two bytes of the result lie in the frame.
    pub fn range(self) -> Range<usize> {
        let at = usize::from(self.start) + usize::from(self.offset);
        at..at + CHECKSUM_LEN
    }

    /// Whether the field lies within a frame of that length.
    pub fn fits(self, frame_len: usize) -> bool {
        self.range().end <= frame_len
    }
}

/// How a super-frame is cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gso {
    /// The protocol that is cut.
    pub kind: GsoKind,
    /// Payload bytes of each segment (TCP: the MSS).
    pub size: u16,
    /// Length of all headers, from the start of the frame: a hint, and 0 where nobody said. A
    /// kernel that sends gives what it has in one piece, which may be more than the headers.
    pub header_len: u16,
    /// Whether the first segment carries TCP's CWR (`VIRTIO_NET_HDR_GSO_ECN`). Nothing for UDP.
    pub ecn: bool,
}

/// The protocol of a super-frame (`VIRTIO_NET_HDR_GSO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP, cut into IP fragments (`UDP`, "UFO").
    UdpFragments,
    /// UDP, cut into datagrams (`UDP_L4`, "USO").
    UdpSegments,
}

impl GsoKind {
    fn is_tcp(self) -> bool {
        matches!(self, Self::TcpV4 | Self::TcpV6)
    }

    fn to_vnet(self) -> u8 {
        match self {
            Self::TcpV4 => VIRTIO_NET_HDR_GSO_TCPV4,
            Self::TcpV6 => VIRTIO_NET_HDR_GSO_TCPV6,
            Self::UdpFragments => VIRTIO_NET_HDR_GSO_UDP,
            Self::UdpSegments => VIRTIO_NET_HDR_GSO_UDP_L4,
        }
    }

    fn of_vnet(gso_type: u8) -> Option<Self> {
        match gso_type {
            VIRTIO_NET_HDR_GSO_TCPV4 => Some(Self::TcpV4),
            VIRTIO_NET_HDR_GSO_TCPV6 => Some(Self::TcpV6),
            VIRTIO_NET_HDR_GSO_UDP => Some(Self::UdpFragments),
            VIRTIO_NET_HDR_GSO_UDP_L4 => Some(Self::UdpSegments),
            _ => None,
        }
    }
}

/// What a sender leaves to the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxOffload {
    /// The checksum field holds the pseudo-header's sum; the rest is left to the other side.
    pub checksum: Option<ChecksumField>,
    /// The frame is to be cut. Needs `checksum` as well: without it no other side can, and a
    /// transmit queue cuts the frame itself.
    pub gso: Option<Gso>,
}

impl TxOffload {
    /// Length of all headers of a frame of `frame_len` bytes, link header included: what
    /// `hdr_len` of its vnet header is to say. Read from the frame, where `byte` gives the byte at
    /// an offset (`None` where it cannot): the transport header starts where the checksum does,
    /// and TCP's says how long it is.
    ///
    /// Where that is no help, it is [`Gso::header_len`]; then the end of the checksum field, the
    /// least that a kernel takes; and 0, for "nobody said", where nothing is left to do or 16 bits
    /// do not hold it.
    pub fn header_len(self, frame_len: usize, byte: impl Fn(usize) -> Option<u8>) -> u16 {
        let hint = self.gso.map_or(0, |gso| gso.header_len);
        let Some(field) = self.checksum else { return hint };
        let start = usize::from(field.start);
        let transport = match self.gso {
            Some(gso) if gso.kind.is_tcp() => tcp_header_len(start, byte),
            Some(_) => Some(UDP_HEADER_LEN),
            None if field.offset == TCP_CHECKSUM => tcp_header_len(start, byte),
            None if field.offset == UDP_CHECKSUM => Some(UDP_HEADER_LEN),
            None => None,
        };
        let read = transport.map(|len| start + len).filter(|len| *len <= frame_len);
        let known = read.and_then(|len| u16::try_from(len).ok()).filter(|len| *len > 0);
        let hint = Some(hint).filter(|len| *len > 0);
        known.or(hint).or_else(|| u16::try_from(field.range().end).ok()).unwrap_or(0)
    }

    /// The same with the headers' length known to be that, where it is to be cut at all.
    pub fn with_header_len(self, header_len: u16) -> Self {
        Self { gso: self.gso.map(|gso| Gso { header_len, ..gso }), ..self }
    }

    /// The same for a frame of that length, without a segmentation that has nothing to cut: the
    /// kernel drops a frame that asks for GSO and whose payload is no more than one segment
    /// (`tcp_gso_segment`: EINVAL). Where the length of the headers is not known, nothing changes.
    pub fn for_frame_len(self, frame_len: usize) -> Self {
        let cuts = |gso: &Gso| {
            let one_segment = usize::from(gso.header_len) + usize::from(gso.size);
            gso.header_len == 0 || frame_len > one_segment
        };
        Self { gso: self.gso.filter(cuts), ..self }
    }
}

/// The length that a TCP header at `start` says it has; `None` for less than the least.
fn tcp_header_len(start: usize, byte: impl Fn(usize) -> Option<u8>) -> Option<usize> {
    // Its data offset, in words of 4 bytes (RFC 9293, section 3.1).
    let words = byte(start + 12)? >> 4;
    (words >= 5).then_some(usize::from(words) * 4)
}

/// A virtio-net header as it stands before a frame: its six fields in host byte order, not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of all headers, a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// First byte that is summed.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Length of the header, in bytes (`struct virtio_net_hdr`).
    pub const LEN: usize = 10;
    /// Its length where a count of buffers follows (`struct virtio_net_hdr_mrg_rxbuf`).
    pub const LEN_MRG: usize = 12;

    /// Reads the first [`LEN`](Self::LEN) bytes; `None` where there are fewer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let &[flags, gso_type, a, b, c, d, e, f, g, h] = bytes.first_chunk::<{ Self::LEN }>()?;
        Some(Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        })
    }

    /// Whether it says that the frame is to be cut.
    pub fn is_super_frame(&self) -> bool {
        self.gso_type != VIRTIO_NET_HDR_GSO_NONE
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// Writes the header into `out`, which is [`LEN`](Self::LEN) or [`LEN_MRG`](Self::LEN_MRG)
    /// bytes long; the count of buffers is 0, as a sender has it (virtio 1.2, 5.1.6.2). Of any
    /// other length, the first [`LEN`](Self::LEN) bytes are written, as far as there are so many.
    pub fn write(&self, out: &mut [u8]) {
        for (to, from) in out.iter_mut().zip(self.to_bytes()) {
            *to = from;
        }
        if out.len() == Self::LEN_MRG {
            out[Self::LEN..].fill(0);
        }
    }

    /// The header of a frame that leaves with that work left to the other side. `header_len` is the
    /// length of all headers from the start of the frame, or 0 where the caller does not know; a
    /// length in [`Gso::header_len`] comes first.
    pub fn for_tx(offload: TxOffload, header_len: u16) -> Self {
        let mut header = Self::default();
        if let Some(field) = offload.checksum {
            header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
            header.hdr_len = header_len;
            header.csum_start = field.start;
            header.csum_offset = field.offset;
        }
        if let Some(gso) = offload.gso {
            let ecn = if gso.ecn && gso.kind.is_tcp() { VIRTIO_NET_HDR_GSO_ECN } else { 0 };
            header.gso_type = gso.kind.to_vnet() | ecn;
            header.gso_size = gso.size;
            header.hdr_len = if gso.header_len == 0 { header_len } else { gso.header_len };
        }
        header
    }

    /// What the header says of the transport checksum of a frame of `frame_len` bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed::ChecksumPastEnd`].
    pub fn checksum(&self, frame_len: usize) -> Result<RxChecksum, Malformed> {
        if self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            let field = ChecksumField { start: self.csum_start, offset: self.csum_offset };
            return if field.fits(frame_len) {
                Ok(RxChecksum::Partial(field))
            } else {
                Err(Malformed::ChecksumPastEnd)
            };
        }
        if self.flags & VIRTIO_NET_HDR_F_DATA_VALID != 0 {
            return Ok(RxChecksum::Valid);
        }
        Ok(RxChecksum::Unverified)
    }

    /// How the header says that a frame of `frame_len` bytes is cut; `None` where it is not.
    ///
    /// # Errors
    ///
    /// A type that is not known, a size of 0, or headers longer than the frame.
    pub fn gso(&self, frame_len: usize) -> Result<Option<Gso>, Malformed> {
        if self.gso_type == VIRTIO_NET_HDR_GSO_NONE {
            return Ok(None);
        }
        // The ECN bit alone is no type, and UDP has none: the kernel refuses both, too.
        let ecn = self.gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
        let kind = GsoKind::of_vnet(self.gso_type & !VIRTIO_NET_HDR_GSO_ECN)
            .filter(|kind| kind.is_tcp() || !ecn)
            .ok_or(Malformed::UnknownGsoType(self.gso_type))?;
        if self.gso_size == 0 {
            return Err(Malformed::NoGsoSize);
        }
        if usize::from(self.hdr_len) > frame_len {
            return Err(Malformed::HeaderPastEnd);
        }
        Ok(Some(Gso { kind, size: self.gso_size, header_len: self.hdr_len, ecn }))
    }
}

/// A virtio-net header that cannot be true of the frame behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The checksum field lies past the end of the frame.
    #[error("the checksum field lies past the end of the frame")]
    ChecksumPastEnd,
    /// The headers are longer than the frame.
    #[error("the headers are longer than the frame")]
    HeaderPastEnd,
    /// To be cut into segments of no size.
    #[error("a super-frame without a segment size")]
    NoGsoSize,
    /// A kind of super-frame that is not known here.
    #[error("unknown kind of super-frame {0:#04x}")]
    UnknownGsoType(u8),
}

#[cfg(test)]
mod tests;
