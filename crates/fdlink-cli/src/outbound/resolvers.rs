//! Whom name look-ups go to: the host's name servers, or those that were asked for.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// Where name servers listen.
pub(crate) const PORT: u16 = 53;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As many as glibc asks (MAXNS in resolv.h).
const MAX_OF_HOST: usize = 3;

/// Where name servers are found.
#[derive(Clone, Debug)]
pub(crate) struct Resolvers(Source);

#[derive(Clone, Debug)]
enum Source {
    Fixed(Vec<SocketAddr>),
    Host,
}

impl Resolvers {
    /// These.
    pub(crate) fn fixed(addresses: Vec<SocketAddr>) -> Self {
        Self(Source::Fixed(addresses))
    }

    /// The host's.
    pub(crate) fn of_host() -> Self {
        Self(Source::Host)
    }

    /// The addresses, in the order they are to be asked. The host's are read anew each time: a
    /// command may run for days, on a machine that changes networks.
    pub(crate) fn now(&self) -> Vec<SocketAddr> {
        match &self.0 {
            Source::Fixed(addresses) => addresses.clone(),
            Source::Host => of_file(&fs::read_to_string(RESOLV_CONF).unwrap_or_default()),
        }
    }

    /// What a user should know of them.
    pub(crate) fn note(&self) -> Option<String> {
        let Source::Host = self.0 else { return None };
        let text = match fs::read_to_string(RESOLV_CONF) {
            Ok(text) => text,
            Err(error) => {
                return Some(format!(
                    "{RESOLV_CONF} could not be read ({error}): name look-ups go to 127.0.0.1"
                ));
            }
        };
        let named = servers(&text).next().is_some();
        (!named).then(|| format!("{RESOLV_CONF} has no name server: look-ups go to 127.0.0.1"))
    }
}

fn of_file(text: &str) -> Vec<SocketAddr> {
    let mut found: Vec<_> = servers(text).take(MAX_OF_HOST).collect();
    if found.is_empty() {
        // What resolv.conf(5) says of a file without.
        found.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    }
    found
}

fn servers(text: &str) -> impl Iterator<Item = SocketAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        words.next().and_then(address)
    })
}

/// An address, which has a scope where it is link-local: `fe80::1%eth0`.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, scope) = match text.split_once('%') {
        Some((ip, scope)) => (ip, interface_index(scope)?),
        None => (text, 0),
    };
    Some(match ip.parse().ok()? {
        IpAddr::V4(ip) => SocketAddr::from((ip, PORT)),
        IpAddr::V6(ip) => v6(ip, scope),
    })
}

fn v6(ip: Ipv6Addr, scope: u32) -> SocketAddr {
    SocketAddrV6::new(ip, PORT, 0, scope).into()
}

/// By number, or by name.
fn interface_index(scope: &str) -> Option<u32> {
    if let Ok(index) = scope.parse() {
        return Some(index);
    }
    if scope.contains('/') {
        return None;
    }
    let path = Path::new("/sys/class/net").join(scope).join("ifindex");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_taken_in_order_and_at_most_three() {
        let text = "# nameserver 192.0.2.9\nsearch a.example\nnameserver 192.0.2.1\n\
                    nameserver\tfe80::1%7 # router\nnameserver what\nnameserver 2001:db8::1\n\
                    nameserver 192.0.2.4\n";
        let expected =
            ["192.0.2.1:53", "[fe80::1%7]:53", "[2001:db8::1]:53"].map(|a| a.parse().unwrap());
        assert_eq!(of_file(text), expected);
    }

    #[test]
    fn without_any_it_is_the_local_one() {
        assert_eq!(of_file("options edns0\n"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn the_loopback_interface_has_a_number() {
        assert_eq!(address("fe80::1%lo"), Some(v6("fe80::1".parse().unwrap(), 1)));
        assert_eq!(address("fe80::1%../lo"), None);
    }
}
