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
    /// The frame is to be cut. Needs `checksum` as well.
    pub gso: Option<Gso>,
}

impl TxOffload {
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
mod tests {
    use super::*;

    const FIELD: ChecksumField = ChecksumField { start: 34, offset: 16 };
    const GSO: Gso = Gso { kind: GsoKind::TcpV4, size: 1448, header_len: 66, ecn: false };

    #[test]
    fn a_frame_with_nothing_left_to_do_has_a_zero_header() {
        let mut out = [0xff; VnetHeader::LEN_MRG];
        VnetHeader::for_tx(TxOffload::default(), 54).write(&mut out);
        assert_eq!(out, [0; 12]);
    }

    #[test]
    fn the_header_is_written_as_the_kernel_lays_it_out() {
        let offload = TxOffload { checksum: Some(FIELD), gso: Some(Gso { ecn: true, ..GSO }) };
        let mut out = [0xff; VnetHeader::LEN_MRG];
        VnetHeader::for_tx(offload, 0).write(&mut out);
        let mut expected = vec![VIRTIO_NET_HDR_F_NEEDS_CSUM, 0x81];
        for field in [66_u16, 1448, 34, 16, 0] {
            expected.extend(field.to_ne_bytes());
        }
        assert_eq!(out.to_vec(), expected);
    }

    #[test]
    fn udp_has_no_ecn_bit() {
        // Linux 6.18 refuses it on AF_PACKET with EINVAL.
        let gso = Gso { kind: GsoKind::UdpSegments, ecn: true, ..GSO };
        let offload = TxOffload { checksum: Some(FIELD), gso: Some(gso) };
        assert_eq!(VnetHeader::for_tx(offload, 0).gso_type, VIRTIO_NET_HDR_GSO_UDP_L4);
    }

    #[test]
    fn only_a_slice_of_the_long_header_gets_the_count_of_buffers() {
        for len in [0, 1, 9, 10, 11, 13] {
            let mut out = vec![0xff; len];
            VnetHeader::default().write(&mut out);
            let written = len.min(VnetHeader::LEN);
            assert!(out[..written].iter().all(|byte| *byte == 0), "{len}");
            assert!(out[written..].iter().all(|byte| *byte == 0xff), "{len}");
        }
    }

    #[test]
    fn a_short_header_is_none() {
        for len in 0..VnetHeader::LEN {
            assert_eq!(VnetHeader::parse(&vec![0; len]), None);
        }
        assert_eq!(VnetHeader::parse(&[0; 10]), Some(VnetHeader::default()));
    }

    #[test]
    fn header_length_comes_from_gso_first() {
        let checksum = Some(FIELD);
        let cases = [
            (TxOffload { checksum, gso: Some(GSO) }, 66),
            (TxOffload { checksum, gso: Some(Gso { header_len: 0, ..GSO }) }, 54),
            (TxOffload { checksum, gso: None }, 54),
            (TxOffload::default(), 0),
        ];
        for (offload, expected) in cases {
            assert_eq!(VnetHeader::for_tx(offload, 54).hdr_len, expected, "{offload:?}");
        }
    }

    #[test]
    fn checksum_states() {
        let header = VnetHeader { csum_start: 34, csum_offset: 16, ..VnetHeader::default() };
        let cases = [
            (0, 0, Ok(RxChecksum::Unverified)),
            (VIRTIO_NET_HDR_F_DATA_VALID, 0, Ok(RxChecksum::Valid)),
            (VIRTIO_NET_HDR_F_NEEDS_CSUM, 52, Ok(RxChecksum::Partial(FIELD))),
            (VIRTIO_NET_HDR_F_NEEDS_CSUM, 51, Err(Malformed::ChecksumPastEnd)),
            // Partial wins: the field does not hold a checksum.
            (0xff, 52, Ok(RxChecksum::Partial(FIELD))),
        ];
        for (flags, len, expected) in cases {
            assert_eq!(VnetHeader { flags, ..header }.checksum(len), expected, "{flags} {len}");
        }
        let far = VnetHeader { flags: 1, csum_start: u16::MAX, csum_offset: u16::MAX, ..header };
        assert_eq!(far.checksum(131_071), Err(Malformed::ChecksumPastEnd));
        assert!(far.checksum(131_072).is_ok());
    }

    #[test]
    fn gso_types() {
        let header = VnetHeader { hdr_len: 66, gso_size: 1448, ..VnetHeader::default() };
        let cases = [
            (0, Ok(None)),
            (1, Ok(Some(GSO))),
            (0x81, Ok(Some(Gso { ecn: true, ..GSO }))),
            (2, Err(Malformed::UnknownGsoType(2))),
            (3, Ok(Some(Gso { kind: GsoKind::UdpFragments, ..GSO }))),
            (4, Ok(Some(Gso { kind: GsoKind::TcpV6, ..GSO }))),
            (5, Ok(Some(Gso { kind: GsoKind::UdpSegments, ..GSO }))),
            (0x85, Err(Malformed::UnknownGsoType(0x85))),
            (0x80, Err(Malformed::UnknownGsoType(0x80))),
            (0x21, Err(Malformed::UnknownGsoType(0x21))),
        ];
        for (gso_type, expected) in cases {
            assert_eq!(VnetHeader { gso_type, ..header }.gso(66), expected, "{gso_type:#x}");
        }
        let tcp = VnetHeader { gso_type: 1, ..header };
        assert_eq!(tcp.gso(65), Err(Malformed::HeaderPastEnd));
        assert_eq!(VnetHeader { gso_size: 0, ..tcp }.gso(66), Err(Malformed::NoGsoSize));
    }

    #[test]
    fn a_frame_of_one_segment_is_not_cut() {
        let offload = TxOffload { checksum: Some(FIELD), gso: Some(GSO) };
        assert_eq!(offload.for_frame_len(66 + 1448).gso, None);
        assert_eq!(offload.for_frame_len(66 + 1448).checksum, Some(FIELD));
        assert_eq!(offload.for_frame_len(66 + 1449), offload);
        let unknown = TxOffload { gso: Some(Gso { header_len: 0, ..GSO }), ..offload };
        assert_eq!(unknown.for_frame_len(60), unknown);
    }
}
