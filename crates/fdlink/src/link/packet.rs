//! AF_PACKET sockets: opening them on an interface, reading back what one is, setting one up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::batch::LinkHeader;
use crate::error::SetupError;
use crate::link::fd::{Changes, FdLink, Found, call};
use crate::link::plan::{self, Plan};
use crate::link::{Capabilities, LinkKind};
use crate::offload::vnet::VnetHeader;
use crate::options::LinkOptions;
use crate::sys::{interface, ring, socket as sys};

// if_ether.h: every protocol. In the type of `sll_protocol`.
const ETH_P_ALL: u16 = 3;

// if_arp.h: hardware types whose frames start with an Ethernet header, and with none.
const ARPHRD_ETHER: u16 = libc::ARPHRD_ETHER;
const ARPHRD_LOOPBACK: u16 = libc::ARPHRD_LOOPBACK;
const ARPHRD_NONE: u16 = 0xfffe;
const ARPHRD_RAWIP: u16 = 519;

/// Opens that many AF_PACKET sockets on an interface of this network namespace and makes a link of
/// them. More than one share the traffic by flow (PACKET_FANOUT).
///
/// # Errors
///
/// Where a socket cannot be made (CAP_NET_RAW), there is no such interface, or an option does not
/// go with it.
pub fn open_packet(
    interface: &str,
    queues: usize,
    options: &LinkOptions,
) -> Result<FdLink, SetupError> {
    let failed = |name, source| call(name, interface.to_owned(), source);
    let mut fds = Vec::with_capacity(queues);
    let mut found = Vec::with_capacity(queues);
    for index in 0..queues {
        let fd = sys::open(libc::AF_PACKET, libc::SOCK_RAW).map_err(|e| failed("socket", e))?;
        let number = interface::index(fd.as_fd(), interface);
        let number = number.map_err(|e| failed("ioctl(SIOCGIFINDEX)", e))?;
        sys::bind_packet(fd.as_fd(), number, ETH_P_ALL).map_err(|e| failed("bind", e))?;
        found.push(examine(index, fd.as_fd())?);
        fds.push(fd);
    }
    FdLink::build(fds, &found, options)
}

/// Reads back what an AF_PACKET SOCK_RAW socket is.
pub(super) fn examine(index: usize, fd: BorrowedFd<'_>) -> Result<Found, SetupError> {
    const EXPECTED: &str =
        "an AF_PACKET socket without a ring that is bound to an Ethernet or IP interface";
    let subject = || format!("descriptor {index}");
    let wrong = |found| Err(SetupError::WrongKind { index, found, expected: EXPECTED });
    let name = sys::packet_name(fd).map_err(|e| call("getsockname", subject(), e))?;
    match name.interface {
        0 => return wrong("an AF_PACKET socket that is bound to no interface".to_owned()),
        -1 => return wrong("an AF_PACKET socket whose interface is gone".to_owned()),
        _ => {}
    }
    if name.protocol == 0 {
        return wrong("an AF_PACKET socket that is bound to no protocol".to_owned());
    }
    if ring::has_ring(fd).map_err(|e| call("setsockopt(PACKET_VERSION)", subject(), e))? {
        // Its frames go there, so no mode would see any, and it cannot be taken from its owner.
        return wrong("an AF_PACKET socket that has a ring already".to_owned());
    }
    let link_header = match name.hardware {
        ARPHRD_ETHER | ARPHRD_LOOPBACK => LinkHeader::Ethernet,
        ARPHRD_NONE | ARPHRD_RAWIP => LinkHeader::None,
        other => return wrong(format!("on an interface of hardware type {other}")),
    };
    let interface = interface::name(fd, name.interface)
        .map_err(|e| call("ioctl(SIOCGIFNAME)", subject(), e))?;
    let mtu =
        interface::mtu(fd, &interface).map_err(|e| call("ioctl(SIOCGIFMTU)", subject(), e))?;
    // PACKET_VNET_HDR_SZ came with Linux 6.4; before that a header can only have 10 bytes. Its
    // being there tells of UDP_L4 in vnet headers as well, which is older (6.2).
    let size = sys::option(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR_SZ);
    let vnet_header = match &size {
        Ok(len) => usize::try_from(*len).unwrap_or(0),
        Err(_) => {
            let on = sys::option(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR).unwrap_or(0);
            if on != 0 { VnetHeader::LEN } else { 0 }
        }
    };
    Ok(Found {
        kind: LinkKind::Packet,
        vnet_header,
        link_header,
        interface: Some(interface),
        mtu: Some(mtu),
        uso: size.is_ok(),
    })
}

/// Sets up one socket: vnet header, VLAN tags and lengths, no echo of what this host sends.
pub(super) fn configure(
    index: usize,
    fd: BorrowedFd<'_>,
    plan: &mut Plan,
    options: &LinkOptions,
    changes: &mut Changes,
) -> Result<(), SetupError> {
    let option = |name| (libc::SOL_PACKET, name);
    let subject = || format!("descriptor {index}");
    changes
        .set_option(index, fd, option(libc::PACKET_AUXDATA), 1)
        .map_err(|e| call("setsockopt(PACKET_AUXDATA)", subject(), e))?;
    // Linux 4.20; without it outgoing frames are told apart by their packet type.
    if let Err(error) = changes.set_option(index, fd, option(libc::PACKET_IGNORE_OUTGOING), 1) {
        plan.notes.push(format!("descriptor {index}: PACKET_IGNORE_OUTGOING: {error}"));
    }
    if plan.vnet_header == VnetHeader::LEN
        && let Err(error) = changes.set_option(index, fd, option(libc::PACKET_VNET_HDR), 1)
    {
        if index > 0 {
            // The first one took it, so this one's refusal is an error and no missing feature.
            return Err(call("setsockopt(PACKET_VNET_HDR)", subject(), error));
        }
        let found = format!("PACKET_VNET_HDR refused: {error}");
        if options.offload == crate::options::Offload::Required {
            plan::no_offload(options, &mut plan.notes, found)?;
        } else {
            plan.notes.push(format!("no offload: {found}"));
        }
        plan.vnet_header = 0;
        plan.gso_max_size = 0;
        plan.capabilities = Capabilities {
            tx_checksum: false,
            tso4: false,
            tso6: false,
            uso: false,
            ..plan.capabilities
        };
    }
    Ok(())
}

/// Lets the sockets share the traffic, each flow on one of them; returns the group's number, which
/// the kernel chose.
pub(super) fn join_fanout(fds: &[OwnedFd]) -> Result<u16, SetupError> {
    // The group has a hook of its own, which knows nothing of the sockets' PACKET_IGNORE_OUTGOING.
    // The flag is newer (5.10); without it outgoing frames are told apart by their packet type.
    let flags = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    form_group(fds, flags).or_else(|error| match &error {
        SetupError::Call { source, .. } if source.raw_os_error() == Some(libc::EINVAL) => {
            form_group(fds, libc::PACKET_FANOUT_HASH)
        }
        _ => Err(error),
    })
}

fn form_group(fds: &[OwnedFd], flags: libc::c_uint) -> Result<u16, SetupError> {
    let mut group: u16 = 0;
    for (index, fd) in fds.iter().enumerate() {
        let unique = if index == 0 { libc::PACKET_FANOUT_FLAG_UNIQUEID } else { 0 };
        let argument = ((flags | unique) << 16 | libc::c_uint::from(group)).cast_signed();
        let (fd, subject) = (fd.as_fd(), || format!("descriptor {index}"));
        if index > 0 {
            // Until it joins, each socket has received what the first one has, too.
            sys::discard_waiting(fd);
        }
        sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, argument)
            .map_err(|e| call("setsockopt(PACKET_FANOUT)", subject(), e))?;
        if index == 0 {
            let value = sys::option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT)
                .map_err(|e| call("getsockopt(PACKET_FANOUT)", subject(), e))?;
            // The number is the low half; the mode is above it.
            group = u16::try_from(value & 0xffff).unwrap_or(0);
        }
    }
    Ok(group)
}
