//! A descriptor registered with tokio.

// UNSAFETY: tokio's registration is unsafe because a type could close or replace its descriptor
// while it is registered.
#![expect(unsafe_code, reason = "see above")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `descriptor`.
pub(crate) fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay open and the same while it is registered. `OwnedFd` always
    // returns the one number that it owns, and `AsyncFd` owns it until it is deregistered.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    registered.map_err(Into::into)
}
