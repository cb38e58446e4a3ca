//! TUN and TAP devices (macvtap as well, once opened): opening them by name, reading back what a
//! descriptor is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::batch::LinkHeader;
use crate::error::SetupError;
use crate::link::LinkKind;
use crate::link::examine::{Found, call};
use crate::link::fd::FdLink;
use crate::link::{counters, plan};
use crate::offload::vnet::VnetHeader;
use crate::options::{LinkOptions, Offload};
use crate::sys::{interface, socket as sys, tun};

/// Opens a TUN device, which is made if there is none of that name (`%d` in it is a number of the
/// kernel's choice), and makes a link of it. More than one queue makes it IFF_MULTI_QUEUE. The
/// device is not taken up, and is given neither addresses nor an MTU.
///
/// # Errors
///
/// Where `/dev/net/tun` cannot be opened, the device cannot be made (CAP_NET_ADMIN) or is of
/// another kind, or an option does not go with it.
pub fn open_tun(name: &str, queues: usize, options: &LinkOptions) -> Result<FdLink, SetupError> {
    open(LinkKind::Tun, name, queues, options)
}

/// Opens a TAP device; otherwise as [`open_tun`].
///
/// # Errors
///
/// As [`open_tun`].
pub fn open_tap(name: &str, queues: usize, options: &LinkOptions) -> Result<FdLink, SetupError> {
    open(LinkKind::Tap, name, queues, options)
}

fn open(
    kind: LinkKind,
    name: &str,
    queues: usize,
    options: &LinkOptions,
) -> Result<FdLink, SetupError> {
    plan::some_queues(queues)?;
    check(kind, name, options)?;
    let mut flags = libc::IFF_NO_PI;
    flags |= if kind == LinkKind::Tun { libc::IFF_TUN } else { libc::IFF_TAP };
    flags |= if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    flags |= if options.offload == Offload::Off { 0 } else { libc::IFF_VNET_HDR };
    let mut name = name.to_owned();
    let mut fds = Vec::with_capacity(queues);
    let mut found = Vec::with_capacity(queues);
    for index in 0..queues {
        let fd = tun::open().map_err(|e| call("open", "/dev/net/tun".to_owned(), e))?;
        // The first queue settles a name with %d in it for the others.
        name = tun::set_interface(fd.as_fd(), &name, flags)
            .map_err(|e| call("ioctl(TUNSETIFF)", name.clone(), e))?;
        let failed = |text, source| call(text, name.clone(), source);
        // Both of these are the device's, and outlive descriptors.
        if options.offload == Offload::Off {
            tun::set_offload(fd.as_fd(), 0).map_err(|e| failed("ioctl(TUNSETOFFLOAD)", e))?;
        } else {
            usable_vnet_header(fd.as_fd()).map_err(|e| failed("ioctl(TUNSETVNETHDRSZ)", e))?;
        }
        found.push(examine(index, fd.as_fd())?);
        fds.push(fd.into());
    }
    FdLink::build(fds, &found, options)
}

/// Has the vnet header be one that we know, and leaves one that is: others may use the device.
fn usable_vnet_header(fd: BorrowedFd<'_>) -> io::Result<()> {
    match usize::try_from(tun::vnet_header_len(fd)?) {
        Ok(VnetHeader::LEN | VnetHeader::LEN_MRG) => Ok(()),
        _ => tun::set_vnet_header_len(fd, 10),
    }
}

/// Refuses what does not go together before there is a descriptor: attaching one changes a device
/// that is there already for all of its queues.
fn check(kind: LinkKind, name: &str, options: &LinkOptions) -> Result<(), SetupError> {
    let expected = Found {
        kind,
        vnet_header: if options.offload == Offload::Off { 0 } else { VnetHeader::LEN },
        link_header: if kind == LinkKind::Tap { LinkHeader::Ethernet } else { LinkHeader::None },
        interface: Some(name.to_owned()),
        interface_index: 0,
        namespace: None,
        cooked: None,
        // The least: what does not go with that goes with none.
        mtu: Some(plan::LEAST_MTU),
        uso: false,
    };
    plan::make(&[expected], options).map(drop)
}

/// Tells the device behind a descriptor with a vnet header what the kernel may leave to us; without
/// it, super-frames are cut before they come. It holds for the device, whoever opened it, and
/// cannot be read back. Returns whether segmentation of UDP is among it.
pub(super) fn accept_offloads(fd: BorrowedFd<'_>) -> io::Result<bool> {
    const TCP: libc::c_uint =
        libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // Linux 6.2; either of them alone is EINVAL.
    const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    if tun::set_offload(fd, TCP | UDP).is_ok() {
        return Ok(true);
    }
    tun::set_offload(fd, TCP)?;
    Ok(false)
}

/// Reads back what a character device is.
pub(super) fn examine(index: usize, fd: BorrowedFd<'_>) -> Result<Found, SetupError> {
    const EXPECTED: &str = "a TUN or TAP device, attached, with IFF_NO_PI";
    let wrong = |found: &str| {
        Err(SetupError::WrongKind { index, found: found.to_owned(), expected: EXPECTED })
    };
    let (name, flags) = match tun::interface(fd) {
        Ok(known) => known,
        Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
            return wrong("a TUN node that is attached to no device");
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            return wrong("a macvtap node whose device is gone");
        }
        Err(_) => return wrong("a character device that is no TUN or TAP"),
    };
    if flags & libc::IFF_NO_PI == 0 {
        return wrong("a TUN or TAP device with packet information before each frame");
    }
    let tap = flags & libc::IFF_TAP != 0;
    let vnet_header = if flags & libc::IFF_VNET_HDR == 0 {
        0
    } else {
        let len = tun::vnet_header_len(fd)
            .map_err(|e| call("ioctl(TUNGETVNETHDRSZ)", name.clone(), e))?;
        match usize::try_from(len) {
            Ok(len @ (VnetHeader::LEN | VnetHeader::LEN_MRG)) => len,
            _ => return wrong(&format!("a device with {len} bytes of vnet header")),
        }
    };
    Ok(Found {
        kind: if tap { LinkKind::Tap } else { LinkKind::Tun },
        vnet_header,
        link_header: if tap { LinkHeader::Ethernet } else { LinkHeader::None },
        mtu: mtu(fd, &name),
        interface: Some(name),
        interface_index: 0,
        namespace: None,
        cooked: None,
        uso: false,
    })
}

/// The MTU of the device of that name in the caller's network namespace. The node itself does not
/// tell, and a descriptor from elsewhere belongs to another namespace: then nothing is known. (Who
/// may not ask for namespaces, and who has a macvtap, gets the MTU of what has the name here.)
fn mtu(fd: BorrowedFd<'_>, name: &str) -> Option<u32> {
    let socket = sys::open(libc::AF_INET, libc::SOCK_DGRAM).ok()?;
    let here = counters::in_namespace_of(fd, socket.as_fd()).unwrap_or(true);
    interface::mtu(socket.as_fd(), name).ok().filter(|_| here)
}
