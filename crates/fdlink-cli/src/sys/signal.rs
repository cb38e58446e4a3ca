//! Signals as a descriptor, with who sent them.

// UNSAFETY: signal sets are filled in by libc through pointers, and neither rustix nor tokio has
// a safe signalfd; tokio's signal streams do not say who sent a signal.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Signals that would end this program, or that its command may want to hear of.
const TAKEN: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// A signal that was sent to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Its number.
    pub(crate) number: i32,
    /// Whether the kernel sent it, as the terminal driver does, to the whole process group.
    pub(crate) by_kernel: bool,
}

/// The signals of this process, taken from their default actions.
#[derive(Debug)]
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Takes the signals, for the calling thread; the process must have no other.
    pub(crate) fn take() -> io::Result<Self> {
        let set = taken();
        // SAFETY: `set` is an initialised signal set, and a null old set is allowed.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
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

    /// The next signal that has come; `None` where none has.
    pub(crate) fn next(&self) -> io::Result<Option<Received>> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut record) {
            // The kernel gives whole records only.
            Ok(_) => {
                let field = |at: usize| {
                    i32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
                };
                let code = field(offset_of!(libc::signalfd_siginfo, ssi_code));
                Ok(Some(Received {
                    number: field(offset_of!(libc::signalfd_siginfo, ssi_signo)),
                    by_kernel: code == libc::SI_KERNEL,
                }))
            }
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn taken() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set that it is given room for.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: written by the line above, which cannot fail with a valid pointer.
    let mut set = unsafe { set.assume_init() };
    for signal in TAKEN {
        // SAFETY: `set` is an initialised signal set, and `signal` a signal's number.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}
