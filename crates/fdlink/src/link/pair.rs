//! AF_UNIX pairs: a link on one end, and the other end for whoever is to be linked.

use std::os::fd::{AsFd, OwnedFd};

use crate::descriptor::Descriptor;
use crate::error::SetupError;
use crate::link::fd::FdLink;
use crate::link::{Link, buffers, examine};
use crate::options::LinkOptions;
use crate::sys::socket as sys;

/// Makes a pair of AF_UNIX seqpacket sockets, a link of one, and gives the other: blocking, closed
/// on exec, with buffers as large as the link's. The end of either shows on the other.
///
/// # Errors
///
/// Where there are no descriptors left, or an option does not go with it.
pub fn open_seqpacket_pair(options: &LinkOptions) -> Result<(FdLink, OwnedFd), SetupError> {
    open(libc::SOCK_SEQPACKET, options)
}

/// Makes a pair of AF_UNIX datagram sockets; otherwise as [`open_seqpacket_pair`]. The end of
/// either shows on the other only when that sends.
///
/// # Errors
///
/// As [`open_seqpacket_pair`].
pub fn open_datagram_pair(options: &LinkOptions) -> Result<(FdLink, OwnedFd), SetupError> {
    open(libc::SOCK_DGRAM, options)
}

fn open(kind: libc::c_int, options: &LinkOptions) -> Result<(FdLink, OwnedFd), SetupError> {
    let (ours, far) = sys::pair(kind)
        .map_err(|error| examine::call("socketpair", "AF_UNIX".to_owned(), error))?;
    let found = examine::all(&[ours.as_fd()], options)?;
    let mut link = FdLink::build(vec![ours.into()], &found, options)?;
    let vnet_header_len = link.report().descriptors.first().map_or(0, |d| d.vnet_header_len);
    // Its owner is no link, so nothing is put back.
    let mut far = Descriptor::from(far);
    let mut report = buffers::ask("the far end", &mut far, options, link.notes());
    report.vnet_header_len = vnet_header_len;
    far.keep();
    link.set_far_end(report);
    Ok((link, far.into_fd()))
}
