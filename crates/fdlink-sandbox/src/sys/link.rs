//! Binding packet sockets and attaching TAP queues.

// UNSAFETY: rustix has no sockaddr_ll and no TUNSETIFF; both are structures handed to the kernel
// by pointer.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

use std::{
    ffi::c_short,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// Binds a packet socket to an interface, for every protocol (`ETH_P_ALL`).
pub(crate) fn bind_packet(socket: BorrowedFd<'_>, index: i32) -> io::Result<()> {
    let every: u16 = 3; // ETH_P_ALL, which libc has as a c_int
    let address = libc::sockaddr_ll {
        sll_family: 17, // AF_PACKET, which libc has as a c_int
        sll_protocol: every.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    const LEN: libc::socklen_t = 20;
    const { assert!(LEN as usize == size_of::<libc::sockaddr_ll>()) };
    // SAFETY: the pointer is to LEN readable bytes, `address`, which lives across the call; the
    // kernel only reads them.
    let result = unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), LEN) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `TUNSETIFF`: makes the TAP device `name`, or attaches one more queue to it. Frames carry no
/// packet information and a virtio-net header.
pub(crate) fn attach_tap(tun: BorrowedFd<'_>, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // SAFETY: an ifreq is plain numbers, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One byte less than there is room for, so that the name stays NUL-terminated.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, and `request` is one, initialised.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
