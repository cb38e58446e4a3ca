//! The virtio-net header that stands before a frame where a descriptor has one, and the types
//! that carry its meaning through the library.
//!
//! Layout (linux/virtio_net.h, `struct virtio_net_hdr`, 10 bytes; `_mrg_rxbuf`, 12 bytes):
//!
//! ```text
//!  0      1         2        4         6           8            10            12
//!  flags  gso_type  hdr_len  gso_size  csum_start  csum_offset  (num_buffers)
//! ```

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

/// How a super-frame is cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gso {
    /// The protocol that is cut.
    pub kind: GsoKind,
    /// Payload bytes of each segment (TCP: the MSS).
    pub size: u16,
    /// Length of all headers, from the start of the frame: a hint, and 0 where nobody said.
    pub header_len: u16,
    /// Whether the first segment carries TCP's CWR (`VIRTIO_NET_HDR_GSO_ECN`).
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

/// What a sender leaves to the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxOffload {
    /// The checksum field holds the pseudo-header's sum; the rest is left to the other side.
    pub checksum: Option<ChecksumField>,
    /// The frame is to be cut. Needs `checksum` as well.
    pub gso: Option<Gso>,
}
