//! What the kernel says of a TCP connection.

// UNSAFETY: rustix has no safe call for TCP_INFO.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd};

/// Where `tcpi_total_retrans` stands (linux/tcp.h): the kernel only ever adds fields behind.
const TOTAL_RETRANS: usize = offset_of!(libc::tcp_info, tcpi_total_retrans);

/// Segments of this connection that the kernel has sent again.
pub(crate) fn total_retransmits(socket: impl AsFd) -> io::Result<u64> {
    let mut info = [0_u8; size_of::<libc::tcp_info>()];
    let mut len = libc::socklen_t::try_from(info.len()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: the kernel writes at most `len` bytes to `info`, which has that many, and then their
    // number to `len`; `fd` is open, as `socket` is borrowed.
    let result =
        unsafe { libc::getsockopt(fd, level, name, info.as_mut_ptr().cast(), &raw mut len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let count = info[TOTAL_RETRANS..].first_chunk().copied().unwrap_or_default();
    Ok(u32::from_ne_bytes(count).into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_fresh_connection_has_retransmitted_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(total_retransmits(&stream).unwrap(), 0);
    }

    #[test]
    fn what_is_no_connection_is_an_error() {
        assert!(total_retransmits(io::stdin()).is_err());
    }
}
