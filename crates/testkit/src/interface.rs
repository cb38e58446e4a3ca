//! Interfaces of the network namespace at hand, made and changed by rtnetlink (rtnetlink(7)).

use std::io;
use std::net::IpAddr;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

// linux/rtnetlink.h, linux/netlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

// linux/if_link.h, linux/if_addr.h, linux/veth.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_GATEWAY: u16 = 5;

const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;

/// Makes a pair of virtual Ethernet interfaces, both up, with that MTU.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn veth(name: &str, peer: &str, mtu: u32) -> io::Result<()> {
    let mut other = link_header(0, 0, 0);
    attribute(&mut other, IFLA_IFNAME, &terminated(peer));
    let mut data = Vec::new();
    attribute(&mut data, VETH_INFO_PEER, &other);
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"veth\0");
    attribute(&mut info, IFLA_INFO_DATA, &data);
    let mut body = link_header(0, 0, 0);
    attribute(&mut body, IFLA_IFNAME, &terminated(name));
    attribute(&mut body, IFLA_LINKINFO, &info);
    request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)?;
    for end in [name, peer] {
        set_mtu(end, mtu)?;
        up(end)?;
    }
    wait_running(name)?;
    wait_running(peer)
}

/// Makes a macvtap interface over another one, and takes it up.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn macvtap(name: &str, over: &str) -> io::Result<()> {
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"macvtap\0");
    let mut body = link_header(0, 0, 0);
    attribute(&mut body, IFLA_IFNAME, &terminated(name));
    attribute(&mut body, IFLA_LINK, &index(over)?.to_ne_bytes());
    attribute(&mut body, IFLA_LINKINFO, &info);
    request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)?;
    up(name)
}

/// How many have asked an interface to receive everyone's frames.
///
/// # Errors
///
/// Where there is none of that name.
pub fn promiscuity(name: &str) -> io::Result<u32> {
    let answer = ask(RTM_GETLINK, 0, &link_header(index(name)?, 0, 0))?;
    let value = attribute_of(&answer, IFLA_PROMISCUITY).and_then(|value| value.first_chunk());
    Ok(u32::from_ne_bytes(*value.ok_or(io::ErrorKind::InvalidData)?))
}

/// Waits until an interface that was taken up carries frames. Until the kernel's link watch has
/// seen the carrier, an interface swallows what is sent on it (noop_qdisc), without an error.
///
/// # Errors
///
/// Where it takes too long, or the kernel refuses.
pub fn wait_running(name: &str) -> io::Result<()> {
    let index = index(name)?;
    for _ in 0..2000 {
        let answer = ask(RTM_GETLINK, 0, &link_header(index, 0, 0))?;
        // struct ifinfomsg behind the header: family, type, index, flags.
        let flags = answer.get(24..28).and_then(|bytes| bytes.try_into().ok());
        if flags.map_or(0, u32::from_ne_bytes) & IFF_RUNNING != 0 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Takes an interface up.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn up(name: &str) -> io::Result<()> {
    request(RTM_NEWLINK, 0, &link_header(index(name)?, IFF_UP, IFF_UP))
}

/// Takes an interface down.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn down(name: &str) -> io::Result<()> {
    request(RTM_NEWLINK, 0, &link_header(index(name)?, 0, IFF_UP))
}

/// Removes an interface.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn remove(name: &str) -> io::Result<()> {
    request(RTM_DELLINK, 0, &link_header(index(name)?, 0, 0))
}

/// Sets an interface's MTU.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    change(name, IFLA_MTU, &mtu.to_ne_bytes())
}

/// Sets an interface's link address.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn set_address(name: &str, address: [u8; 6]) -> io::Result<()> {
    change(name, IFLA_ADDRESS, &address)
}

/// An interface's link address.
///
/// # Errors
///
/// Where there is none of that name, or it has no address of six bytes.
pub fn address(name: &str) -> io::Result<[u8; 6]> {
    let answer = ask(RTM_GETLINK, 0, &link_header(index(name)?, 0, 0))?;
    let value = attribute_of(&answer, IFLA_ADDRESS).ok_or(io::ErrorKind::NotFound)?;
    value.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Gives an interface an IP address, at once usable.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn add_address(name: &str, address: IpAddr, prefix_len: u8) -> io::Result<()> {
    let (family, bytes) = parts(address);
    if family == 10 {
        // `in_namespace` keeps IPv6 silent until it is asked for.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0");
    }
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut body = vec![family, prefix_len, IFA_F_NODAD, 0];
    body.extend(index(name)?.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &bytes);
    attribute(&mut body, IFA_ADDRESS, &bytes);
    request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Sends everything else of that family to a gateway.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn add_default_route(gateway: IpAddr) -> io::Result<()> {
    let (family, bytes) = parts(gateway);
    // struct rtmsg: family, destination and source lengths, TOS; table main, protocol boot,
    // scope universe, type unicast; flags.
    let mut body = vec![family, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    attribute(&mut body, RTA_GATEWAY, &bytes);
    request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// The index of an interface.
///
/// # Errors
///
/// Where there is none of that name.
pub fn index(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(rustix::net::netdevice::name_to_index(socket, name)?)
}

/// What an interface has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came in.
    pub rx_packets: u64,
    /// Frames that went out.
    pub tx_packets: u64,
    /// Frames that were dropped on their way in: by the interface, or in the backlog of the
    /// processor they came to (netdev_max_backlog).
    pub rx_dropped: u64,
    /// Frames that were dropped on their way out; on a TUN or TAP device, because the descriptor's
    /// owner was slow.
    pub tx_dropped: u64,
}

/// Reads an interface's counters.
///
/// # Errors
///
/// Where there is none of that name, or the kernel refuses.
pub fn counters(name: &str) -> io::Result<Counters> {
    let answer = ask(RTM_GETLINK, 0, &link_header(index(name)?, 0, 0))?;
    let stats = attribute_of(&answer, IFLA_STATS64).ok_or(io::ErrorKind::InvalidData)?;
    // struct rtnl_link_stats64: fields of 64 bits, packets, bytes, errors and drops of each way.
    let field = |place: usize| -> io::Result<u64> {
        let bytes = stats.get(place * 8..).and_then(|rest| rest.first_chunk());
        Ok(u64::from_ne_bytes(*bytes.ok_or(io::ErrorKind::InvalidData)?))
    };
    Ok(Counters {
        rx_packets: field(0)?,
        tx_packets: field(1)?,
        rx_dropped: field(6)?,
        tx_dropped: field(7)?,
    })
}

/// The value of an attribute in what tells of an interface (RTM_NEWLINK).
fn attribute_of(answer: &[u8], kind: u16) -> Option<&[u8]> {
    // Attributes follow struct nlmsghdr and struct ifinfomsg, 16 bytes each.
    let mut attributes = answer.get(32..)?;
    while let Some([a, b, c, d]) = attributes.first_chunk() {
        let len = usize::from(u16::from_ne_bytes([*a, *b]));
        if u16::from_ne_bytes([*c, *d]) == kind {
            return attributes.get(4..len);
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..)?;
    }
    None
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    // AF_INET and AF_INET6, in the type of this field.
    match address {
        IpAddr::V4(v4) => (2, v4.octets().to_vec()),
        IpAddr::V6(v6) => (10, v6.octets().to_vec()),
    }
}

fn change(name: &str, what: u16, value: &[u8]) -> io::Result<()> {
    let mut body = link_header(index(name)?, 0, 0);
    attribute(&mut body, what, value);
    request(RTM_NEWLINK, 0, &body)
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for field in [index, flags, change] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// `struct rtattr`, padded to 4 bytes.
fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).expect("an attribute below 64 KiB");
    out.extend(len.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Sends a request and waits for its acknowledgement.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    ask(kind, flags | NLM_F_ACK, body).map(|_| ())
}

/// Sends a request; returns the message that answers it, unless that is an error.
fn ask(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // struct nlmsghdr: length, type, flags, sequence number, port.
    let len = u32::try_from(16 + body.len()).expect("a short message");
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = vec![0; 16 << 10];
    let (len, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    answer.truncate(len);
    error_of(&answer)?;
    Ok(answer)
}

/// The errno in an answer, if it is one of an error and not of success.
fn error_of(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    // struct nlmsgerr behind the header starts with the negated errno.
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(code)) if code != 0 => Err(io::Error::from_raw_os_error(-code)),
        (Some(_), Some(_)) => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
