//! The link, its two ends, and what the command sees of it.
//!
//! # Theory of operation
//!
//! ```text
//!   P                      │ network namespace A   │ network namespace B
//!   (the host's network)   │ (nobody lives in it)  │ (init and the command)
//!                          │                       │
//!   packet sockets ────────┼── fdlink0 ═══ veth ═══┼══ eth0, lo, routes
//! ```
//!
//! init is born in A, opens a netlink socket and the packet sockets there, keeps a handle of it,
//! and moves on to B (`unshare`). The pair is made from B, its peer put into A. A lives as long as
//! the packet sockets do, that is as long as P holds them; B as long as the command. When either
//! goes, the pair goes.
//!
//! The kernel in A must stay silent, or its frames would mix with those of our stack: no address,
//! no IPv6 address generation (so no neighbour discovery, no multicast reports), no ARP. And the
//! outer interface has an address of its own, not the one our stack answers ARP with: what the
//! command sends to the stack is then somebody else's for A's kernel, which drops it first thing
//! (`PACKET_OTHERHOST`), while packet sockets have seen it before.
//!
//! With a TAP there is no A: the device is made in the namespace init was born in, and the
//! descriptors are its other end.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use crate::{
    Config, LinkChoice, Step,
    config::{GUEST_DEVICE, OUTER_DEVICE},
    error::{At, Failure},
    netlink::{LinkSettings, Netlink},
    sys::{
        link::{attach_tap, bind_packet},
        process::{self, Copied},
    },
};

/// Makes the link and gives back its outer end. Afterwards this process is in the command's
/// network namespace.
pub(crate) fn set_up(
    config: &Config,
    gid: u32,
    copied: &Copied,
    notes: &mut Vec<String>,
) -> Result<Vec<OwnedFd>, Failure> {
    match config.link {
        LinkChoice::Veth => {
            let outer = Outer::open(config.queues)?;
            process::unshare_network(copied).at(Step::NetworkNamespace)?;
            set_sysctls(gid, notes);
            let inner = Netlink::open().at(Step::Netlink)?;
            let descriptors = outer.connect(&inner, config)?;
            configure_guest(&inner, config, notes)?;
            Ok(descriptors)
        }
        LinkChoice::Tap => {
            set_sysctls(gid, notes);
            let inner = Netlink::open().at(Step::Netlink)?;
            let descriptors = open_tap(config.queues)?;
            let index = inner.index_of(GUEST_DEVICE).at(Step::GuestLink)?;
            inner.set_link(index, &guest_settings(config)).at(Step::GuestLink)?;
            configure_guest(&inner, config, notes)?;
            Ok(descriptors)
        }
    }
}

/// What is made in namespace A before leaving it.
struct Outer {
    netlink: Netlink,
    sockets: Vec<OwnedFd>,
    namespace: File,
}

impl Outer {
    fn open(queues: usize) -> Result<Self, Failure> {
        let netlink = Netlink::open().at(Step::Netlink)?;
        let sockets: Result<_, _> = (0..queues).map(|_| packet_socket()).collect();
        let namespace = File::open("/proc/self/ns/net").at(Step::NetworkHandle)?;
        Ok(Self { netlink, sockets: sockets.at(Step::PacketSocket)?, namespace })
    }

    /// Makes the pair from the namespace of `inner`, brings this end up, binds the sockets to it.
    fn connect(self, inner: &Netlink, config: &Config) -> Result<Vec<OwnedFd>, Failure> {
        let outer_settings = LinkSettings { mac: config.outer_mac(), ..guest_settings(config) };
        inner
            .create_veth(
                (GUEST_DEVICE, &guest_settings(config)),
                (OUTER_DEVICE, &outer_settings),
                self.namespace.as_fd(),
            )
            .at(Step::CreateVeth)?;
        let index = self.netlink.index_of(OUTER_DEVICE).at(Step::OuterLink)?;
        match self.netlink.no_ipv6_addresses(index) {
            // A kernel without IPv6 has no such addresses.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {}
            result => result.at(Step::OuterLink)?,
        }
        self.netlink.no_arp(index).at(Step::OuterLink)?;
        self.netlink.set_up(index).at(Step::OuterLink)?;
        let index = i32::try_from(index).map_err(io::Error::other).at(Step::BindPacketSocket)?;
        for socket in &self.sockets {
            bind_packet(socket.as_fd(), index).at(Step::BindPacketSocket)?;
        }
        Ok(self.sockets)
    }
}

/// Protocol 0: receives nothing until it is bound, so no frame of another interface is ever in it.
fn packet_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)
}

fn open_tap(queues: usize) -> Result<Vec<OwnedFd>, Failure> {
    let open = |_| {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let tun = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).at(Step::OpenTun)?;
        attach_tap(tun.as_fd(), GUEST_DEVICE, queues > 1).at(Step::CreateTap)?;
        Ok(tun)
    };
    (0..queues).map(open).collect()
}

fn guest_settings(config: &Config) -> LinkSettings {
    LinkSettings { mtu: config.mtu, mac: config.guest_mac, tx_queue_len: config.tx_queue_len }
}

fn configure_guest(
    netlink: &Netlink,
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let loopback = netlink.index_of("lo").at(Step::Loopback)?;
    netlink.set_up(loopback).at(Step::Loopback)?;
    let guest = netlink.index_of(GUEST_DEVICE).at(Step::GuestLink)?;
    netlink.set_up(guest).at(Step::GuestLink)?;

    let (address, prefix) = config.ipv4;
    netlink.add_address(guest, IpAddr::V4(address), prefix).at(Step::Address4)?;
    netlink.add_default_route(guest, IpAddr::V4(config.gateway4)).at(Step::Route4)?;

    if !Path::new("/proc/sys/net/ipv6").exists() {
        notes.push("this kernel has no IPv6: the command has IPv4 only".into());
        return Ok(());
    }
    // Below 1280 the kernel takes IPv6 off an interface (RFC 8200; net/ipv6/addrconf.c,
    // addrconf_notify): EINVAL for the address.
    if config.mtu < 1280 {
        notes.push(format!("IPv6 needs an MTU of 1280, not {}: IPv4 only", config.mtu));
        return Ok(());
    }
    let (address, prefix) = config.ipv6;
    netlink.add_address(guest, IpAddr::V6(address), prefix).at(Step::Address6)?;
    netlink.add_default_route(guest, IpAddr::V6(config.gateway6)).at(Step::Route6)
}

/// The defaults that interfaces made later start with, and who may open ping sockets. /proc/sys/net
/// shows the network namespace of whoever looks, so this works with the host's /proc, too.
fn set_sysctls(gid: u32, notes: &mut Vec<String>) {
    let ping = format!("{gid} {gid}");
    let settings = [
        // Off in a new namespace where net.core.devconf_inherit_init_net says so and the host is.
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        // No router on the link but ours, and everything it could advertise is configured.
        ("ipv6/conf/default/accept_ra", "0"),
        // No second of duplicate address detection, not for the link-local address either.
        ("ipv6/conf/default/accept_dad", "0"),
        // `ping` without CAP_NET_RAW. The default, "1 0", is nobody.
        ("ipv4/ping_group_range", &ping),
        // Nothing is lost on the link, and the host's own control governs the way beyond it. A host's
        // bbr would pace each frame by a timer, and take the order of our acknowledgements for loss.
        ("ipv4/tcp_congestion_control", "reno"),
    ];
    for (name, value) in settings {
        match fs::write(Path::new("/proc/sys/net").join(name), value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => notes.push(format!("net/{name} could not be set to {value}: {error}")),
            Ok(()) => {}
        }
    }
}
