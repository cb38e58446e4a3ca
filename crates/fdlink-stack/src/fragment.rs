//! Cuts a packet that is longer than the MTU into fragments.
//!
//! # Theory of operation
//!
//! ```text
//!   packet     header | payload ..........................................
//!   fragments  header (fragment header) | n × 8 bytes       more fragments
//!              header (fragment header) | n × 8 bytes       more fragments
//!              header (fragment header) | the rest
//! ```
//!
//! Each fragment is put together in the caller's scratch memory and handed out; nothing is
//! allocated. IPv4 (RFC 791 section 3.2) marks them in the header, IPv6 (RFC 8200 section 4.5) in a
//! header of its own. For a packet that its sender, which is us, decided to cut: "don't fragment"
//! is taken out. A transport checksum must be finished before, since it covers the whole packet.
//!
//! What is not here: headers that our stack does not write, IPv4 options and IPv6's headers for
//! each hop; a packet with such is refused.
#![forbid(unsafe_code)]

use crate::packet::{
    self, FRAGMENT, FRAGMENT_HEADER_LEN, HOP_BY_HOP, IPV4_HEADER_LEN, IPV6_HEADER_LEN,
    MORE_FRAGMENTS, Malformed, ROUTING,
};

/// Why a packet was not cut. Nothing was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotFragment {
    #[error("not an IP packet: {0}")]
    Malformed(#[from] Malformed),
    #[error("longer than an IP packet that is put together may be")]
    TooLong,
    #[error("it has header parts that would have to be repeated, or is an IPv6 fragment")]
    Headers,
    #[error("the MTU leaves no room for 8 bytes behind the headers")]
    Mtu,
    #[error("the scratch memory is shorter than a fragment")]
    Scratch,
}

/// Hands out `packet` in pieces of at most `mtu` bytes, and says how many. Padding behind it is
/// left out; a packet that fits is handed out as it is. `scratch` has room for `mtu` bytes.
///
/// `ident` tells the packet's fragments from those of others between the same two hosts; IPv4 takes
/// its lower half. A piece of IPv4 that is cut again keeps its own.
pub(crate) fn for_each_fragment(
    packet: &[u8],
    mtu: usize,
    ident: u32,
    scratch: &mut [u8],
    send: impl FnMut(&[u8]),
) -> Result<usize, CannotFragment> {
    let view = packet::parse(packet)?;
    let packet = &packet[..view.end];
    let mut send = send;
    if packet.len() <= mtu {
        send(packet);
        return Ok(1);
    }
    if view.source.is_ipv4() {
        let before = view.fragment.map_or((0, false), |part| (part.offset, part.more));
        let kept = view.fragment.map_or(ident, |part| part.ident);
        cut_v4(packet, view.transport, before, kept, Cut { mtu, scratch, send })
    } else {
        cut_v6(packet, ident, Cut { mtu, scratch, send })
    }
}

/// What each fragment is made with.
struct Cut<'a, F> {
    mtu: usize,
    scratch: &'a mut [u8],
    send: F,
}

impl<F: FnMut(&[u8])> Cut<'_, F> {
    /// Cuts `payload` behind `header`. `finish` completes the header of a fragment: it gets the
    /// fragment, the offset of its data, and whether more follow.
    fn run(
        mut self,
        header: &[u8],
        payload: &[u8],
        finish: impl Fn(&mut [u8], u16, bool),
    ) -> Result<usize, CannotFragment> {
        let room = self.mtu.saturating_sub(header.len()) & !7;
        if room == 0 {
            return Err(CannotFragment::Mtu);
        }
        let scratch = self.scratch.get_mut(..header.len() + room).ok_or(CannotFragment::Scratch)?;
        if payload.len() > usize::from(u16::MAX) {
            return Err(CannotFragment::TooLong);
        }
        scratch[..header.len()].copy_from_slice(header);
        let (mut offset, mut count) = (0, 0);
        for piece in payload.chunks(room) {
            let fragment = &mut scratch[..header.len() + piece.len()];
            fragment[header.len()..].copy_from_slice(piece);
            let end = offset + piece.len();
            // Both fit: the whole payload does.
            let at = u16::try_from(offset).map_err(|_| CannotFragment::TooLong)?;
            finish(fragment, at, end < payload.len());
            (self.send)(fragment);
            (offset, count) = (end, count + 1);
        }
        Ok(count)
    }
}

fn cut_v4<F: FnMut(&[u8])>(
    packet: &[u8],
    header_len: usize,
    (base, more_follow): (usize, bool),
    ident: u32,
    cut: Cut<'_, F>,
) -> Result<usize, CannotFragment> {
    // RFC 791 section 3.1: some options are repeated and some are not. We write none.
    if header_len != IPV4_HEADER_LEN {
        return Err(CannotFragment::Headers);
    }
    let (header, payload) = packet.split_at(IPV4_HEADER_LEN);
    if base + packet.len() > usize::from(u16::MAX) {
        return Err(CannotFragment::TooLong);
    }
    let base = u16::try_from(base).map_err(|_| CannotFragment::TooLong)?;
    let [.., high, low] = ident.to_be_bytes();
    cut.run(header, payload, |fragment, offset, more| {
        let flags = if more || more_follow { MORE_FRAGMENTS } else { 0 };
        let field = flags | ((base + offset) / 8);
        write_length(fragment, 2, 0);
        fragment[4..6].copy_from_slice(&[high, low]);
        fragment[6..8].copy_from_slice(&field.to_be_bytes());
        packet::fill_header_checksum(&mut fragment[..IPV4_HEADER_LEN]);
    })
}

fn cut_v6<F: FnMut(&[u8])>(
    packet: &[u8],
    ident: u32,
    cut: Cut<'_, F>,
) -> Result<usize, CannotFragment> {
    const HEADERS_LEN: usize = IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN;
    let (header, payload) = packet.split_at(IPV6_HEADER_LEN);
    let next = header[6];
    if matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT) {
        return Err(CannotFragment::Headers);
    }
    let mut headers = [0; HEADERS_LEN];
    headers[..IPV6_HEADER_LEN].copy_from_slice(header);
    headers[6] = FRAGMENT;
    headers[IPV6_HEADER_LEN] = next;
    headers[HEADERS_LEN - 4..].copy_from_slice(&ident.to_be_bytes());
    cut.run(&headers, payload, |fragment, offset, more| {
        write_length(fragment, 4, IPV6_HEADER_LEN);
        // The offset is a multiple of 8, and its lowest three bits are flags.
        let field = offset | u16::from(more);
        fragment[IPV6_HEADER_LEN + 2..][..2].copy_from_slice(&field.to_be_bytes());
    })
}

/// Writes the length of a fragment, but for what the field does not count.
fn write_length(fragment: &mut [u8], at: usize, not_counted: usize) {
    // Never above 65535: the whole packet is not.
    let len = u16::try_from(fragment.len() - not_counted).unwrap_or(u16::MAX);
    fragment[at..at + 2].copy_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod tests;
