//! Sockets: making, binding, asking and setting options. Names of constants as in C.

// UNSAFETY: socket options and addresses are exchanged as pointers to C structures, and neither
// std nor safe wrappers know SOL_PACKET.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{address, check, len_of};

/// Makes a socket, non-blocking and closed on exec.
pub(crate) fn open(domain: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes three integers and no pointer.
    let fd = check(unsafe { libc::socket(domain, kind, 0) })?;
    // SAFETY: socket returned this descriptor just now, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a pair of AF_UNIX sockets that are connected to each other, blocking and closed on exec.
pub(crate) fn pair(kind: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut raw = [-1; 2];
    let (kind, at) = (kind | libc::SOCK_CLOEXEC, raw.as_mut_ptr());
    // SAFETY: socketpair writes two integers, and `at` points to as many.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, at) })?;
    // SAFETY: socketpair returned both descriptors just now, so nobody else owns them.
    let [one, other] = raw.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((one, other))
}

/// A socket option that is an integer.
pub(crate) fn option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = len_of::<libc::c_int>();
    let at = (&raw mut value).cast();
    // SAFETY: `at` points to `len` writable bytes, and `len` lives on this stack.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len) })?;
    Ok(value)
}

/// A number that the network namespace of the socket has to itself (SO_NETNS_COOKIE, Linux 5.14).
pub(crate) fn namespace(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = len_of::<u64>();
    let (raw, at) = (fd.as_raw_fd(), (&raw mut cookie).cast());
    let (level, name) = (libc::SOL_SOCKET, libc::SO_NETNS_COOKIE);
    // SAFETY: `at` points to `len` writable bytes, and `len` lives on this stack.
    check(unsafe { libc::getsockopt(raw, level, name, at, &raw mut len) })?;
    Ok(cookie)
}

/// Sets a socket option that is an integer.
pub(crate) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let at = (&raw const value).cast();
    let len = len_of::<libc::c_int>();
    // SAFETY: `at` points to the `len` bytes of `value`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, at, len) }).map(|_| ())
}

/// Whether the socket has a peer (getpeername); a connection that is being made has none yet.
pub(crate) fn is_connected(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::uninit();
    let mut len = len_of::<libc::sockaddr_storage>();
    // SAFETY: `name` has room for the `len` bytes of any address, and `len` lives on this stack.
    let result =
        unsafe { libc::getpeername(fd.as_raw_fd(), name.as_mut_ptr().cast(), &raw mut len) };
    match check(result) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Where an AF_PACKET socket is bound (getsockname).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PacketName {
    /// 0: to none; -1: the interface is gone.
    pub(crate) interface: libc::c_int,
    /// The interface's hardware type (`ARPHRD_*`).
    pub(crate) hardware: u16,
    /// The interface's own address, where it is an Ethernet address; else zeros.
    pub(crate) address: [u8; 6],
    /// The EtherType received, host byte order; 0 for a socket that receives nothing.
    pub(crate) protocol: u16,
}

/// Where an AF_PACKET socket is bound.
pub(crate) fn packet_name(fd: BorrowedFd<'_>) -> io::Result<PacketName> {
    let mut name = address::empty();
    let mut len = len_of::<libc::sockaddr_ll>();
    let at = (&raw mut name).cast();
    // SAFETY: `at` points to `len` writable bytes, and `len` lives on this stack.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), at, &raw mut len) })?;
    Ok(PacketName {
        interface: name.sll_ifindex,
        hardware: name.sll_hatype,
        address: address::ethernet_address(&name),
        protocol: u16::from_be(name.sll_protocol),
    })
}

/// Binds an AF_PACKET socket to an interface; from then on it receives that protocol.
pub(crate) fn bind_packet(
    fd: BorrowedFd<'_>,
    interface: libc::c_int,
    protocol: u16,
) -> io::Result<()> {
    let name = address::on_interface(interface, protocol);
    let at = (&raw const name).cast();
    // SAFETY: `at` points to a sockaddr_ll of the length given.
    check(unsafe { libc::bind(fd.as_raw_fd(), at, len_of::<libc::sockaddr_ll>()) }).map(|_| ())
}

/// Frames that the kernel dropped since the last call (PACKET_STATISTICS resets when read).
pub(crate) fn packet_drops(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = len_of::<libc::tpacket_stats>();
    let (raw, at) = (fd.as_raw_fd(), (&raw mut counts).cast());
    // A TPACKET_V3 socket has a longer structure that starts with the same two fields; the kernel
    // writes no more than `len`.
    // SAFETY: `at` points to `len` writable bytes, and `len` lives on this stack.
    check(unsafe {
        libc::getsockopt(raw, libc::SOL_PACKET, libc::PACKET_STATISTICS, at, &raw mut len)
    })?;
    Ok(counts.tp_drops)
}

/// Messages that the kernel has dropped ever since the socket was made, for want of room or for a
/// wrong checksum (SO_MEMINFO).
pub(crate) fn dropped(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // linux/sock_diag.h
    const SK_MEMINFO_DROPS: usize = 8;
    let mut info = [0_u32; SK_MEMINFO_DROPS + 1];
    let mut len = len_of::<[u32; SK_MEMINFO_DROPS + 1]>();
    let (raw, at) = (fd.as_raw_fd(), info.as_mut_ptr().cast());
    // SAFETY: `at` points to `len` writable bytes, and `len` lives on this stack.
    check(unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, libc::SO_MEMINFO, at, &raw mut len) })?;
    Ok(info[SK_MEMINFO_DROPS])
}

/// Bytes of the messages that wait to be received (SIOCINQ).
pub(crate) fn bytes_waiting(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD (the same number as SIOCINQ) writes one int to the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut waiting) })?;
    Ok(usize::try_from(waiting).unwrap_or(0))
}

/// Throws away the messages that wait to be received.
pub(crate) fn discard_waiting(fd: BorrowedFd<'_>) {
    // More than any buffer holds, so that a flood cannot keep us here.
    const MOST: usize = 100_000;
    // With room for a vnet header, without which the kernel takes one and says EINVAL.
    let mut start = [0; 16];
    for _ in 0..MOST {
        match super::message::recv(fd, &mut start) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// Throws away what is on the error queue.
pub(crate) fn discard_errors(fd: BorrowedFd<'_>) {
    // More than one look at it leaves behind, so that a flood cannot keep us here.
    const MOST: usize = 1000;
    // Unix sockets have no such queue, and would give a message instead.
    if option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).is_ok_and(|domain| domain != libc::AF_UNIX) {
        let errors = (0..MOST).map(|_| super::message::recv_error(fd, &mut [0; 16]));
        errors.take_while(io::Result::is_ok).for_each(drop);
    }
}

/// Whether an AF_PACKET socket is in a fanout group, found out by an attempt that fails: that it is
/// in one is checked before a number that nobody may ask for is refused (fanout_add,
/// net/packet/af_packet.c).
pub(crate) fn in_fanout_group(fd: BorrowedFd<'_>) -> bool {
    let argument = (libc::PACKET_FANOUT_FLAG_UNIQUEID << 16 | 1).cast_signed();
    set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, argument)
        .is_err_and(|error| error.raw_os_error() == Some(libc::EALREADY))
}

/// Has the interface receive everyone's frames as long as the AF_PACKET socket is open.
pub(crate) fn add_promiscuous(fd: BorrowedFd<'_>, interface: libc::c_int) -> io::Result<()> {
    promiscuous(fd, libc::PACKET_ADD_MEMBERSHIP, interface)
}

/// Takes [`add_promiscuous`] back.
pub(crate) fn drop_promiscuous(fd: BorrowedFd<'_>, interface: libc::c_int) -> io::Result<()> {
    promiscuous(fd, libc::PACKET_DROP_MEMBERSHIP, interface)
}

fn promiscuous(fd: BorrowedFd<'_>, name: libc::c_int, interface: libc::c_int) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: interface,
        mr_type: 1, // PACKET_MR_PROMISC, in the type of this field
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let (at, len) = ((&raw const request).cast(), len_of::<libc::packet_mreq>());
    // SAFETY: `at` points to the `len` bytes of `request`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, name, at, len) }).map(|_| ())
}
