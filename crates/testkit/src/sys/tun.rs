//! TUN and TAP devices.

// UNSAFETY: an ioctl is the only way to say what a device's kernel side leaves to us.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// TUNSETOFFLOAD with nothing in it.
pub(crate) fn clear_offloads(fd: BorrowedFd<'_>) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: TUNSETOFFLOAD takes an integer and no pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, none) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// TUNSETVNETHDRSZ.
pub(crate) fn set_vnet_header_len(fd: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int from the pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
