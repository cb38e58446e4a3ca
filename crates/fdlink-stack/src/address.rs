//! Addresses with a prefix, routes, and the names of interfaces.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Which interface of a stack; the caller's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NicId(pub u32);

/// An address and the length of its network's prefix, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// The text is no address with a prefix, or the prefix is longer than the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address with a prefix looks like 10.0.2.15/24 or fd00::15/64")]
pub struct ParseCidrError;

impl Cidr {
    /// Every IPv4 address.
    pub const ALL_V4: Self =
        Self { address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), prefix: 0 };
    /// Every IPv6 address.
    pub const ALL_V6: Self =
        Self { address: IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), prefix: 0 };

    /// `address` in a network of `prefix` bits; an error where that is more bits than it has.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, ParseCidrError> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits { Err(ParseCidrError) } else { Ok(Self { address, prefix }) }
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix, in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `other` is in the same network.
    pub fn contains(&self, other: IpAddr) -> bool {
        let differing = match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            _ => return false,
        };
        self.prefix == 0 || differing >> (128 - u32::from(self.prefix)) == 0
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let (address, prefix) = text.split_once('/').ok_or(ParseCidrError)?;
        let address = address.parse().map_err(|_| ParseCidrError)?;
        Self::new(address, prefix.parse().map_err(|_| ParseCidrError)?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Packets to `destination` go to `gateway`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) destination: Cidr,
    pub(crate) gateway: IpAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_own_and_no_other() {
        let net: Cidr = "10.0.2.15/24".parse().unwrap();
        assert!(net.contains("10.0.2.255".parse().unwrap()));
        assert!(!net.contains("10.0.3.0".parse().unwrap()));
        assert!(!net.contains("::ffff:10.0.2.15".parse().unwrap()));
        assert!(Cidr::ALL_V6.contains("fd00::1".parse().unwrap()));
        assert!("fd00::1/128".parse::<Cidr>().unwrap().contains("fd00::1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in ["10.0.2.15", "10.0.2.15/33", "fd00::/129", "x/24", "10.0.2.15/", "10.0.2.15/-1"]
        {
            assert_eq!(bad.parse::<Cidr>(), Err(ParseCidrError), "{bad}");
        }
    }
}
