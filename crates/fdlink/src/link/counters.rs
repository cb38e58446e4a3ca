//! What the kernel counts for the device behind a link and tells of no descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use crate::sys::descriptor;
use crate::sys::netlink::Netlink;
use crate::sys::{interface, socket as sys, tun};

/// The counters of a TUN or TAP device, made by
/// [`FdLink::device_counters`](crate::FdLink::device_counters). Independent of the link, and
/// readable from any thread, whatever network namespace that is in.
#[derive(Debug)]
pub struct DeviceCounters {
    netlink: Mutex<Netlink>,
    interface: String,
    index: libc::c_int,
}

impl DeviceCounters {
    pub(super) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let (interface, _) = tun::interface(fd)?;
        let socket = sys::open(libc::AF_INET, libc::SOCK_DGRAM)?;
        if !in_namespace_of(fd, socket.as_fd())? {
            let text = format!("{interface} is in another network namespace");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let index = interface::index(socket.as_fd(), &interface)?;
        Ok(Self { netlink: Mutex::new(Netlink::open()?), interface, index })
    }

    /// The device's name when this was made.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Frames for the descriptors that were dropped because nobody read them, or because a filter
    /// refused them: the device's `tx_dropped`, of all its queues together, since it was made.
    ///
    /// # Errors
    ///
    /// Where the device is gone (ENODEV), or was moved to another network namespace.
    pub fn dropped(&self) -> io::Result<u64> {
        let mut netlink = self.netlink.lock().unwrap_or_else(PoisonError::into_inner);
        netlink.tx_dropped(self.index)
    }
}

/// Whether the device behind `fd` is in the socket's network namespace.
pub(super) fn in_namespace_of(fd: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<bool> {
    let (device, here) = (tun::network_namespace(fd)?, interface::network_namespace(socket)?);
    Ok(descriptor::object(device.as_fd())? == descriptor::object(here.as_fd())?)
}
