//! Descriptors of any kind: what they refer to, their flags.

// UNSAFETY: fstat fills a structure by pointer, fcntl and kcmp are variadic.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// What a descriptor refers to (fstat).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// `st_mode & S_IFMT`; 0 for what has no kind.
    pub(crate) file_type: libc::mode_t,
    device: libc::dev_t,
    inode: libc::ino_t,
}

/// What the descriptor refers to.
pub(crate) fn object(fd: BorrowedFd<'_>) -> io::Result<Object> {
    let stat = stat(fd)?;
    Ok(Object { file_type: stat.st_mode & libc::S_IFMT, device: stat.st_dev, inode: stat.st_ino })
}

/// Major and minor number of the device that a node is of.
pub(crate) fn device_number(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let number = stat(fd)?.st_rdev;
    Ok((libc::major(number), libc::minor(number)))
}

fn stat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is writable and as large as fstat's result.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded and so filled the whole structure.
    Ok(unsafe { stat.assume_init() })
}

/// Whether both descriptors are of one open file description: duplicates of each other. False
/// where neither call that tells is there.
pub(crate) fn same_description(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    // linux/fcntl.h, Linux 6.10; answers 0 or 1, and before that EINVAL.
    const F_DUPFD_QUERY: libc::c_int = 1024 + 3;
    // linux/kcmp.h
    const KCMP_FILE: libc::c_long = 0;
    let (raw_a, raw_b) = (a.as_raw_fd(), b.as_raw_fd());
    // SAFETY: F_DUPFD_QUERY takes one integer, and an unknown command looks at no argument.
    if let Ok(same) = check(unsafe { libc::fcntl(raw_a, F_DUPFD_QUERY, raw_b) }) {
        return same == 1;
    }
    // CONFIG_KCMP, and a seccomp filter may forbid it.
    let process = std::process::id();
    let (first, second) = (libc::c_long::from(raw_a), libc::c_long::from(raw_b));
    // SAFETY: kcmp takes five integers.
    unsafe { libc::syscall(libc::SYS_kcmp, process, process, KCMP_FILE, first, second) == 0 }
}

/// The status flags (F_GETFL).
pub(crate) fn status_flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFL takes no argument.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })
}

/// Replaces the status flags (F_SETFL).
pub(crate) fn set_status_flags(fd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETFL takes one integer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(|_| ())
}

/// Sets close-on-exec, which is a property of the descriptor and not of what it refers to.
pub(crate) fn set_close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_SETFD takes one integer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn duplicates_are_told_from_another_opening_of_the_same_file() {
        let [one, other] = [(); 2].map(|()| File::open("/dev/null").unwrap());
        let duplicate = one.try_clone().unwrap();
        assert_eq!(object(one.as_fd()).unwrap(), object(other.as_fd()).unwrap());
        assert!(same_description(one.as_fd(), duplicate.as_fd()));
        assert!(!same_description(one.as_fd(), other.as_fd()));
    }
}
