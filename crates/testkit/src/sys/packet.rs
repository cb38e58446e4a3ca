//! AF_PACKET sockets.

// UNSAFETY: sockaddr_ll and SOL_PACKET are in no safe wrapper.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// An AF_PACKET socket bound to the interface of that index: with a vnet header of 10 bytes, and
/// without what this host sends itself.
pub(crate) fn open(index: u32) -> io::Result<OwnedFd> {
    let fd = socket(libc::SOCK_RAW)?;
    for name in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        set_option(fd.as_fd(), libc::SOL_PACKET, name, &1)?;
    }
    // As root a test may send faster than the default buffer takes.
    let _ = set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(8 << 20));
    bind(&fd, index)?;
    Ok(fd)
}

/// PACKET_VNET_HDR_SZ.
pub(crate) fn set_vnet_header_len(fd: &OwnedFd, len: libc::c_int) -> io::Result<()> {
    set_option(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR_SZ, &len)
}

/// An AF_PACKET socket bound to the interface of that index, and otherwise as it is made.
pub(crate) fn open_plain(index: u32) -> io::Result<OwnedFd> {
    let fd = socket(libc::SOCK_RAW)?;
    bind(&fd, index)?;
    Ok(fd)
}

/// The same, cooked.
pub(crate) fn open_cooked(index: u32) -> io::Result<OwnedFd> {
    let fd = socket(libc::SOCK_DGRAM)?;
    bind(&fd, index)?;
    Ok(fd)
}

fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes three integers.
    let raw = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: socket returned this descriptor just now, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn bind(fd: &OwnedFd, index: u32) -> io::Result<()> {
    let name = libc::sockaddr_ll {
        sll_family: 17,              // AF_PACKET, in the type of this field
        sll_protocol: 3_u16.to_be(), // ETH_P_ALL
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let at = (&raw const name).cast();
    let len = len_of::<libc::sockaddr_ll>();
    // SAFETY: `at` points to a sockaddr_ll of the length given.
    check(unsafe { libc::bind(fd.as_raw_fd(), at, len) }).map(|_| ())
}

/// A filter of one instruction: accept so many bytes of each frame (linux/filter.h).
pub(crate) fn cut_frames(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    const RET_K: u16 = 6; // BPF_RET | BPF_K
    let mut program = [libc::sock_filter { code: RET_K, jt: 0, jf: 0, k: bytes }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // The kernel copies the program, which lives until the call has returned.
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
}

fn set_option<T>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let at = ptr::from_ref(value).cast();
    let len = len_of::<T>();
    // SAFETY: `at` points to the `len` bytes of `value`; where it holds pointers, they are those of
    // live objects of its caller (`cut_frames`).
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, at, len) }).map(|_| ())
}

fn len_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
