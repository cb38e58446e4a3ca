//! A link: what has queues and properties. Opened (`open_*`), adopted ([`adopt`],
//! [`adopt_borrowed`], [`adopt_framed`]), or whatever else implements [`Link`]. Link kinds live in
//! `link/`; how frames cross a descriptor lives in `io/`; the two meet where a link is built.

mod buffers;
mod counters;
mod examine;
mod extras;
mod fanout;
mod fd;
mod framed;
mod packet;
mod pair;
mod plan;
mod ring;
mod socket;
mod tun;

use crate::batch::{LinkHeader, MacAddr};
use crate::error::SetupError;
use crate::options::Mode;
use crate::queue::QueuePair;
use crate::report::Report;
use crate::stats::LinkStats;

pub use counters::DeviceCounters;
pub use fd::{FdLink, adopt, adopt_borrowed};
pub use framed::{FramePrefix, adopt_framed};
pub use packet::open_packet;
pub use pair::{open_datagram_pair, open_seqpacket_pair};
pub(crate) use plan::LEAST_MTU;
pub use tun::{open_tap, open_tun};

/// Something with queues and properties.
pub trait Link: Send {
    /// What is fixed when the link is built.
    fn properties(&self) -> &LinkProperties;

    /// What was asked for, what was got, and what was replaced.
    fn report(&self) -> &Report;

    /// Its counters; the handle stays valid after [`into_queues`](Self::into_queues).
    fn stats(&self) -> LinkStats;

    /// The queues, one pair for each descriptor. Whoever drives them owns the descriptors.
    ///
    /// # Errors
    ///
    /// Where a queue cannot be set up; the descriptors are closed then.
    fn into_queues(self: Box<Self>) -> Result<Vec<QueuePair>, SetupError>;
}

/// What the descriptor behind a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkKind {
    /// A stream socket on which each frame stands behind its length.
    Framed,
    /// No descriptor of this crate's: a link that somebody else makes.
    Other,
    /// AF_PACKET SOCK_RAW, bound to an interface.
    Packet,
    /// AF_PACKET SOCK_DGRAM ("cooked"), bound to an Ethernet interface: the kernel takes link
    /// headers off and makes them, and frames have one here all the same.
    PacketCooked,
    /// Another datagram socket.
    SocketDatagram,
    /// Another seqpacket socket.
    SocketSeqpacket,
    /// A TAP device.
    Tap,
    /// A TUN device.
    Tun,
}

impl LinkKind {
    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Framed => "framed stream",
            Self::Other => "link of another kind",
            Self::Packet => "packet",
            Self::PacketCooked => "cooked packet",
            Self::SocketDatagram => "datagram socket",
            Self::SocketSeqpacket => "seqpacket socket",
            Self::Tap => "tap",
            Self::Tun => "tun",
        }
    }

    /// Whether it is an AF_PACKET socket.
    fn is_packet(self) -> bool {
        matches!(self, Self::Packet | Self::PacketCooked)
    }

    /// Whether it is a socket between two programs, who agree on what stands before a packet.
    fn is_plain_socket(self) -> bool {
        matches!(self, Self::Framed | Self::SocketDatagram | Self::SocketSeqpacket)
    }
}

/// What is fixed when a link is built. Whoever makes a link of their own starts with
/// [`new`](Self::new).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LinkProperties {
    /// What the descriptors are.
    pub kind: LinkKind,
    /// How frames come in.
    pub mode: Mode,
    /// The IP MTU as Linux counts it, 68 to 65536 bytes.
    pub mtu: u32,
    /// The longest frame that is no super-frame: MTU plus link header, in bytes.
    pub max_frame_len: usize,
    /// What stands before the network packet in each frame.
    pub link_header: LinkHeader,
    /// The endpoint's own link address, where there are Ethernet headers.
    pub address: Option<MacAddr>,
    /// What may be left to the other side.
    pub capabilities: Capabilities,
    /// The longest super-frame that may be sent, link header included, in bytes; 0 without
    /// segmentation offload.
    pub gso_max_size: usize,
    /// How many descriptors, and so queue pairs.
    pub queues: usize,
    /// Bytes that the kernel queues for one descriptor before it drops, as it accounts them
    /// (SO_RCVBUF, a V3 ring's size, a frame of the MTU for each slot of V2); 0 where nobody knows.
    pub rx_queue_bytes: usize,
}

impl LinkProperties {
    /// Of a link of another kind, with one queue pair and nothing left to the other side.
    pub fn new(mtu: u32, link_header: LinkHeader) -> Self {
        Self {
            kind: LinkKind::Other,
            mode: Mode::Auto,
            mtu,
            max_frame_len: link_header.len().saturating_add(mtu as usize),
            link_header,
            address: None,
            capabilities: Capabilities::default(),
            gso_max_size: 0,
            queues: 1,
            rx_queue_bytes: 0,
        }
    }
}

/// What may be left to the other side, and what the owner declared. Each has somebody who acts on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Outgoing checksums may be left to the other side: by whoever sends, in
    /// [`TxOffload::checksum`](crate::offload::vnet::TxOffload).
    pub tx_checksum: bool,
    /// Incoming frames that carry no checksum state are to be trusted: `fdlink-stack` does not
    /// verify them then.
    pub rx_checksum: bool,
    /// Super-frames of TCP over IPv4 may be sent.
    pub tso4: bool,
    /// Super-frames of TCP over IPv6 may be sent.
    pub tso6: bool,
    /// Super-frames of UDP may be sent.
    pub uso: bool,
    /// Frames carry link addresses, so neighbours must be resolved: by whoever makes
    /// [`TxPacket`](crate::TxPacket)s; `fdlink-stack` does by ARP and neighbour discovery.
    pub resolution_required: bool,
    /// The descriptors may be handed over to another process:
    /// [`Endpoint::hand_over`](crate::Endpoint::hand_over) gives them only then.
    pub save_restore: bool,
    /// A stack that was taken over may reset its flows. Where the descriptors may be handed over
    /// and this was not declared, `fdlink-stack` sends no RST to a connection that it does not know.
    pub disconnect_ok: bool,
}
