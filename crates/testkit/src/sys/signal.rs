//! Signals that interrupt system calls.

// UNSAFETY: a handler is installed by address, and tgkill is in no safe wrapper.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(_: libc::c_int) {
    // An atomic addition is all that a handler may do and all that is wanted.
    HANDLED.fetch_add(1, Relaxed);
}

/// How often the handler has run.
pub(crate) fn handled() -> u64 {
    HANDLED.load(Relaxed)
}

/// Makes SIGUSR1 interrupt whatever system call it meets (EINTR): a handler without SA_RESTART.
pub(crate) fn interrupt_on_usr1() -> io::Result<()> {
    // SAFETY: sigaction is integers, pointers and a set of bits, for all of which zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: `action` is whole, its handler has the signature that its flags (none) ask for and
    // does only what is async-signal-safe; the old action is not asked for.
    check(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) })
}

/// Sends SIGUSR1 to a thread of this process.
pub(crate) fn send_usr1(thread: i32) -> io::Result<()> {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: tgkill takes three integers.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
