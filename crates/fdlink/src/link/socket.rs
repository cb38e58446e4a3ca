//! Sockets that somebody else made: reading back what one is, setting one up.

use std::os::fd::BorrowedFd;

use crate::batch::LinkHeader;
use crate::descriptor::Descriptor;
use crate::error::SetupError;
use crate::link::examine::{Found, call};
use crate::link::{LinkKind, packet};
use crate::options::LinkOptions;
use crate::sys::socket as sys;

/// Reads back what a socket is.
pub(super) fn examine(
    index: usize,
    fd: BorrowedFd<'_>,
    options: &LinkOptions,
) -> Result<Found, SetupError> {
    let option = |name, text| {
        sys::option(fd, libc::SOL_SOCKET, name)
            .map_err(|e| call(text, format!("descriptor {index}"), e))
    };
    let domain = option(libc::SO_DOMAIN, "getsockopt(SO_DOMAIN)")?;
    let kind = match (domain, option(libc::SO_TYPE, "getsockopt(SO_TYPE)")?) {
        (libc::AF_PACKET, libc::SOCK_RAW) => return packet::examine(index, fd),
        (libc::AF_PACKET, libc::SOCK_DGRAM) => return packet::examine_cooked(index, fd),
        (libc::AF_PACKET, _) => return wrong(index, "an AF_PACKET socket of an old type"),
        (libc::AF_NETLINK, _) => return wrong(index, "a netlink socket"),
        (_, libc::SOCK_DGRAM) => LinkKind::SocketDatagram,
        (libc::AF_UNIX, libc::SOCK_SEQPACKET) => {
            let connected = sys::is_connected(fd);
            if !connected.map_err(|e| call("getpeername", format!("descriptor {index}"), e))? {
                return wrong(index, "a seqpacket socket that is not connected, or listens");
            }
            LinkKind::SocketSeqpacket
        }
        (_, libc::SOCK_SEQPACKET) => LinkKind::SocketSeqpacket,
        (_, libc::SOCK_STREAM) => {
            return wrong(
                index,
                "a stream socket, which keeps no boundaries between frames (adopt_framed takes one with lengths)",
            );
        }
        _ => return wrong(index, "a raw socket of another family"),
    };
    Ok(Found::plain_socket(kind, LinkHeader::None, options))
}

/// What is to be said of a datagram socket that has no other end: it can be received on only.
pub(super) fn lonely(index: usize, fd: BorrowedFd<'_>) -> Option<String> {
    let connected = sys::is_connected(fd).unwrap_or(true);
    let text = || format!("descriptor {index} is not connected: nothing can be sent on it");
    (!connected).then(text)
}

/// Makes each message of a unix seqpacket socket say that it is one: to recv, a message of no bytes
/// and the end of the peer are the same. Other families have no such option, and need none to work.
pub(super) fn configure(descriptor: &mut Descriptor) {
    drop(descriptor.set_option((libc::SOL_SOCKET, libc::SO_PASSCRED), 1));
}

/// Makes a UDP socket keep the boundaries between datagrams, which its owner may have had merged or
/// cut. Other sockets do not have these options.
pub(super) fn keep_boundaries(descriptor: &mut Descriptor) {
    for name in [libc::UDP_GRO, libc::UDP_SEGMENT] {
        drop(descriptor.set_option((libc::SOL_UDP, name), 0));
    }
}

/// Whether each message says that it is one.
pub(super) fn marks_messages(fd: BorrowedFd<'_>) -> bool {
    let option = |name| sys::option(fd, libc::SOL_SOCKET, name).unwrap_or(0);
    option(libc::SO_DOMAIN) == libc::AF_UNIX && option(libc::SO_PASSCRED) != 0
}

fn wrong(index: usize, found: &str) -> Result<Found, SetupError> {
    Err(SetupError::WrongKind {
        index,
        found: found.to_owned(),
        expected: "a datagram socket, a connected seqpacket socket or an AF_PACKET socket",
    })
}
