//! What the kernel counts for an interface, asked by route netlink (rtnetlink(7)).
//!
//! The socket belongs to the network namespace of the thread that opened it, wherever its user
//! goes later.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{message, socket};

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFINFO: usize = 16;
const IFLA_STATS64: u16 = 23;
/// `tx_dropped` is the eighth field of `struct rtnl_link_stats64`.
const TX_DROPPED: usize = 7 * 8;

/// Longer than the description of any interface without virtual functions, for which nobody asks.
const ANSWER: usize = 32 * 1024;

/// A socket that asks.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        // Protocol 0 of this family is NETLINK_ROUTE.
        Ok(Self(socket::open(libc::AF_NETLINK, libc::SOCK_RAW)?))
    }

    /// Frames that the interface of that index was to send and dropped, since it was made.
    pub(crate) fn tx_dropped(&mut self, index: libc::c_int) -> io::Result<u64> {
        message::send(self.0.as_fd(), &request(index))?;
        // The kernel answers within send, so there is nothing to wait for.
        let mut answer = vec![0; ANSWER];
        let len = message::recv(self.0.as_fd(), &mut answer)?;
        let answer = answer.get(..len).ok_or(io::ErrorKind::InvalidData)?;
        tx_dropped(answer)
    }
}

/// RTM_GETLINK with a `struct ifinfomsg`.
fn request(index: libc::c_int) -> [u8; NLMSG_HEADER + IFINFO] {
    let mut message = [0; NLMSG_HEADER + IFINFO];
    let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &32_u32.to_ne_bytes());
    put(4, &RTM_GETLINK.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(NLMSG_HEADER + 4, &index.to_ne_bytes());
    message
}

fn tx_dropped(answer: &[u8]) -> io::Result<u64> {
    let strange = || io::Error::from(io::ErrorKind::InvalidData);
    match u16_at(answer, 4) {
        Some(NLMSG_ERROR) => {
            let code = answer.get(NLMSG_HEADER..).and_then(|rest| rest.first_chunk());
            let errno = code.map_or(0, |code| i32::from_ne_bytes(*code).saturating_neg());
            Err(io::Error::from_raw_os_error(errno))
        }
        Some(RTM_NEWLINK) => {
            let attributes = answer.get(NLMSG_HEADER + IFINFO..).ok_or_else(strange)?;
            let stats = attribute(attributes, IFLA_STATS64).ok_or_else(strange)?;
            let field = stats.get(TX_DROPPED..).and_then(|rest| rest.first_chunk());
            field.map(|bytes| u64::from_ne_bytes(*bytes)).ok_or_else(strange)
        }
        _ => Err(strange()),
    }
}

/// The value of the first attribute of that kind (`struct rtattr`, padded to 4 bytes).
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..len)?;
        if u16_at(attributes, 2)? == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::open().unwrap();
        // Index 1 is the loopback interface.
        netlink.tx_dropped(1).unwrap();
        let error = netlink.tx_dropped(i32::MAX).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        netlink.tx_dropped(1).unwrap();
    }

    #[test]
    fn answers_that_are_cut_short_are_errors() {
        let mut answer = vec![0; NLMSG_HEADER + IFINFO];
        answer[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        answer.extend([[8, 0, 3, 0], *b"lo\0\0"].as_flattened());
        answer.extend([196_u16, IFLA_STATS64].map(u16::to_ne_bytes).as_flattened());
        answer.extend((0_u64..24).flat_map(u64::to_ne_bytes));
        assert_eq!(tx_dropped(&answer).unwrap(), 7);
        for cut in 0..answer.len() {
            assert!(tx_dropped(&answer[..cut]).is_err(), "cut to {cut}");
        }
        // An attribute of no length does not hold the search up.
        answer[32] = 0;
        assert!(tx_dropped(&answer).is_err());
    }
}
