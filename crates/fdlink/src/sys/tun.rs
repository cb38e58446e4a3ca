//! TUN and TAP devices (linux/if_tun.h).

// UNSAFETY: a TUN device is set up by ioctl alone, and each takes a pointer to its own structure.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::check;
use super::interface::Request;

/// Opens the node, non-blocking and closed on exec.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let mut node = OpenOptions::new();
    node.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    node.open("/dev/net/tun").map(OwnedFd::from)
}

/// Attaches the descriptor to a device, which is made if there is none of that name; returns the
/// device's name.
pub(crate) fn set_interface(
    fd: BorrowedFd<'_>,
    name: &str,
    flags: libc::c_int,
) -> io::Result<String> {
    let mut request = Request::named(name)?;
    request.set_flags(flags);
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is what `request` holds.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) })?;
    Ok(request.name())
}

/// Name and flags of the device behind the descriptor.
pub(crate) fn interface(fd: BorrowedFd<'_>) -> io::Result<(String, libc::c_int)> {
    let mut request = Request::empty();
    // SAFETY: TUNGETIFF writes one ifreq, which is what `request` holds.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, request.as_mut_ptr()) })?;
    Ok((request.name(), request.flags()))
}

/// Length of the vnet header on a descriptor with IFF_VNET_HDR.
pub(crate) fn vnet_header_len(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut len: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int to the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut len) })?;
    Ok(len)
}

/// Sets the length of the vnet header.
pub(crate) fn set_vnet_header_len(fd: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int from the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) }).map(|_| ())
}

/// Says what the kernel may leave to us (`TUN_F_*`). Holds for the device, not the descriptor.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, offload: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes an integer and no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) })
        .map(|_| ())
}
