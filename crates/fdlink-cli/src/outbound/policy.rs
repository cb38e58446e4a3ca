//! Where a flow may go: destination in, verdict out. Pure; nothing here asks the system.
//!
//! # Theory of operation
//!
//! The command's network has three addresses of its own besides the command's: the gateway, the
//! name server, and that name server's IPv6 twin. Everything else is somebody on the host's
//! network, and is dialled by the host's kernel. What that kernel takes for itself, or delivers to
//! more than one, must therefore not be dialled, however it is spelled: an IPv6 address that
//! carries an IPv4 one (mapped, compatible, translated, NAT64, 6to4, Teredo) is judged by both.
//!
//! Two kinds of "no" are kept apart, because programs react differently: a *closed* port on an
//! address that exists here, as the gateway without `--host-loopback`, is refused as a kernel
//! without a listener would; a destination that is *denied* is answered as by a firewall.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The gateway: what the host's loopback is reached at, if at all.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server.
pub(crate) const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The command.
pub(crate) const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// As [`GATEWAY_V4`].
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0, 2);
/// As [`DNS_V4`].
pub(crate) const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0, 3);
/// As [`GUEST_V4`].
pub(crate) const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0, 0x15);
/// The prefix length of the command's IPv4 network.
pub(crate) const PREFIX_V4: u8 = 24;
/// The prefix length of the command's IPv6 network.
pub(crate) const PREFIX_V6: u8 = 64;

const DNS_PORT: u16 = 53;

/// What the user allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// The host's loopback is reachable, at the gateway's addresses.
    pub(crate) host_loopback: bool,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To be dialled as it stands.
    Allowed(SocketAddr),
    /// An address of ours where nobody listens on that port.
    Closed,
    /// A denied destination.
    Denied(Reason),
    /// A name server of the host, whichever answers.
    Dns,
    /// To be dialled on the host's loopback.
    HostLoopback(SocketAddr),
}

/// Why a destination is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// 255.255.255.255.
    Broadcast,
    /// An IPv6 address that carries an IPv4 one which is denied itself, or that stands for one on
    /// this host (mapped, compatible, translated).
    EmbeddedV4,
    /// Another address of the command's own network.
    Inside,
    /// 169.254/16, fe80::/10.
    LinkLocal,
    /// 127/8, ::1.
    Loopback,
    /// 224/4, ff00::/8.
    Multicast,
    /// 240/4.
    Reserved,
    /// 0/8, ::.
    Unspecified,
}

impl Reason {
    /// All of them, in the order of [`Reason::index`].
    pub(crate) const ALL: [Self; 8] = [
        Self::Broadcast,
        Self::EmbeddedV4,
        Self::Inside,
        Self::LinkLocal,
        Self::Loopback,
        Self::Multicast,
        Self::Reserved,
        Self::Unspecified,
    ];

    /// Its place in a table of counters.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Its name, as it is written in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast",
            Self::EmbeddedV4 => "embedded_v4",
            Self::Inside => "inside",
            Self::LinkLocal => "link_local",
            Self::Loopback => "loopback",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::Unspecified => "unspecified",
        }
    }
}

impl Policy {
    /// What becomes of a flow to `destination`.
    pub(crate) fn judge(self, destination: SocketAddr) -> Verdict {
        let (ip, port) = (destination.ip(), destination.port());
        if ip == GATEWAY_V4 || ip == GATEWAY_V6 {
            if !self.host_loopback {
                return Verdict::Closed;
            }
            let loopback = match ip {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            return Verdict::HostLoopback(SocketAddr::new(loopback, port));
        }
        if ip == DNS_V4 || ip == DNS_V6 {
            return if port == DNS_PORT { Verdict::Dns } else { Verdict::Closed };
        }
        let denied = match ip {
            IpAddr::V4(ip) => denied_v4(ip),
            IpAddr::V6(ip) => denied_v6(ip),
        };
        denied.map_or(Verdict::Allowed(destination), Verdict::Denied)
    }
}

fn denied_v4(ip: Ipv4Addr) -> Option<Reason> {
    let reason = match ip.octets() {
        [0, ..] => Reason::Unspecified,
        [127, ..] => Reason::Loopback,
        [169, 254, ..] => Reason::LinkLocal,
        [10, 0, 2, _] => Reason::Inside,
        [224..=239, ..] => Reason::Multicast,
        [255, 255, 255, 255] => Reason::Broadcast,
        [240..=255, ..] => Reason::Reserved,
        _ => return None,
    };
    Some(reason)
}

fn denied_v6(ip: Ipv6Addr) -> Option<Reason> {
    let segments = ip.segments();
    let reason = match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Reason::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Reason::Loopback,
        // IPv4-mapped (RFC 4291, section 2.5.5.2) and -translated (RFC 2765, section 2.1), which
        // the host's kernel could take for its own, and -compatible (RFC 4291, section 2.5.5.1).
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0, 0, 0, 0, 0, 0, ..] => {
            Reason::EmbeddedV4
        }
        [0xfe80..=0xfebf, ..] => Reason::LinkLocal,
        [0xff00..=0xffff, ..] => Reason::Multicast,
        [0xfd00, 0xfd, 0, 0, ..] => Reason::Inside,
        _ if embedded_v4(segments).into_iter().flatten().any(|v4| denied_v4(v4).is_some()) => {
            Reason::EmbeddedV4
        }
        _ => return None,
    };
    Some(reason)
}

/// The IPv4 addresses that a translator or a tunnel on the way would take out of an address.
fn embedded_v4(segments: [u16; 8]) -> [Option<Ipv4Addr>; 2] {
    let at = |index: usize| {
        Some(Ipv4Addr::from(u32::from(segments[index]) << 16 | u32::from(segments[index + 1])))
    };
    match segments {
        // NAT64, well known and for local use (RFC 6052, section 2.1; RFC 8215). Of the latter
        // only the form with 96 bits of prefix is known; a site's own prefix cannot be.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => [at(6), None],
        // 6to4 (RFC 3056, section 2).
        [0x2002, ..] => [at(1), None],
        // Teredo: the server, and the client with its bits inverted (RFC 4380, section 4).
        [0x2001, 0, ..] => [at(2), at(6).map(|client| Ipv4Addr::from(!client.to_bits()))],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: Policy = Policy { host_loopback: false };
    const OPEN: Policy = Policy { host_loopback: true };

    fn judge(policy: Policy, ip: &str, port: u16) -> Verdict {
        policy.judge(SocketAddr::new(ip.parse().unwrap(), port))
    }

    #[test]
    fn denied_destinations_are_denied_for_a_reason() {
        let cases = [
            ("127.0.0.1", Reason::Loopback),
            ("127.255.255.254", Reason::Loopback),
            ("::1", Reason::Loopback),
            ("0.0.0.0", Reason::Unspecified),
            ("0.1.2.3", Reason::Unspecified),
            ("::", Reason::Unspecified),
            ("169.254.169.254", Reason::LinkLocal),
            ("fe80::1", Reason::LinkLocal),
            ("febf::1", Reason::LinkLocal),
            ("224.0.0.1", Reason::Multicast),
            ("239.255.255.255", Reason::Multicast),
            ("ff02::1", Reason::Multicast),
            ("255.255.255.255", Reason::Broadcast),
            ("240.0.0.1", Reason::Reserved),
            ("255.255.255.254", Reason::Reserved),
            ("10.0.2.0", Reason::Inside),
            ("10.0.2.15", Reason::Inside),
            ("10.0.2.255", Reason::Inside),
            ("fd00:fd::15", Reason::Inside),
            ("fd00:fd::1:2", Reason::Inside),
        ];
        for (ip, reason) in cases {
            for policy in [CLOSED, OPEN] {
                assert_eq!(judge(policy, ip, 80), Verdict::Denied(reason), "{ip}");
            }
        }
    }

    #[test]
    fn ipv4_inside_ipv6_is_seen() {
        let denied = [
            "::ffff:127.0.0.1",
            "::ffff:1.1.1.1",
            "::ffff:10.0.2.2",
            "::127.0.0.1",
            "::2",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b::10.0.2.2",
            "64:ff9b:1::127.0.0.1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2001:0:7f00:1::",
            "2001:0:102:304:0:0:80ff:fffe",
        ];
        for ip in denied {
            assert_eq!(judge(OPEN, ip, 80), Verdict::Denied(Reason::EmbeddedV4), "{ip}");
        }
        for ip in ["64:ff9b::1.1.1.1", "2002:101:101::1", "2001:0:102:304::fefe:fefe"] {
            assert!(matches!(judge(OPEN, ip, 80), Verdict::Allowed(_)), "{ip}");
        }
    }

    #[test]
    fn the_rest_of_the_world_is_dialled_as_it_stands() {
        for ip in [
            "1.1.1.1",
            "10.0.3.1",
            "10.0.1.255",
            "192.168.0.1",
            "172.17.0.1",
            "100.64.0.1",
            "126.0.0.1",
            "128.0.0.1",
            "223.255.255.255",
            "2001:db8::1",
            "fd00:fe::1",
            "fd00:fd:0:1::2",
            "fc00::1",
            "fec0::1",
        ] {
            let address = SocketAddr::new(ip.parse().unwrap(), 443);
            assert_eq!(CLOSED.judge(address), Verdict::Allowed(address), "{ip}");
        }
    }

    #[test]
    fn the_gateway_is_the_hosts_loopback_only_where_asked() {
        assert_eq!(judge(CLOSED, "10.0.2.2", 80), Verdict::Closed);
        assert_eq!(judge(CLOSED, "fd00:fd::2", 80), Verdict::Closed);
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 80));
        assert_eq!(judge(OPEN, "10.0.2.2", 80), Verdict::HostLoopback(v4));
        assert_eq!(judge(OPEN, "fd00:fd::2", 80), Verdict::HostLoopback(v6));
    }

    #[test]
    fn the_name_server_has_one_port() {
        for ip in ["10.0.2.3", "fd00:fd::3"] {
            for policy in [CLOSED, OPEN] {
                assert_eq!(judge(policy, ip, 53), Verdict::Dns);
                assert_eq!(judge(policy, ip, 54), Verdict::Closed);
            }
        }
    }

    #[test]
    fn reasons_know_their_place() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
    }
}
