//! How frames cross a descriptor: one file for each mode, and one for sending. What all of them need
//! is here; what those that receive share is in `io/inlet.rs`.
//!
//! What is not here: what a descriptor is and how it is set up (`link/`). This module knows only
//! which calls it takes ([`Channel`]).

pub(crate) mod cooked;
mod drops;
pub(crate) mod framed;
mod inlet;
pub(crate) mod mmsg;
pub(crate) mod packet_mmap;
pub(crate) mod readv;
pub(crate) mod transmit;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::batch::LinkHeader;
use crate::descriptor::Descriptor;
use crate::io::cooked::Cooked;
use crate::io::inlet::Inlet;
use crate::stats::QueueStats;
use crate::sys::message::Ask;
use crate::sys::outgoing::Outgoing;

/// Bytes of buffer for one received frame: the largest MTU (65536), a link header with a VLAN tag
/// (18) and a vnet header (12), rounded up to pages.
pub(crate) const FRAME_ROOM: usize = 68 * 1024;

/// Which system calls move frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// recv and send; the end of the peer does not show.
    Datagram,
    /// read and write.
    Device,
    /// recvmsg with PACKET_AUXDATA, and send.
    Packet,
    /// recv and send; receiving nothing may mean that the peer has closed. So it is on a framed
    /// stream, whose own queues see to the frames.
    Seqpacket,
    /// recvmsg and send, with SO_PASSCRED on: each message says that it is one, the peer's end
    /// does not.
    UnixSeqpacket,
}

/// A descriptor with everything that moving frames over it takes. Both directions have one.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) fd: Arc<Descriptor>,
    pub(crate) stats: Arc<QueueStats>,
    pub(crate) channel: Channel,
    /// Set where the kernel takes link headers off, and puts them on.
    pub(crate) cooked: Option<Cooked>,
    /// Bytes of vnet header before each frame: 0, 10 or 12.
    pub(crate) vnet_header: usize,
    pub(crate) link_header: LinkHeader,
    /// The longest frame that may leave, super-frames included.
    pub(crate) max_len: usize,
    /// Frames for each recvmmsg.
    pub(crate) batch: usize,
    /// What a counter of drops said that goes on, when the link was built.
    pub(crate) drops_before: u32,
    /// Whether the kernel was asked when it took each frame in.
    pub(crate) timestamps: bool,
}

impl Port {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes in front of each message for the link header that the kernel takes off.
    fn headroom(&self) -> usize {
        if self.cooked.is_some() { self.link_header.len() } else { 0 }
    }

    /// Arrays for lists of so many messages.
    fn outgoing(&self, messages: usize) -> Outgoing {
        match self.cooked {
            Some(cooked) => Outgoing::cooked(messages, cooked.interface),
            None => Outgoing::with_capacity(messages),
        }
    }

    /// What a socket is asked to say of each message.
    fn ask(&self) -> Ask {
        match self.channel {
            Channel::Packet => Ask::PacketInfo,
            _ if self.timestamps => Ask::Timestamp,
            Channel::UnixSeqpacket => Ask::Credentials,
            _ => Ask::Bytes,
        }
    }
}
