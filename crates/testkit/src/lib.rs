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

pub use namespace::{in_namespace, in_namespace_with, in_second_namespace};
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

/// Gives a TUN or TAP descriptor with a vnet header one of another length.
///
/// # Errors
///
/// Where the descriptor is no such device, or the length is below 10.
pub fn set_tun_vnet_header(fd: std::os::fd::BorrowedFd<'_>, len: i32) -> std::io::Result<()> {
    sys::tun::set_vnet_header_len(fd, len)
}

/// Gives an AF_PACKET socket a vnet header of that length (10, 12, or 0 for none). Linux 6.4.
///
/// # Errors
///
/// Where the descriptor is no such socket, or the length is another.
pub fn set_packet_vnet_header(fd: &std::os::fd::OwnedFd, len: i32) -> std::io::Result<()> {
    sys::packet::set_vnet_header_len(fd, len)
}

/// A raw AF_PACKET socket on an interface, as it is made: blocking, with the default of every
/// option.
///
/// # Errors
///
/// Where there is no such interface or no right to open such a socket.
pub fn packet_socket(interface: &str) -> std::io::Result<std::os::fd::OwnedFd> {
    sys::packet::open_plain(interface::index(interface)?)
}

/// The same, cooked (SOCK_DGRAM).
///
/// # Errors
///
/// As [`packet_socket`].
pub fn cooked_packet_socket(interface: &str) -> std::io::Result<std::os::fd::OwnedFd> {
    sys::packet::open_cooked(interface::index(interface)?)
}

/// The value of a socket option that is an integer, for levels that no safe wrapper knows.
///
/// # Errors
///
/// Where the descriptor is no socket that has the option.
///
/// # Panics
///
/// For SO_GET_FILTER, which is none ([`filter_len`]).
pub fn socket_option(
    fd: std::os::fd::BorrowedFd<'_>,
    level: i32,
    name: i32,
) -> std::io::Result<i32> {
    assert_ne!((level, name), (1, 26), "SO_GET_FILTER is no integer");
    sys::option::get(fd, level, name)
}

/// Sets an integer socket option, by level and name.
///
/// # Errors
///
/// Where the descriptor has no such option, or it may not have that value.
pub fn set_socket_option(
    fd: std::os::fd::BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: i32,
) -> std::io::Result<()> {
    sys::option::set(fd, level, name, value)
}

/// How many instructions the filter on a socket has; 0 without.
///
/// # Errors
///
/// Where the descriptor is no socket, or the filter is no classic one.
pub fn filter_len(fd: std::os::fd::BorrowedFd<'_>) -> std::io::Result<u32> {
    sys::option::filter_len(fd)
}

/// A number that is no open descriptor.
pub fn closed_descriptor() -> std::os::fd::BorrowedFd<'static> {
    sys::option::closed()
}

/// Makes an AF_PACKET socket cut what it receives to so many bytes, by a filter.
///
/// # Errors
///
/// Where the descriptor is no socket.
pub fn cut_frames(fd: std::os::fd::BorrowedFd<'_>, bytes: u32) -> std::io::Result<()> {
    sys::packet::cut_frames(fd, bytes)
}
