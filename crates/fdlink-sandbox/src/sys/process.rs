//! Copies of this process: one in new namespaces (init), one to become the command.

// UNSAFETY: clone with namespace flags, fork, execvp, _exit and unshare are in no safe interface:
// what they do to memory and descriptors depends on there being one thread.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

use std::{
    ffi::{CString, c_char, c_int},
    fs, io,
    os::fd::{FromRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use rustix::process::Pid;

/// What a copied process exits with after a panic. P sees its hang-up, nobody the number.
const PANICKED: i32 = 101;

/// Proof that this process had one thread when it was made. A copy of such a process can run any
/// code: no lock is held by a thread that it does not have.
#[derive(Debug)]
pub(crate) struct SingleThreaded(());

/// How many threads this process has, with the proof if it is one.
pub(crate) fn count_threads() -> io::Result<(usize, Option<SingleThreaded>)> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    Ok((threads, (threads == 1).then_some(SingleThreaded(()))))
}

/// Proof that this code runs in a copy made by [`clone`] or [`fork`], which has one thread, does
/// not use or drop what the original owned, and leaves by `_exit` or `exec`.
#[derive(Debug)]
pub(crate) struct Copied(());

/// A cloned process, by number and by a handle that outlives the number.
#[derive(Debug)]
pub(crate) struct Cloned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// `clone(flags | CLONE_PIDFD | SIGCHLD)` without `CLONE_VM`: as fork, in new namespaces. The copy
/// runs `child` and exits with what it returns.
///
/// The raw call, because glibc's `clone` wants a stack and its `fork` takes no flags. What glibc's
/// fork does beyond it (atfork handlers, its cached thread id) matters to threads only.
pub(crate) fn clone(
    _single: &SingleThreaded,
    flags: c_int,
    child: impl FnOnce(&Copied) -> i32,
) -> io::Result<Cloned> {
    let flags = libc::c_long::from(flags | libc::CLONE_PIDFD | libc::SIGCHLD);
    let mut pidfd: c_int = -1;
    // SAFETY: without CLONE_VM and CLONE_VFORK the child has its own copy of this memory, so a
    // null stack means "go on on the copy of this one"; with CLONE_PIDFD the kernel writes one int
    // to the third argument, which points to `pidfd`; the fourth and fifth (child tid, tls: their
    // order depends on the architecture) are unused with these flags. The process has one thread
    // (`_single`), so the copy finds no lock held.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone, flags, ptr::null::<u8>(), &raw mut pidfd, 0_usize, 0_usize)
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => run_and_exit(child),
        pid => {
            let pid =
                i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::Other)?;
            // SAFETY: clone succeeded, so the kernel has put a new descriptor into `pidfd`, and
            // nobody else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned { pid, pidfd })
        }
    }
}

/// `fork`. The copy runs `child` and exits with what it returns.
pub(crate) fn fork(_copied: &Copied, child: impl FnOnce(&Copied) -> i32) -> io::Result<Pid> {
    // SAFETY: fork has no precondition of its own; what its child may do depends on other threads,
    // and a `Copied` process has none.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => run_and_exit(child),
        pid => Ok(Pid::from_raw(pid).ok_or(io::ErrorKind::Other)?),
    }
}

fn run_and_exit(child: impl FnOnce(&Copied) -> i32) -> ! {
    // A panic must not unwind into the frames copied from the original's caller.
    let code = catch_unwind(AssertUnwindSafe(|| child(&Copied(())))).unwrap_or(PANICKED);
    // SAFETY: _exit never returns and runs nothing of ours: no atexit handler, no second flush of
    // stdio buffers copied from the original.
    unsafe { libc::_exit(code) }
}

/// `execvp`: comes back only with an error.
pub(crate) fn exec(_copied: &Copied, arguments: &[CString]) -> io::Error {
    let mut pointers: Vec<*const c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    pointers.push(ptr::null());
    let Some(file) = arguments.first() else { return io::ErrorKind::InvalidInput.into() };
    // SAFETY: `file` and every entry of `pointers` but the last are NUL-terminated strings that
    // live in `arguments` until the call returns; the last entry is null, as execvp requires.
    unsafe { libc::execvp(file.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// `unshare(CLONE_NEWNET)`.
pub(crate) fn unshare_network(_copied: &Copied) -> rustix::io::Result<()> {
    // SAFETY: the hazard of unshare is CLONE_FILES, which takes descriptors away from other
    // threads; this asks for a network namespace only.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}

/// `kill` with any signal number, real-time ones too, which rustix has no names for.
pub(crate) fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of this process; a `Pid` is positive,
    // so this is one process and never a group.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
