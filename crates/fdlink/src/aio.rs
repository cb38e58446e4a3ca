//! Readiness of descriptors under tokio: what a driver of queues waits on.
//!
//! Both directions of one descriptor cannot be registered twice with one epoll instance; register
//! a duplicate (`try_clone_to_owned`) for each interest that is waited for apart.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the current tokio runtime, which does not read or write it.
///
/// # Errors
///
/// Where the descriptor cannot be polled (a plain file), is registered already, or the process has
/// reached its limit of epoll watches.
///
/// # Panics
///
/// Outside a tokio runtime with I/O enabled, as everything of tokio's.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    crate::sys::aio::register(descriptor, interest)
}
