//! Route netlink, one request at a time.
//!
//! A blocking socket that belongs to the network namespace it was opened in, wherever its user
//! moves to afterwards: that is how init configures the outer end of the link from the inside.
//! Every request asks for an acknowledgement, so every request has exactly one answer, an errno or
//! none.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily as SocketFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice,
        recv, send, socket_with,
    },
};

/// One side of a link to make, or the settings of one that is there.
#[derive(Debug, Default)]
pub(crate) struct LinkSettings {
    pub(crate) mtu: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) tx_queue_len: u32,
}

/// A socket in the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    pub(crate) fn open() -> rustix::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        // Protocol 0 of this family is NETLINK_ROUTE.
        let socket = socket_with(SocketFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok(Self { socket })
    }

    /// The number of an interface of this namespace.
    pub(crate) fn index_of(&self, name: &str) -> rustix::io::Result<u32> {
        netdevice::name_to_index(&self.socket, name)
    }

    /// A veth pair: `name` here, `peer_name` in the namespace of `peer_namespace`; both down.
    pub(crate) fn create_veth(
        &self,
        (name, settings): (&str, &LinkSettings),
        (peer_name, peer_settings): (&str, &LinkSettings),
        peer_namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = settings_attributes(peer_settings);
        peer.attributes.push(LinkAttribute::IfName(peer_name.into()));
        peer.attributes.push(LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()));

        let mut link = LinkMessage::default();
        link.attributes = settings_attributes(settings);
        link.attributes.push(LinkAttribute::IfName(name.into()));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sets what [`Netlink::create_veth`] sets when it makes a link.
    pub(crate) fn set_link(&self, index: u32, settings: &LinkSettings) -> io::Result<()> {
        self.change_link(index, settings_attributes(settings), LinkFlags::empty())
    }

    pub(crate) fn set_up(&self, index: u32) -> io::Result<()> {
        self.change_link(index, Vec::new(), LinkFlags::Up)
    }

    /// Has the kernel make no IPv6 address by itself on this interface, link-local ones included;
    /// with no address it has nothing to send.
    pub(crate) fn no_ipv6_addresses(&self, index: u32) -> io::Result<()> {
        let inet6 = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
        let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(inet6)]);
        self.change_link(index, vec![attribute], LinkFlags::empty())
    }

    /// Has the kernel neither send nor answer ARP on this interface.
    pub(crate) fn no_arp(&self, index: u32) -> io::Result<()> {
        self.change_link(index, Vec::new(), LinkFlags::Noarp)
    }

    pub(crate) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family_of(address);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Address(address));
        match address {
            IpAddr::V4(v4) => {
                message.attributes.push(AddressAttribute::Local(address));
                if let Some(broadcast) = broadcast(v4, prefix) {
                    message.attributes.push(AddressAttribute::Broadcast(broadcast));
                }
            }
            // Nobody else is on this link: usable at once, without a second of asking around.
            IpAddr::V6(_) => {
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(crate) fn add_default_route(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        message.attributes.push(RouteAttribute::Oif(index));
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn change_link(
        &self,
        index: u32,
        attributes: Vec<LinkAttribute>,
        flags: LinkFlags,
    ) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = flags;
        // The kernel changes only the flags named here.
        link.header.change_mask = flags;
        link.attributes = attributes;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn request(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.socket, &bytes, SendFlags::empty())?;
        self.acknowledgement()
    }

    fn acknowledgement(&self) -> io::Result<()> {
        // An error repeats the request (NETLINK_CAP_ACK is off), and no request here is longer.
        let mut bytes = [0; 4096];
        let (len, _) =
            rustix::io::retry_on_intr(|| recv(&self.socket, &mut bytes[..], RecvFlags::empty()))?;
        let answer = bytes.get(..len).ok_or(Errno::PROTO)?;
        let answer =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer).map_err(|_| Errno::PROTO)?;
        match answer.payload {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(_) => Err(error.to_io()),
            },
            _ => Err(Errno::PROTO.into()),
        }
    }
}

fn settings_attributes(settings: &LinkSettings) -> Vec<LinkAttribute> {
    vec![
        LinkAttribute::Mtu(settings.mtu),
        LinkAttribute::Address(settings.mac.to_vec()),
        LinkAttribute::TxQueueLen(settings.tx_queue_len),
    ]
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The directed broadcast address; networks of one or two addresses have none (RFC 3021).
fn broadcast(address: Ipv4Addr, prefix: u8) -> Option<Ipv4Addr> {
    let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    (prefix < 31).then(|| Ipv4Addr::from_bits(address.to_bits() | host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_addresses() {
        let address = Ipv4Addr::new(10, 0, 2, 15);
        assert_eq!(broadcast(address, 24), Some(Ipv4Addr::new(10, 0, 2, 255)));
        assert_eq!(broadcast(address, 30), Some(Ipv4Addr::new(10, 0, 2, 15)));
        assert_eq!(broadcast(address, 31), None);
        assert_eq!(broadcast(address, 32), None);
        assert_eq!(broadcast(address, 0), Some(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn the_kernel_answers() {
        let netlink = Netlink::open().unwrap();
        let loopback = netlink.index_of("lo").unwrap();
        // Nothing is changed: without an address the kernel refuses (or this user may not ask).
        let error = netlink.add_address(loopback, IpAddr::V4(Ipv4Addr::UNSPECIFIED), 99);
        let errno = Errno::from_io_error(&error.unwrap_err());
        assert!(matches!(errno, Some(Errno::INVAL | Errno::PERM)), "{errno:?}");
    }
}
