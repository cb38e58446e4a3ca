//! IPv6's chain of extension headers (RFC 8200 section 4), walked within bounds.
//!
//! Hop-by-hop options come first or not at all; every length is checked against the packet's end;
//! "no next header" (59) and everything else that is not an extension ends the walk as a transport
//! would, authentication and encryption included, which nothing here could look behind.
#![forbid(unsafe_code)]

use super::{FRAGMENT_HEADER_LEN, Fragment, IPV6_HEADER_LEN, Malformed, be16};

// RFC 8200 section 4.1.
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(super) const DESTINATION_OPTIONS: u8 = 60;

/// How many extension headers are walked. RFC 8504 section 5.3 lets a host set a limit; RFC 8200
/// section 4.1 recommends an order in which no packet has more than seven.
pub(super) const MAX_EXTENSIONS: usize = 8;

/// What the walk came to.
pub(super) struct Chain {
    pub(super) protocol: u8,
    pub(super) transport: usize,
    pub(super) fragment: Option<Fragment>,
}

/// Walks the extension headers of an IPv6 packet without padding, up to the transport or the
/// fragment header: what a fragment header covers belongs to the packet that is put together.
pub(super) fn walk(packet: &[u8], first: u8) -> Result<Chain, Malformed> {
    let (mut protocol, mut at, mut named_at) = (first, IPV6_HEADER_LEN, 6);
    for _ in 0..=MAX_EXTENSIONS {
        let len = match protocol {
            // RFC 8200 section 4.1: nowhere but directly behind the IPv6 header.
            HOP_BY_HOP if at != IPV6_HEADER_LEN => return Err(Malformed::ExtensionChain),
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let header = extension(packet, at)?;
                check_options(&header[2..])?;
                header.len()
            }
            ROUTING => {
                let header = extension(packet, at)?;
                if header[3] != 0 {
                    return Err(Malformed::Routing);
                }
                header.len()
            }
            FRAGMENT => {
                if let Some(fragment) = fragment_header(packet, at, named_at)? {
                    let transport = at + FRAGMENT_HEADER_LEN;
                    let fragment = Some(fragment);
                    return Ok(Chain { protocol: packet[at], transport, fragment });
                }
                FRAGMENT_HEADER_LEN
            }
            _ => return Ok(Chain { protocol, transport: at, fragment: None }),
        };
        (protocol, named_at) = (packet[at], at);
        at += len;
    }
    Err(Malformed::ExtensionChain)
}

/// An extension header with a length field, whole. At least 8 bytes.
fn extension(packet: &[u8], at: usize) -> Result<&[u8], Malformed> {
    let units = *packet.get(at + 1).ok_or(Malformed::ExtensionChain)?;
    packet.get(at..at + (usize::from(units) + 1) * 8).ok_or(Malformed::ExtensionChain)
}

/// Refuses options that are unknown and ask to be discarded then (RFC 8200 section 4.2).
fn check_options(mut options: &[u8]) -> Result<(), Malformed> {
    const PAD1: u8 = 0;
    // RFC 2675; Linux puts it into BIG TCP super-frames. Those carry 0 in the length field as well.
    const JUMBO: u8 = 0xc2;
    while let [kind, rest @ ..] = options {
        if *kind == PAD1 {
            options = rest;
            continue;
        }
        let (len, rest) = rest.split_first().ok_or(Malformed::ExtensionChain)?;
        if *kind >> 6 != 0 && *kind != JUMBO {
            return Err(Malformed::UnknownOption);
        }
        options = rest.get(usize::from(*len)..).ok_or(Malformed::ExtensionChain)?;
    }
    Ok(())
}

/// Reads a fragment header; `None` for an atomic fragment.
fn fragment_header(
    packet: &[u8],
    at: usize,
    named_at: usize,
) -> Result<Option<Fragment>, Malformed> {
    let header = packet.get(at..at + FRAGMENT_HEADER_LEN).ok_or(Malformed::ExtensionChain)?;
    let field = be16(header, 2);
    // The offset counts units of 8 bytes from bit 3 up, so masking leaves it in bytes.
    let (offset, more) = (usize::from(field & !7), field & 1 != 0);
    let ident = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let fragment = Fragment { ident, offset, more, unfragmentable: at, named_at };
    Ok((offset > 0 || more).then_some(fragment))
}
