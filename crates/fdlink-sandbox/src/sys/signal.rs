//! Signal masks, the two dispositions that must not be inherited, and a descriptor for SIGCHLD.

// UNSAFETY: signal sets are filled in by libc through pointers, and rustix has neither these calls
// nor signalfd in its safe interface.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use super::process::Copied;

/// Blocks every signal that can be blocked.
pub(crate) fn block_all(_copied: &Copied) -> io::Result<()> {
    set_mask(&full_set())
}

/// Unblocks every signal, and gives SIGPIPE its default back, which Rust's start-up code sets to
/// ignored. Handlers need no care (exec resets them), and a signal that P's parent had ignored
/// stays ignored, as `nohup` needs it.
pub(crate) fn reset_for_exec(_copied: &Copied) -> io::Result<()> {
    set_default(libc::SIGPIPE)?;
    set_mask(&empty_set())
}

/// Has the kernel keep the statuses of ended children. Where P's parent had SIGCHLD ignored it
/// would reap them by itself, and `wait` know nothing (ECHILD).
pub(crate) fn keep_children(_copied: &Copied) -> io::Result<()> {
    set_default(libc::SIGCHLD)
}

/// A descriptor that is readable while a SIGCHLD is pending.
#[derive(Debug)]
pub(crate) struct ChildSignal(OwnedFd);

impl ChildSignal {
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = empty_set();
        // SAFETY: `set` is an initialised signal set, and SIGCHLD a signal number.
        unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
        // SAFETY: −1 asks for a new descriptor, `set` is an initialised signal set that the kernel
        // only reads.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just made this descriptor, and nobody else knows its number.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes what is pending. How many it were says nothing: SIGCHLD does not queue.
    pub(crate) fn clear(&self) {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.0, &mut record).is_ok_and(|n| n > 0) {}
    }
}

impl AsFd for ChildSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_default(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_DFL runs no code of ours; a number that is no signal is EINVAL.
    match unsafe { libc::signal(signal, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn set_mask(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is an initialised signal set, and a null old set is allowed.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set that it is given room for.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: written by the line above, which cannot fail with a valid pointer.
    unsafe { set.assume_init() }
}

fn full_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset writes the whole set that it is given room for.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: written by the line above, which cannot fail with a valid pointer.
    unsafe { set.assume_init() }
}
