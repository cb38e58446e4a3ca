//! Waiting for descriptors, and waking whoever waits.

// UNSAFETY: poll takes a pointer to an array, eventfd returns a raw descriptor.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::{check, check_len};

/// Waits until a descriptor is readable, has an error or was hung up, or until the time is over.
/// Which one it was is for the caller to find out; an interruption is one of the reasons.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>; 2], timeout: Option<Duration>) {
    let mut entries = fds.map(|fd| entry(fd, libc::POLLIN));
    wait(&mut entries, timeout);
}

/// Waits until a descriptor is ready for one of the events, has an error or was hung up, or until
/// the time is over.
pub(crate) fn wait_for(fd: BorrowedFd<'_>, events: libc::c_short, timeout: Option<Duration>) {
    wait(&mut [entry(fd, events)], timeout);
}

/// What poll says of one descriptor now, without waiting.
pub(crate) fn events(fd: BorrowedFd<'_>, asked: libc::c_short) -> libc::c_short {
    let mut entries = [entry(fd, asked)];
    wait(&mut entries, Some(Duration::ZERO));
    entries[0].revents
}

fn entry(fd: BorrowedFd<'_>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

fn wait(entries: &mut [libc::pollfd], timeout: Option<Duration>) {
    // Rounded up: waking before the deadline would make the caller spin up to it.
    let millis = timeout.map_or(-1, |time| {
        libc::c_int::try_from(time.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
    });
    let count = entries.len() as libc::nfds_t;
    // SAFETY: the pointer and the count are those of one exclusively borrowed slice.
    unsafe { libc::poll(entries.as_mut_ptr(), count, millis) };
}

/// An eventfd: once raised it stays readable.
#[derive(Debug)]
pub(crate) struct Event(OwnedFd);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two integers.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: eventfd returned this descriptor just now, so nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes everyone who waits for it, now and later.
    pub(crate) fn raise(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the pointer and the length are those of one live array.
        let wrote = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        // EAGAIN means that the count is at its end: it is readable already.
        let _ = check_len(wrote);
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
