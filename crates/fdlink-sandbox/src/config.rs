//! What a sandbox shall look like: plain values with defaults, checked once before anything is
//! made.

use std::{
    ffi::{CString, OsString},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::OsStrExt,
};

use crate::Error;

/// The name of the command's interface.
pub(crate) const GUEST_DEVICE: &str = "eth0";
/// The name of its other end, in the network namespace that nobody lives in.
pub(crate) const OUTER_DEVICE: &str = "fdlink0";
/// Descriptors travel in one control message; the kernel takes 253 (`SCM_MAX_FD`), and more
/// queues than this serve nobody.
pub(crate) const MAX_QUEUES: usize = 64;

/// Which kind of link the command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkChoice {
    /// A veth pair whose outer end lies in a network namespace of its own; the descriptors are
    /// `AF_PACKET` sockets bound to it. Needs nothing from the host.
    #[default]
    Veth,
    /// A TAP device with virtio-net headers; needs `/dev/net/tun` to be open for this user.
    Tap,
}

/// What [`Sandbox::start`](crate::Sandbox::start) makes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The command and its arguments; found by `PATH` when it has no slash.
    pub command: Vec<OsString>,
    /// Map the caller to user id 0 inside, with capabilities over the new namespaces (and over
    /// nothing outside of them).
    pub root: bool,
    /// The kind of link.
    pub link: LinkChoice,
    /// How many descriptors the outer end gets.
    pub queues: usize,
    /// The MTU of the link, as Linux counts it (without the Ethernet header).
    pub mtu: u32,
    /// `IFLA_TXQLEN` of the command's interface, in packets. On a TAP it is also the size of the
    /// ring the descriptors read from: a TCP window of 4 MiB is 2800 packets of 1500 bytes, and a
    /// burst beyond the ring is lost.
    pub tx_queue_len: u32,
    /// The command's IPv4 address and prefix length.
    pub ipv4: (Ipv4Addr, u8),
    /// The IPv4 default gateway: an address our stack answers ARP for.
    pub gateway4: Ipv4Addr,
    /// The command's IPv6 address and prefix length.
    pub ipv6: (Ipv6Addr, u8),
    /// The IPv6 default gateway: an address our stack answers neighbour solicitations for.
    pub gateway6: Ipv6Addr,
    /// The `nameserver` lines of `resolv.conf`.
    pub resolvers: Vec<IpAddr>,
    /// The Ethernet address of the command's interface.
    pub guest_mac: [u8; 6],
    /// The Ethernet address our stack will use. No interface gets it: the outer end of the veth
    /// pair has another one, so that its kernel takes frames for the stack as somebody else's and
    /// drops them early (packet sockets see them before that).
    pub gateway_mac: [u8; 6],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            root: false,
            link: LinkChoice::Veth,
            queues: 1,
            mtu: 1500,
            tx_queue_len: 4096,
            ipv4: (Ipv4Addr::new(10, 0, 2, 15), 24),
            gateway4: Ipv4Addr::new(10, 0, 2, 2),
            ipv6: (Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0, 0x15), 64),
            gateway6: Ipv6Addr::new(0xfd00, 0xfd, 0, 0, 0, 0, 0, 2),
            resolvers: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3))],
            guest_mac: [0x02, 0xfd, 0, 0, 0, 0x15],
            gateway_mac: [0x02, 0xfd, 0, 0, 0, 0x02],
        }
    }
}

impl Config {
    /// Refuses what the kernel would refuse later and less clearly.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::Config(why));
        if self.command.is_empty() {
            return refuse("no command was given".into());
        }
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return refuse(format!("{} queues: 1 to {MAX_QUEUES} are possible", self.queues));
        }
        // 68 is the least IPv4 allows; 65535 the most a veth takes (ETH_MAX_MTU), while a TAP
        // counts the 14 bytes of the Ethernet header in.
        let most = if self.link == LinkChoice::Tap { 65521 } else { 65535 };
        if !(68..=most).contains(&self.mtu) {
            return refuse(format!("an MTU of {}: 68 to {most} are possible", self.mtu));
        }
        for mac in [self.guest_mac, self.gateway_mac] {
            if mac[0] & 1 == 1 || mac == [0; 6] {
                return refuse(format!("{mac:02x?} is not the Ethernet address of one station"));
            }
        }
        if self.guest_mac == self.gateway_mac {
            return refuse("the command and the gateway have the same Ethernet address".into());
        }
        if self.ipv4.1 > 32 || self.ipv6.1 > 128 {
            return refuse("a prefix length is longer than its address".into());
        }
        Ok(())
    }

    /// The command as `execvp` takes it.
    pub(crate) fn arguments(&self) -> Result<Vec<CString>, Error> {
        let argument = |a: &OsString| {
            CString::new(a.as_bytes())
                .map_err(|_| Error::Config("the command has a zero byte in it".into()))
        };
        self.command.iter().map(argument).collect()
    }

    /// The outer interface's own Ethernet address: neither the stack's nor the command's.
    pub(crate) fn outer_mac(&self) -> [u8; 6] {
        let differs = |last: &u8| *last != self.gateway_mac[5] && *last != self.guest_mac[5];
        let mut mac = self.gateway_mac;
        mac[5] = (0xfd..=0xff).find(differs).unwrap_or(0xff);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_refused() {
        let good = Config { command: vec!["true".into()], ..Config::default() };
        good.check().unwrap();
        let bad = [
            Config::default(),
            Config { queues: 0, ..good.clone() },
            Config { queues: MAX_QUEUES + 1, ..good.clone() },
            Config { mtu: 67, ..good.clone() },
            Config { mtu: 65536, ..good.clone() },
            Config { guest_mac: [1, 0, 0, 0, 0, 1], ..good.clone() },
            Config { guest_mac: good.gateway_mac, ..good.clone() },
            Config { ipv4: (Ipv4Addr::LOCALHOST, 33), ..good.clone() },
        ];
        for config in bad {
            assert!(matches!(config.check(), Err(Error::Config(_))), "{config:?}");
        }
        let nul = Config { command: vec!["a\0b".into()], ..good };
        assert!(nul.arguments().is_err());
    }

    #[test]
    fn the_outer_address_is_nobody_elses() {
        for (guest, gateway) in [(0x15, 0x02), (0xfd, 0xfe), (0xfe, 0xfd), (0xff, 0xfd)] {
            let mut config = Config::default();
            config.guest_mac[5] = guest;
            config.gateway_mac[5] = gateway;
            let outer = config.outer_mac();
            assert_ne!(outer, config.guest_mac);
            assert_ne!(outer, config.gateway_mac);
        }
    }
}
