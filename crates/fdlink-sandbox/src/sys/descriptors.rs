//! Closing what a copied process inherited.

// UNSAFETY: the descriptors belong to objects of the original process, which exist as copies in
// this one's memory; only their bare numbers are known here.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use super::process::Copied;

/// Closes every close-on-exec descriptor but `keep`. Such a descriptor is one that its owner did
/// not mean to hand on, and a copy of it held here would keep a file, pipe or socket of P open.
///
/// Taking [`Copied`] by reference says: this runs in a copied process, so the objects that own the
/// descriptors are the originals' copies and will not be used or dropped (it leaves by `_exit`).
pub(crate) fn close_inherited(_copied: &Copied, keep: BorrowedFd<'_>) {
    // Without /proc nothing is closed: the copies live until init ends, which is no harm to
    // correctness except for P's own end of the control socket; that is closed by the caller.
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    // Collected first, so that the directory's own descriptor is closed when we get to it.
    let numbers: Vec<RawFd> =
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for number in numbers {
        if number != keep.as_fd().as_raw_fd() && is_close_on_exec(number) {
            // SAFETY: close only needs that nobody in this process uses `number` afterwards. The
            // owners are copies of P's objects, and by the contract of `Copied` none is used.
            unsafe { libc::close(number) };
        }
    }
}

fn is_close_on_exec(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer, and on a number that is not open it is EBADF, nothing else.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC != 0
}
