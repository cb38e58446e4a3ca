//! Puts fragments together: IPv4 (RFC 791 section 3.2) and IPv6 (RFC 8200
//! section 4.5).
//!
//! # Theory of operation
//!
//! A packet that is incomplete keeps its fragments' data in order of their offsets, each in memory
//! of its own. Since pieces never overlap, it is complete when their lengths add up to the end that
//! the last fragment told; then one buffer is made, with the header of the first fragment.
//!
//! * Fragments belong together by source, destination and ident; with IPv4 also by protocol.
//! * A packet with fragments that overlap, or that do not agree where it ends, is given up, and
//!   what still comes of it is refused until its time is over (RFC 5722; for IPv4 as well, where
//!   nothing but an attack makes such). The same fragment twice is tolerated: networks do that.
//! * Congestion marks of all fragments count (RFC 3168 section 5.3).
//! * Bounded by packets, bytes and pieces for each packet. A full table forgets the oldest: those
//!   given up first. Time runs from the first fragment that came: 30 s for IPv4 (Linux's
//!   ipfrag_time; RFC 1122 section 3.3.2 wants 60 to 120, for slower networks than today's), 60 s
//!   for IPv6.
//!
//! The result is a packet for [`crate::packet::parse`] like any other; its transport checksum has
//! not been looked at by anyone. A peer may have put a fragment into a fragment; the result then is
//! one again, shorter by a header.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::packet::{self, Fragment, IPV6_HEADER_LEN, IpView};

const PACKETS: usize = 64;
const BYTES: usize = 4 * 1024 * 1024;
/// For each packet. 65535 bytes in the fragments of an MTU of 296 (RFC 1191 section 7) are 241.
const PIECES: usize = 256;
/// What a piece costs beside its bytes: its place in the list and the allocator's own.
const PIECE_COST: usize = 64;
const TIMEOUT_V4: Duration = Duration::from_secs(30);
const TIMEOUT_V6: Duration = Duration::from_secs(60);
/// As much of a first fragment as an ICMP error may quote.
const QUOTE: usize = 1280;

/// What became of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Kept until the others come.
    Waiting,
    /// The last one missing: this is the whole packet.
    Complete(Vec<u8>),
    Dropped(Reason),
}

/// Why a fragment was dropped, most often with the packet it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// Not a fragment.
    Whole,
    /// No data, or not a multiple of 8 bytes though more follow.
    Malformed,
    /// It overlaps another one.
    Overlap,
    /// It does not agree with another one about where the packet ends.
    End,
    /// The packet would be longer than 65535 bytes.
    TooLong,
    /// The packet comes in too many pieces.
    TooManyPieces,
    /// Marked as congested by a hop though its sender cannot be told.
    Congestion,
    /// Its packet was given up before.
    GivenUp,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReassemblyCounts {
    /// Fragments that came.
    pub(crate) fragments: u64,
    /// Fragments that were there already.
    pub(crate) duplicates: u64,
    /// Fragments that were dropped when they came.
    pub(crate) dropped: u64,
    /// Packets put together.
    pub(crate) completed: u64,
    /// Packets given up because their fragments made no sense together.
    pub(crate) given_up: u64,
    /// Packets forgotten because the table was full.
    pub(crate) evicted: u64,
    /// Packets whose fragments did not all come in time.
    pub(crate) timed_out: u64,
}

/// Packets of which some fragments are missing.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    /// In order of arrival. Few enough to be searched one by one.
    partials: Vec<Partial>,
    bytes: usize,
    counts: ReassemblyCounts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    ident: u32,
    /// IPv4's; 0 for IPv6, where fragments may name different ones and the first one's counts.
    protocol: u8,
}

#[derive(Debug)]
struct Partial {
    key: Key,
    deadline: Instant,
    /// The headers of the first fragment, IPv6's fragment header included. Empty until that came.
    head: Vec<u8>,
    /// Where the first fragment belongs. Its `offset` and `more` are not used.
    first: Option<Fragment>,
    /// By offset, without overlap.
    pieces: Vec<Piece>,
    /// Length of all pieces.
    received: usize,
    /// Length of the whole payload, once the last fragment came.
    total: Option<usize>,
    /// Bit n is set if a fragment came with ECN field n.
    ecn_seen: u8,
    given_up: bool,
}

#[derive(Debug)]
struct Piece {
    offset: usize,
    data: Vec<u8>,
}

impl Reassembly {
    /// What happened so far.
    pub(crate) fn counts(&self) -> ReassemblyCounts {
        self.counts
    }

    /// Takes a fragment. `view` is of this packet.
    pub(crate) fn push(&mut self, now: Instant, packet: &[u8], view: &IpView) -> Outcome {
        self.counts.fragments += 1;
        let outcome = self.insert(now, packet, view);
        match outcome {
            Outcome::Dropped(_) => self.counts.dropped += 1,
            Outcome::Complete(_) => self.counts.completed += 1,
            Outcome::Waiting => {}
        }
        outcome
    }

    fn insert(&mut self, now: Instant, packet: &[u8], view: &IpView) -> Outcome {
        let Some(fragment) = view.fragment else { return Outcome::Dropped(Reason::Whole) };
        let Some(data) = packet.get(view.transport..view.end) else {
            return Outcome::Dropped(Reason::Malformed);
        };
        if data.is_empty() || (fragment.more && !data.len().is_multiple_of(8)) {
            return Outcome::Dropped(Reason::Malformed);
        }
        let key = Key::of(view, &fragment);
        self.make_room(&key, data.len() + view.transport + PIECE_COST);
        let at = self.find_or_start(now, key);
        let partial = &mut self.partials[at];
        let before = partial.cost();
        let added = partial.add(packet, view, &fragment, data);
        self.bytes = self.bytes - before + partial.cost();
        match added {
            Ok(Added::Duplicate) => {
                self.counts.duplicates += 1;
                Outcome::Waiting
            }
            Ok(Added::Piece) if partial.total != Some(partial.received) => Outcome::Waiting,
            Ok(Added::Piece) => self.complete(at),
            Err(reason) => {
                self.give_up(at, reason);
                Outcome::Dropped(reason)
            }
        }
    }

    /// When [`expire`](Self::expire) must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.partials.iter().map(|partial| partial.deadline).min()
    }

    /// Forgets what is too old, and gives the beginning of each first fragment that came, for
    /// "reassembly time exceeded" (RFC 1122 section 3.3.2, RFC 8200 section 4.5).
    pub(crate) fn expire(&mut self, now: Instant) -> impl Iterator<Item = Vec<u8>> + use<> {
        // Nothing is allocated where nothing expires.
        let expired: Vec<Partial> =
            self.partials.extract_if(.., |partial| now >= partial.deadline).collect();
        for partial in &expired {
            self.bytes -= partial.cost();
            // One that was given up has been counted.
            self.counts.timed_out += u64::from(!partial.given_up);
        }
        expired.into_iter().filter_map(Partial::into_quote)
    }

    fn find_or_start(&mut self, now: Instant, key: Key) -> usize {
        if let Some(at) = self.partials.iter().position(|partial| partial.key == key) {
            return at;
        }
        let partial = Partial::new(now, key);
        self.bytes += partial.cost();
        self.partials.push(partial);
        self.partials.len() - 1
    }

    /// Forgets others until one more packet and that many bytes have room.
    fn make_room(&mut self, key: &Key, bytes: usize) {
        let known = self.partials.iter().any(|partial| partial.key == *key);
        let packets = if known { PACKETS } else { PACKETS - 1 };
        // A new one costs its list as well.
        while self.partials.len() > packets || self.bytes + bytes + PIECE_COST > BYTES {
            let others = self.partials.iter().enumerate().filter(|(_, other)| other.key != *key);
            // In order of arrival, so the first of the smallest is the oldest.
            let Some((at, _)) = others.min_by_key(|(_, other)| !other.given_up) else { return };
            let gone = self.partials.remove(at);
            self.bytes -= gone.cost();
            self.counts.evicted += u64::from(!gone.given_up);
        }
    }

    fn complete(&mut self, at: usize) -> Outcome {
        let partial = self.partials.remove(at);
        self.bytes -= partial.cost();
        match partial.into_packet() {
            Ok(packet) => Outcome::Complete(packet),
            Err(reason) => {
                self.counts.given_up += 1;
                Outcome::Dropped(reason)
            }
        }
    }

    /// Keeps a packet only to refuse what still comes of it.
    fn give_up(&mut self, at: usize, reason: Reason) {
        if reason != Reason::GivenUp {
            let partial = &mut self.partials[at];
            let before = partial.cost();
            partial.give_up();
            self.bytes = self.bytes - before + partial.cost();
            self.counts.given_up += 1;
        }
    }
}

enum Added {
    Piece,
    Duplicate,
}

impl Key {
    fn of(view: &IpView, fragment: &Fragment) -> Self {
        let protocol = if view.source.is_ipv4() { view.protocol } else { 0 };
        let (source, destination) = (view.source, view.destination);
        Self { source, destination, ident: fragment.ident, protocol }
    }
}

impl Partial {
    fn new(now: Instant, key: Key) -> Self {
        let timeout = if key.source.is_ipv4() { TIMEOUT_V4 } else { TIMEOUT_V6 };
        Self {
            key,
            deadline: now + timeout,
            head: Vec::new(),
            first: None,
            pieces: Vec::new(),
            received: 0,
            total: None,
            ecn_seen: 0,
            given_up: false,
        }
    }

    /// Bytes of memory that count.
    fn cost(&self) -> usize {
        self.head.len() + self.received + (self.pieces.len() + 1) * PIECE_COST
    }

    fn add(
        &mut self,
        packet: &[u8],
        view: &IpView,
        fragment: &Fragment,
        data: &[u8],
    ) -> Result<Added, Reason> {
        if self.given_up {
            return Err(Reason::GivenUp);
        }
        let end = fragment.offset + data.len();
        if whole_len(&self.key, fragment.unfragmentable, end) > usize::from(u16::MAX) {
            return Err(Reason::TooLong);
        }
        let at = self.pieces.partition_point(|piece| piece.offset < fragment.offset);
        self.check_end(end, fragment.more)?;
        if let Some(same) = self.pieces.get(at).filter(|piece| piece.offset == fragment.offset) {
            return if same.data == data { Ok(Added::Duplicate) } else { Err(Reason::Overlap) };
        }
        let before = at.checked_sub(1).and_then(|at| self.pieces.get(at));
        let overlaps = before.is_some_and(|piece| piece.end() > fragment.offset)
            || self.pieces.get(at).is_some_and(|piece| piece.offset < end);
        if overlaps {
            return Err(Reason::Overlap);
        }
        if self.pieces.len() >= PIECES {
            return Err(Reason::TooManyPieces);
        }
        if fragment.offset == 0 {
            self.head = packet[..view.transport].to_vec();
            self.first = Some(*fragment);
        }
        if !fragment.more {
            self.total = Some(end);
        }
        self.pieces.insert(at, Piece { offset: fragment.offset, data: data.to_vec() });
        self.received += data.len();
        self.ecn_seen |= 1 << (view.dscp_ecn & 3);
        Ok(Added::Piece)
    }

    /// Whether a fragment that ends there agrees with the others about where the packet does.
    fn check_end(&self, end: usize, more: bool) -> Result<(), Reason> {
        let agrees = match self.total {
            Some(total) if more => end < total,
            Some(total) => end == total,
            None if more => true,
            // A piece that ends in the same place would say that more follow.
            None => self.pieces.last().is_none_or(|last| last.end() < end),
        };
        if agrees { Ok(()) } else { Err(Reason::End) }
    }

    fn give_up(&mut self) {
        *self =
            Self { given_up: true, deadline: self.deadline, ..Self::new(self.deadline, self.key) };
    }

    /// The packet, once all pieces are there.
    fn into_packet(self) -> Result<Vec<u8>, Reason> {
        // The piece at offset 0 brought it.
        let first = self.first.ok_or(Reason::Malformed)?;
        let whole_len = whole_len(&self.key, first.unfragmentable, self.received);
        let length = u16::try_from(whole_len).map_err(|_| Reason::TooLong)?.to_be_bytes();
        let mut packet = Vec::with_capacity(first.unfragmentable + self.received);
        packet.extend_from_slice(&self.head[..first.unfragmentable]);
        let congested = is_congested(self.ecn_seen)?;
        if self.key.source.is_ipv4() {
            packet[2..4].copy_from_slice(&length);
            packet[6..8].fill(0);
            packet[1] |= if congested { 0b11 } else { 0 };
            packet::fill_header_checksum(&mut packet);
        } else {
            packet[4..6].copy_from_slice(&length);
            // The traffic class lies across the first two bytes.
            packet[1] |= if congested { 0b11 << 4 } else { 0 };
            packet[first.named_at] = self.head[first.unfragmentable];
        }
        for piece in &self.pieces {
            packet.extend_from_slice(&piece.data);
        }
        Ok(packet)
    }

    /// The beginning of the first fragment as it came, if it did.
    fn into_quote(self) -> Option<Vec<u8>> {
        let mut quote = self.head;
        let first = self.pieces.first().filter(|piece| piece.offset == 0)?;
        quote.extend_from_slice(&first.data);
        quote.truncate(QUOTE);
        Some(quote)
    }
}

impl Piece {
    fn end(&self) -> usize {
        self.offset + self.data.len()
    }
}

/// What the whole packet's length field would hold.
fn whole_len(key: &Key, unfragmentable: usize, payload: usize) -> usize {
    let not_counted = if key.source.is_ipv4() { 0 } else { IPV6_HEADER_LEN };
    unfragmentable.saturating_sub(not_counted) + payload
}

/// Whether a hop marked a fragment (RFC 3168 section 5.3). An error if others say that their sender
/// does not understand the mark: then losing the packet is how it is told.
fn is_congested(ecn_seen: u8) -> Result<bool, Reason> {
    const NOT_CAPABLE: u8 = 1 << 0b00;
    const CONGESTED: u8 = 1 << 0b11;
    match ecn_seen & (NOT_CAPABLE | CONGESTED) {
        CONGESTED => Ok(true),
        seen if seen & CONGESTED != 0 => Err(Reason::Congestion),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests;
