//! ICMP for IPv4 (RFC 792) and IPv6 (RFC 4443): echoes, errors that we send, errors about our
//! flows.
//!
//! # Theory of operation
//!
//! Everything here writes a whole IP packet, with its checksums, into the caller's buffer, and
//! gives its length; `None` where nothing may or can be sent. A packet from here fits into every
//! MTU that its protocol allows, except for an echo reply, which is as long as the request and is
//! cut by [`crate::fragment`] like any other packet.
//!
//! * Errors quote the packet they are about: 576 bytes in all for IPv4 (RFC 1812 section 4.3.2.3),
//!   1280 for IPv6 (RFC 4443 section 2.4 (c)).
//! * Never about an ICMP error, a fragment that is not the first, a packet to a group or to all, or
//!   one whose source is not a single host (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)): two
//!   hosts that report each other's reports never stop, and a group would answer all at once.
//!   For the same reason they pass an [`ErrorLimiter`] (RFC 4443 section 2.4 (f)).
//! * An error that arrives is believed if its checksum is right and it quotes a packet from the
//!   address it was sent to. Whether a flow with those ports exists is the flow table's matter.
//!   RFC 5927 tells why TCP must take "unreachable" for a hint only.
//!
//! What is not here: redirects, router discovery, timestamps and the obsolete rest.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::packet::{self, ICMPV4, ICMPV6, IpView, TCP, UDP};

/// Type, code, checksum, and four bytes whose meaning depends on the type.
const HEADER_LEN: usize = 8;
/// What the hosts on the way may count down from (RFC 1700).
const HOP_LIMIT: u8 = 64;

const V4_ECHO_REPLY: u8 = 0;
const V4_UNREACHABLE: u8 = 3;
const V4_ECHO_REQUEST: u8 = 8;
const V4_TIME_EXCEEDED: u8 = 11;
const V4_CODE_TOO_BIG: u8 = 4;
const V6_UNREACHABLE: u8 = 1;
const V6_TOO_BIG: u8 = 2;
const V6_TIME_EXCEEDED: u8 = 3;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;
const V6_REDIRECT: u8 = 137;
/// "Fragment reassembly time exceeded", the same in both.
const CODE_REASSEMBLY: u8 = 1;

/// The whole error packet is at most this long.
const V4_ERROR_MAX: usize = 576;
const V6_ERROR_MAX: usize = 1280;

/// An echo request or reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    pub(crate) request: bool,
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    /// Where its data lies in the packet.
    pub(crate) payload: Range<usize>,
}

/// Reads an echo request or reply whose checksum is right.
pub(crate) fn parse_echo(packet: &[u8], view: &IpView) -> Option<Echo> {
    let message = message(packet, view)?;
    let request = match (view.protocol, message[0]) {
        (ICMPV4, V4_ECHO_REQUEST) | (ICMPV6, V6_ECHO_REQUEST) => true,
        (ICMPV4, V4_ECHO_REPLY) | (ICMPV6, V6_ECHO_REPLY) => false,
        _ => return None,
    };
    let (ident, sequence) = (packet::be16(message, 4), packet::be16(message, 6));
    (message[1] == 0).then_some(Echo {
        request,
        ident,
        sequence,
        payload: view.transport + HEADER_LEN..view.end,
    })
}

/// Writes an echo reply.
pub(crate) fn write_echo_reply(
    out: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    ident: u16,
    sequence: u16,
    payload: &[u8],
) -> Option<usize> {
    let kind = if source.is_ipv4() { V4_ECHO_REPLY } else { V6_ECHO_REPLY };
    let ([a, b], [c, d]) = (ident.to_be_bytes(), sequence.to_be_bytes());
    write_message(out, source, destination, Head { kind, code: 0, rest: [a, b, c, d] }, payload)
}

/// Writes the reply to an echo request, from the address that was asked.
///
/// Not where that is a group (RFC 1122 section 3.2.2.6 allows silence) or the source no single
/// host.
pub(crate) fn echo_reply(out: &mut [u8], request: &[u8], view: &IpView) -> Option<usize> {
    let echo = parse_echo(request, view).filter(|echo| echo.request)?;
    if !is_single_host(view.source) || is_group(view.destination) {
        return None;
    }
    let payload = &request[echo.payload];
    write_echo_reply(out, view.destination, view.source, echo.ident, echo.sequence, payload)
}

/// Why a packet could not be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unreachable {
    /// There is no route.
    Network,
    /// The host does not answer.
    Host,
    /// Nobody listens there.
    Port,
    /// A policy forbids it.
    Prohibited,
}

/// Writes "destination unreachable" about a packet.
pub(crate) fn unreachable(
    out: &mut [u8],
    why: Unreachable,
    offending: &[u8],
    source: IpAddr,
) -> Option<usize> {
    let (kind, code) = match (source, why) {
        (IpAddr::V4(_), Unreachable::Network) => (V4_UNREACHABLE, 0),
        (IpAddr::V4(_), Unreachable::Host) => (V4_UNREACHABLE, 1),
        (IpAddr::V4(_), Unreachable::Port) => (V4_UNREACHABLE, 3),
        (IpAddr::V4(_), Unreachable::Prohibited) => (V4_UNREACHABLE, 13),
        (IpAddr::V6(_), Unreachable::Network) => (V6_UNREACHABLE, 0),
        (IpAddr::V6(_), Unreachable::Prohibited) => (V6_UNREACHABLE, 1),
        (IpAddr::V6(_), Unreachable::Host) => (V6_UNREACHABLE, 3),
        (IpAddr::V6(_), Unreachable::Port) => (V6_UNREACHABLE, 4),
    };
    write_error(out, Head { kind, code, rest: [0; 4] }, offending, source)
}

/// Writes "fragmentation needed" (RFC 1191 section 4) or "packet too big" about a packet.
pub(crate) fn too_big(out: &mut [u8], mtu: u32, offending: &[u8], source: IpAddr) -> Option<usize> {
    let head = match source {
        IpAddr::V4(_) => {
            let [a, b] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
            Head { kind: V4_UNREACHABLE, code: V4_CODE_TOO_BIG, rest: [0, 0, a, b] }
        }
        IpAddr::V6(_) => Head { kind: V6_TOO_BIG, code: 0, rest: mtu.to_be_bytes() },
    };
    write_error(out, head, offending, source)
}

/// Writes "reassembly time exceeded" about a first fragment, which may have been cut short.
pub(crate) fn reassembly_time_exceeded(
    out: &mut [u8],
    offending: &[u8],
    source: IpAddr,
) -> Option<usize> {
    let kind = if source.is_ipv4() { V4_TIME_EXCEEDED } else { V6_TIME_EXCEEDED };
    write_error(out, Head { kind, code: CODE_REASSEMBLY, rest: [0; 4] }, offending, source)
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    Unreachable(Unreachable),
    /// Packets to there must not be longer. At least what the protocol asks every link to carry.
    TooBig {
        mtu: u32,
    },
    /// Too many hops, or not all fragments came.
    TimeExceeded,
}

/// An ICMP error about a packet that we sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IcmpError {
    pub(crate) kind: ErrorKind,
    /// Of the packet that is quoted: TCP, UDP, or ICMP for an echo.
    pub(crate) protocol: u8,
    /// Our side of the flow. An echo has its identifier for a port.
    pub(crate) source: SocketAddr,
    /// The other side. An echo has 0 for a port.
    pub(crate) destination: SocketAddr,
}

/// Reads an ICMP error that quotes a packet from the address it was sent to.
pub(crate) fn parse_error(packet: &[u8], view: &IpView) -> Option<IcmpError> {
    let message = message(packet, view)?;
    let kind = match view.protocol {
        ICMPV4 => kind_v4(message)?,
        _ => kind_v6(message)?,
    };
    let quote = &message[HEADER_LEN..];
    let quoted = packet::parse_quoted(quote).ok()?;
    if quoted.source != view.destination || quoted.fragment.is_some_and(|part| part.offset > 0) {
        return None;
    }
    let transport = &quote[quoted.transport..quoted.end];
    // RFC 792 promises 8 bytes of the transport.
    let (from, to) = match (quoted.protocol, transport.first_chunk::<8>()?) {
        (TCP | UDP, ports) => (packet::be16(ports, 0), packet::be16(ports, 2)),
        (ICMPV4, echo) if echo[0] == V4_ECHO_REQUEST => (packet::be16(echo, 4), 0),
        (ICMPV6, echo) if echo[0] == V6_ECHO_REQUEST => (packet::be16(echo, 4), 0),
        _ => return None,
    };
    Some(IcmpError {
        kind,
        protocol: quoted.protocol,
        source: SocketAddr::new(quoted.source, from),
        destination: SocketAddr::new(quoted.destination, to),
    })
}

fn kind_v4(message: &[u8]) -> Option<ErrorKind> {
    // RFC 791 section 3.2: every link carries 68. RFC 1191 section 3: an old router gives 0, and
    // 576, what every host takes, is the least that is worth trying then.
    const LEAST: u32 = 68;
    const UNTOLD: u32 = 576;
    Some(match (message[0], message[1]) {
        (V4_UNREACHABLE, V4_CODE_TOO_BIG) => match packet::be16(message, 6) {
            0 => ErrorKind::TooBig { mtu: UNTOLD },
            mtu => ErrorKind::TooBig { mtu: LEAST.max(mtu.into()) },
        },
        (V4_UNREACHABLE, 0 | 6 | 11) => ErrorKind::Unreachable(Unreachable::Network),
        // "Protocol unreachable" (2): nobody is there for it.
        (V4_UNREACHABLE, 2 | 3) => ErrorKind::Unreachable(Unreachable::Port),
        (V4_UNREACHABLE, 9 | 10 | 13) => ErrorKind::Unreachable(Unreachable::Prohibited),
        (V4_UNREACHABLE, _) => ErrorKind::Unreachable(Unreachable::Host),
        (V4_TIME_EXCEEDED, _) => ErrorKind::TimeExceeded,
        _ => return None,
    })
}

fn kind_v6(message: &[u8]) -> Option<ErrorKind> {
    // RFC 8201 section 4: a smaller one must not be followed.
    const LEAST: u32 = 1280;
    Some(match (message[0], message[1]) {
        (V6_TOO_BIG, _) => {
            let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
            ErrorKind::TooBig { mtu: mtu.max(LEAST) }
        }
        (V6_UNREACHABLE, 0 | 2) => ErrorKind::Unreachable(Unreachable::Network),
        (V6_UNREACHABLE, 1 | 5 | 6) => ErrorKind::Unreachable(Unreachable::Prohibited),
        (V6_UNREACHABLE, 4) => ErrorKind::Unreachable(Unreachable::Port),
        (V6_UNREACHABLE, _) => ErrorKind::Unreachable(Unreachable::Host),
        (V6_TIME_EXCEEDED, _) => ErrorKind::TimeExceeded,
        _ => return None,
    })
}

/// Keeps the rate of errors down: a token bucket, kept as the time at which it will be full again.
#[derive(Debug)]
pub(crate) struct ErrorLimiter {
    /// Time that one token takes to come back.
    interval: Duration,
    /// How far in the future `full_at` may lie for one more to be let through.
    tolerance: Duration,
    full_at: Option<Instant>,
    refused: u64,
}

impl ErrorLimiter {
    /// Lets `burst` through at once and `per_second` for long. 0 counts as 1.
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        let tolerance = interval.saturating_mul(burst.saturating_sub(1));
        Self { interval, tolerance, full_at: None, refused: 0 }
    }

    /// Whether one more may be sent now; it is counted as sent, or as refused.
    pub(crate) fn allow(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at.duration_since(now) > self.tolerance {
            self.refused += 1;
            return false;
        }
        self.full_at = Some(full_at + self.interval);
        true
    }

    /// How many were not sent.
    #[cfg(test)]
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }
}

/// The ICMP message of a whole packet, if its checksum is right. At least 8 bytes.
fn message<'a>(packet: &'a [u8], view: &IpView) -> Option<&'a [u8]> {
    let protocol = if view.source.is_ipv4() { ICMPV4 } else { ICMPV6 };
    let message = packet::transport(packet, view, protocol)?;
    let valid = packet::transport_is_valid(view, protocol, message);
    (message.len() >= HEADER_LEN && valid).then_some(message)
}

/// An ICMP header without its checksum.
struct Head {
    kind: u8,
    code: u8,
    rest: [u8; 4],
}

/// Writes an error about a packet to whoever sent it, if one may be sent.
fn write_error(out: &mut [u8], head: Head, offending: &[u8], source: IpAddr) -> Option<usize> {
    let view = packet::parse_quoted(offending).ok()?;
    if !may_be_reported(offending, &view) {
        return None;
    }
    let most = if source.is_ipv4() { V4_ERROR_MAX } else { V6_ERROR_MAX };
    let room = most - packet::header_len(source) - HEADER_LEN;
    write_message(out, source, view.source, head, &offending[..view.end.min(room)])
}

fn may_be_reported(packet: &[u8], view: &IpView) -> bool {
    if view.fragment.is_some_and(|fragment| fragment.offset > 0) {
        return false;
    }
    let kind = packet[..view.end].get(view.transport).copied();
    let answerable = match view.protocol {
        // The queries and their replies; all others are errors, or unknown and so may be.
        ICMPV4 => matches!(kind, Some(V4_ECHO_REPLY | V4_ECHO_REQUEST | 13..=18)),
        ICMPV6 => kind.is_some_and(|kind| kind >= V6_ECHO_REQUEST && kind != V6_REDIRECT),
        _ => true,
    };
    answerable && is_single_host(view.source) && !is_group(view.destination)
}

/// Whether an address names one host that can be answered (RFC 1122 section 3.2.2).
fn is_single_host(address: IpAddr) -> bool {
    match address {
        // Below 1 "this network", from 224 up groups, the reserved rest and everyone.
        IpAddr::V4(v4) => (1..224).contains(&v4.octets()[0]) && !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

fn write_message(
    out: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    head: Head,
    payload: &[u8],
) -> Option<usize> {
    let protocol = if source.is_ipv4() { ICMPV4 } else { ICMPV6 };
    let total = packet::header_len(source) + HEADER_LEN + payload.len();
    if total > usize::from(u16::MAX) {
        return None;
    }
    let out = out.get_mut(..total)?;
    let len = HEADER_LEN + payload.len();
    let at = packet::write_header(out, source, destination, protocol, len, 0, HOP_LIMIT);
    if at == 0 {
        return None;
    }
    let message = &mut out[at..];
    message[..4].copy_from_slice(&[head.kind, head.code, 0, 0]);
    message[4..HEADER_LEN].copy_from_slice(&head.rest);
    message[HEADER_LEN..].copy_from_slice(payload);
    let sum = packet::transport_checksum(source, destination, protocol, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(total)
}

#[cfg(test)]
mod tests;
