//! What the tests of this workspace share: network namespaces without root ([`in_namespace`]),
//! interfaces in them ([`interface`]), a far end that sends and receives by script ([`Peer`]),
//! packets with right checksums ([`packet`]), and a look at the test's own process ([`process`]).
//!
//! A test that lacks a right is skipped, and says so on a line `SKIPPED <test>: <reason>`; with
//! FDLINK_REQUIRE=1 in the environment it fails instead.

pub mod interface;
mod namespace;
pub mod packet;
mod peer;
pub mod process;
mod sys;

pub use namespace::{in_namespace, in_second_namespace};
pub use peer::Peer;
pub use sys::alloc::CountingAllocator;

use std::io::Write;

/// Says that a test, or a part of one, was not run, and why; panics where nothing may be skipped
/// (FDLINK_REQUIRE=1).
pub fn skip(test: &str, reason: &str) {
    let required = std::env::var_os("FDLINK_REQUIRE").is_some_and(|value| value == "1");
    assert!(!required, "FDLINK_REQUIRE=1, but {test} cannot run: {reason}");
    // Not println!, which the test harness captures.
    let line = format!("SKIPPED {test}: {reason}\n");
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

/// Whether TUN and TAP devices can be made; if not, says that `test` was skipped.
pub fn has_tun(test: &str) -> bool {
    let node = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = &node {
        skip(test, &format!("/dev/net/tun: {error}"));
    }
    node.is_ok()
}

/// Makes the kernel side of a TUN or TAP device leave nothing to the descriptor's owner, as on a
/// device that was just made.
///
/// # Errors
///
/// Where the descriptor is no such device.
pub fn clear_tun_offloads(fd: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
    sys::tun::clear_offloads(fd)
}
