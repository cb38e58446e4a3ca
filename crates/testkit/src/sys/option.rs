//! Socket options that no safe wrapper knows, and numbers that are no descriptors.

// UNSAFETY: SOL_PACKET options are in no safe wrapper, and a number that is closed on purpose can
// only be borrowed raw.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The value of an option that is an integer.
pub(crate) fn get(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    let at = (&raw mut value).cast();
    // SAFETY: `at` points to `len` writable bytes, and `len` lives on this stack. SO_GET_FILTER,
    // which counts in instructions, is not asked for here.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len) })?;
    Ok(value)
}

/// Sets an option that is an integer.
pub(crate) fn set(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    let at = (&raw const value).cast();
    // SAFETY: `at` points to the `len` bytes of `value`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, at, len) })
}

/// How many instructions the filter on a socket has.
pub(crate) fn filter_len(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut len = 0;
    let (level, name, at) = (libc::SOL_SOCKET, libc::SO_GET_FILTER, std::ptr::null_mut());
    // SAFETY: with room for no instruction the kernel writes only the number of them.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len) })?;
    Ok(len)
}

/// A number that is no open descriptor.
pub(crate) fn closed() -> BorrowedFd<'static> {
    // SAFETY: the number is not -1; it is above what the kernel lets any process open (nr_open is
    // at most 2^31 - 64), so it never becomes somebody's descriptor.
    unsafe { BorrowedFd::borrow_raw(libc::c_int::MAX) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
