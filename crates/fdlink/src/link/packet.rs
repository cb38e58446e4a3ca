//! AF_PACKET sockets: opening them on an interface, reading back what one is, setting one up.

use std::os::fd::{AsFd, BorrowedFd};

use crate::batch::{LinkHeader, MacAddr};
use crate::descriptor::Descriptor;
use crate::error::SetupError;
use crate::io::cooked::Cooked;
use crate::link::examine::{Found, call};
use crate::link::fd::FdLink;
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
    plan::some_queues(queues)?;
    let failed = |name, source| call(name, interface.to_owned(), source);
    let mut fds = Vec::with_capacity(queues);
    let mut found = Vec::with_capacity(queues);
    for index in 0..queues {
        let fd = sys::open(libc::AF_PACKET, libc::SOCK_RAW).map_err(|e| failed("socket", e))?;
        let number = interface::index(fd.as_fd(), interface);
        let number = number.map_err(|e| failed("ioctl(SIOCGIFINDEX)", e))?;
        sys::bind_packet(fd.as_fd(), number, ETH_P_ALL).map_err(|e| failed("bind", e))?;
        found.push(examine(index, fd.as_fd())?);
        fds.push(fd.into());
    }
    FdLink::build(fds, &found, options)
}

/// Reads back what a cooked AF_PACKET socket is (SOCK_DGRAM). It has no vnet header: the kernel
/// says EINVAL to PACKET_VNET_HDR.
pub(super) fn examine_cooked(index: usize, fd: BorrowedFd<'_>) -> Result<Found, SetupError> {
    let found = examine(index, fd)?;
    if found.link_header != LinkHeader::Ethernet {
        return Err(SetupError::WrongKind {
            index,
            found: "a cooked AF_PACKET socket on an interface without link headers".to_owned(),
            expected: "an AF_PACKET SOCK_RAW socket there, whose frames are the same",
        });
    }
    let name =
        sys::packet_name(fd).map_err(|e| call("getsockname", format!("descriptor {index}"), e))?;
    let cooked = Cooked { interface: name.interface, address: MacAddr(name.address) };
    Ok(Found { kind: LinkKind::PacketCooked, cooked: Some(cooked), uso: false, ..found })
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
    unused(index, fd)?;
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
        interface_index: name.interface,
        namespace: sys::namespace(fd).ok(),
        cooked: None,
        mtu: Some(mtu),
        uso: size.is_ok(),
    })
}

/// Neither a ring nor a group can be shared with whoever has made it.
fn unused(index: usize, fd: BorrowedFd<'_>) -> Result<(), SetupError> {
    let used = |found: &str, expected| {
        Err(SetupError::WrongKind { index, found: found.to_owned(), expected })
    };
    let failed = |error| call("getsockopt(PACKET_VERSION)", format!("descriptor {index}"), error);
    if ring::has_ring(fd).map_err(failed)? {
        return used(
            "an AF_PACKET socket that has a ring (PACKET_RX_RING or PACKET_TX_RING: EBUSY)",
            "an AF_PACKET socket without a ring",
        );
    }
    if sys::in_fanout_group(fd) {
        return used(
            "an AF_PACKET socket that is in a group (PACKET_FANOUT: EALREADY)",
            "an AF_PACKET socket in no group, for it can leave none",
        );
    }
    Ok(())
}

/// Sets up one socket: vnet header, VLAN tags and lengths, no echo of what this host sends.
pub(super) fn configure(
    index: usize,
    descriptor: &mut Descriptor,
    plan: &mut Plan,
    options: &LinkOptions,
) -> Result<(), SetupError> {
    let option = |name| (libc::SOL_PACKET, name);
    let subject = || format!("descriptor {index}");
    descriptor
        .set_option(option(libc::PACKET_AUXDATA), 1)
        .map_err(|e| call("setsockopt(PACKET_AUXDATA)", subject(), e))?;
    // Linux 4.20; without it outgoing frames are told apart by their packet type.
    if let Err(error) = descriptor.set_option(option(libc::PACKET_IGNORE_OUTGOING), 1) {
        plan.notes.push(format!("descriptor {index}: PACKET_IGNORE_OUTGOING: {error}"));
    }
    if plan.vnet_header == VnetHeader::LEN
        && let Err(error) = descriptor.set_option(option(libc::PACKET_VNET_HDR), 1)
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
