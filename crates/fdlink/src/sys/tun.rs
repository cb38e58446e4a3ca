//! TUN and TAP devices (linux/if_tun.h).

// UNSAFETY: a TUN device is set up by ioctl alone, and each takes a pointer to its own structure.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::interface::Request;
use super::{check, descriptor, message};

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

/// Whether the descriptor is of the node that TUN and TAP devices are made by, and not of a node
/// that one macvtap has to itself.
pub(crate) fn is_tun_node(fd: BorrowedFd<'_>) -> bool {
    // linux/miscdevice.h, linux/major.h
    const MISC_MAJOR: u32 = 10;
    const TUN_MINOR: u32 = 200;
    descriptor::device_number(fd).is_ok_and(|number| number == (MISC_MAJOR, TUN_MINOR))
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

/// Takes the filter off the TAP device behind the descriptor, if it has one.
pub(crate) fn detach_filter(fd: BorrowedFd<'_>) -> io::Result<()> {
    let none = libc::sock_fprog { len: 0, filter: std::ptr::null_mut() };
    // SAFETY: TUNDETACHFILTER is declared to read a sock_fprog, which is what it is given.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNDETACHFILTER, &raw const none) })
        .map(|_| ())
}

/// Throws away the frames that wait to be read.
pub(crate) fn discard_waiting(fd: BorrowedFd<'_>) {
    // More than any device queues, so that a flood cannot keep us here.
    const MOST: usize = 100_000;
    // With room for a vnet header, without which the kernel takes the frame and says EINVAL.
    let mut start = [0; 16];
    let mut frames = (0..MOST).map(|_| message::read(fd, &mut start));
    while frames.next().is_some_and(|frame| frame.is_ok()) {}
}

/// The network namespace that the device behind the descriptor is in now. CAP_NET_ADMIN there.
pub(crate) fn network_namespace(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // linux/if_tun.h: _IO('T', 227); macvtap does not know it.
    const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let namespace = check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS) })?;
    // SAFETY: the kernel returned this descriptor just now, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}
