//! System calls behind safe methods: one kernel object per file, no policy. The only place of
//! this crate with unsafe code.
//!
//! What is not here: what a link is (`link/`), and when which call is made (`io/`).

mod address;
#[cfg(feature = "tokio")]
pub(crate) mod aio;
pub(crate) mod descriptor;
pub(crate) mod filter;
pub(crate) mod interface;
pub(crate) mod message;
pub(crate) mod netlink;
pub(crate) mod outgoing;
pub(crate) mod poll;
pub(crate) mod ring;
pub(crate) mod socket;
pub(crate) mod tun;

use std::io;

/// The result of a call that says -1 and errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The result of a call that says -1 and errno, or a length.
fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The size of a structure as socket calls want it. Every structure here is below 4 GiB.
const fn len_of<T>() -> libc::socklen_t {
    let len = size_of::<T>();
    assert!(len < 1 << 16);
    #[expect(clippy::cast_possible_truncation, reason = "asserted in the line above")]
    {
        len as libc::socklen_t
    }
}
