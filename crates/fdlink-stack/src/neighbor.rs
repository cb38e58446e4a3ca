//! Which link address an IP address has, and what waits until that is known.
//!
//! # Theory of operation
//!
//! One entry for each address that was looked up or that told its link address:
//!
//! ```text
//!                 learn                    60 s and looked up
//!   Incomplete ---------> Known ------------------------------> Known, being asked again
//!       |  ^                ^                                        |        |
//!       |  | looked up      +---------------- learn -----------------+        |
//!       |  | after 1 s                                                        |
//!       +--v-- three requests, no answer --> Failed      (removed) <----------+
//! ```
//!
//! * A request is sent at most once a second for each address (RFC 1122 section 2.3.2.1), three
//!   times in all (RFC 4861 section 10, MAX_MULTICAST_SOLICIT and RETRANS_TIMER). A host that does
//!   not answer has failed for a second, in which everything for it is refused at once.
//! * What is known is used for [`REACHABLE`]. After that the next lookup has it asked for again,
//!   and it stays in use until three requests went unanswered: a host that is there never notices.
//! * Packets wait in their neighbour's entry, [`WAITING_PACKETS`] each; the oldest gives way to a
//!   newer one (RFC 1122 section 2.3.2.2 wants at least the latest kept). Their bytes are bounded
//!   for each neighbour and for all.
//! * A full cache forgets an entry that was never looked up, then the one looked up longest ago:
//!   a peer that claims a thousand addresses displaces its own claims first.
//!
//! Nothing here sends: [`Neighbors::lookup`] and [`Neighbors::due`] say whom to ask, and the owner
//! calls `due` when [`Neighbors::next_deadline`] has come.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use fdlink::MacAddr;

/// RFC 4861 section 10, RETRANS_TIMER; also how long a failure is remembered.
const RETRY: Duration = Duration::from_secs(1);
/// RFC 4861 section 10, MAX_MULTICAST_SOLICIT.
const REQUESTS: u8 = 3;
/// How long a link address is used before it is asked for again. Linux's
/// base_reachable_time is 30 s; RFC 1122 section 2.3.2.1 has proxies time out after a minute.
const REACHABLE: Duration = Duration::from_secs(60);
/// How many packets wait for one neighbour.
const WAITING_PACKETS: usize = 16;
/// How many bytes wait for one neighbour: four super-frames.
const WAITING_BYTES: usize = 256 * 1024;
/// How many bytes wait in all.
const WAITING_BYTES_ALL: usize = 4 * 1024 * 1024;
/// How many neighbours are remembered unless the owner says otherwise.
const CAPACITY: usize = 1024;

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Send it there.
    Found(MacAddr),
    /// Not known: ask now. The packet may wait, see [`Neighbors::hold`].
    Ask,
    /// Not known, and already asked for. The packet may wait.
    Wait,
    /// Was asked for a moment ago and did not answer.
    Failed,
}

/// What has become due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due<P> {
    /// Ask for this address.
    Ask(IpAddr),
    /// This one does not answer. What waited for it is given back, already counted as dropped: its
    /// senders may be told.
    Failed(IpAddr, VecDeque<P>),
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NeighborCounts {
    /// Requests that the owner was told to send.
    pub(crate) asked: u64,
    /// Addresses that did not answer.
    pub(crate) failed: u64,
    /// Entries forgotten because the cache was full.
    pub(crate) evicted: u64,
    /// Packets that waited in vain, or for which there was no room.
    pub(crate) waiting_dropped: u64,
}

/// The neighbour cache. `P` is a packet that waits, whatever its owner makes of it.
#[derive(Debug)]
pub(crate) struct Neighbors<P> {
    entries: HashMap<IpAddr, Entry<P>>,
    capacity: usize,
    /// Of all entries.
    waiting_bytes: usize,
    /// No request is due before this; one may be due later than it says.
    earliest: Option<Instant>,
    counts: NeighborCounts,
}

#[derive(Debug)]
struct Entry<P> {
    state: State,
    /// When it was last looked up; `None` if it only ever told its address.
    looked_up: Option<Instant>,
    /// When it was made or last told its address.
    touched: Instant,
    waiting: VecDeque<(P, usize)>,
    waiting_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Incomplete(Asking),
    Known { mac: MacAddr, since: Instant, asking: Option<Asking> },
    Failed { at: Instant },
}

/// Requests on their way.
#[derive(Clone, Copy, Debug)]
struct Asking {
    sent: u8,
    next: Instant,
}

impl<P> Default for Neighbors<P> {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl<P> Neighbors<P> {
    /// Remembers at most that many neighbours, and at least one.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            capacity: capacity.max(1),
            waiting_bytes: 0,
            earliest: None,
            counts: NeighborCounts::default(),
        }
    }

    /// What happened so far.
    pub(crate) fn counts(&self) -> NeighborCounts {
        self.counts
    }

    /// Where to send a packet for a neighbour.
    ///
    /// May make a request due at once, for an address that is still used but was learned long ago:
    /// look at [`next_deadline`](Self::next_deadline) before waiting.
    pub(crate) fn lookup(&mut self, now: Instant, ip: IpAddr) -> Lookup {
        let Some(entry) = self.entries.get_mut(&ip) else {
            self.make_room();
            let state = State::Incomplete(Asking::first_sent(now));
            self.entries.insert(ip, Entry::new(now, Some(now), state));
            return self.ask(now + RETRY);
        };
        entry.looked_up = Some(now);
        match &mut entry.state {
            State::Incomplete(_) => Lookup::Wait,
            State::Failed { at } if now < *at + RETRY => Lookup::Failed,
            State::Failed { .. } => {
                entry.state = State::Incomplete(Asking::first_sent(now));
                self.ask(now + RETRY)
            }
            State::Known { mac, since, asking } => {
                let mac = *mac;
                if asking.is_none() && now >= *since + REACHABLE {
                    *asking = Some(Asking { sent: 0, next: now });
                    self.wake_at(now);
                }
                Lookup::Found(mac)
            }
        }
    }

    /// Keeps a packet of that many bytes until the neighbour's link address is known. For the
    /// caller of a [`lookup`](Self::lookup) that found [`Lookup::Ask`] or [`Lookup::Wait`]. Whether
    /// it is kept; if not, it was dropped and counted, and so is an older one that had to give way.
    pub(crate) fn hold(&mut self, ip: IpAddr, packet: P, len: usize) -> bool {
        let entry = self.entries.get_mut(&ip);
        let Some(entry) = entry.filter(|entry| matches!(entry.state, State::Incomplete(_))) else {
            self.counts.waiting_dropped += 1;
            return false;
        };
        if len > WAITING_BYTES {
            self.counts.waiting_dropped += 1;
            return false;
        }
        while entry.waiting.len() >= WAITING_PACKETS || entry.waiting_bytes + len > WAITING_BYTES {
            let Some((_, gone)) = entry.waiting.pop_front() else { break };
            entry.waiting_bytes -= gone;
            self.waiting_bytes -= gone;
            self.counts.waiting_dropped += 1;
        }
        if self.waiting_bytes + len > WAITING_BYTES_ALL {
            self.counts.waiting_dropped += 1;
            return false;
        }
        entry.waiting.push_back((packet, len));
        entry.waiting_bytes += len;
        self.waiting_bytes += len;
        true
    }

    /// The neighbour told its link address: in a request to us, or in an answer to ours. Gives back
    /// what waited for it, oldest first.
    pub(crate) fn learn(&mut self, now: Instant, ip: IpAddr, mac: MacAddr) -> VecDeque<P> {
        let state = State::Known { mac, since: now, asking: None };
        let Some(entry) = self.entries.get_mut(&ip) else {
            self.make_room();
            self.entries.insert(ip, Entry::new(now, None, state));
            return VecDeque::new();
        };
        (entry.state, entry.touched) = (state, now);
        self.waiting_bytes -= entry.waiting_bytes;
        entry.take_waiting()
    }

    /// Somebody told a link address unasked, or to somebody else: taken for an address that is in
    /// the cache, ignored for any other (RFC 826; RFC 4861 section 7.2.5). Without `overrides`, a
    /// link address that is known is not replaced by a different one.
    pub(crate) fn update(
        &mut self,
        now: Instant,
        ip: IpAddr,
        mac: MacAddr,
        overrides: bool,
    ) -> VecDeque<P> {
        let known = self.entries.get(&ip).map(|entry| entry.state);
        match known {
            None => VecDeque::new(),
            Some(State::Known { mac: old, .. }) if old != mac && !overrides => VecDeque::new(),
            Some(_) => self.learn(now, ip, mac),
        }
    }

    /// When [`due`](Self::due) must be called next. May be earlier than anything is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.earliest
    }

    /// Requests to send now, and neighbours that have failed.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Due<P>> {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        self.earliest = None;
        let mut due = Vec::new();
        let mut unanswered = Vec::new();
        for (ip, entry) in &mut self.entries {
            let Some(asking) = entry.state.asking_mut() else { continue };
            if now >= asking.next {
                if asking.sent >= REQUESTS {
                    unanswered.push(*ip);
                    continue;
                }
                *asking = Asking { sent: asking.sent + 1, next: now + RETRY };
                due.push(Due::Ask(*ip));
            }
            let next = asking.next;
            self.earliest = Some(self.earliest.map_or(next, |earliest| earliest.min(next)));
        }
        self.counts.asked += due.len() as u64;
        due.extend(unanswered.into_iter().filter_map(|ip| self.fail(now, ip)));
        due
    }

    /// Nobody answered for an address.
    fn fail(&mut self, now: Instant, ip: IpAddr) -> Option<Due<P>> {
        let entry = self.entries.get_mut(&ip)?;
        self.counts.failed += 1;
        self.counts.waiting_dropped += entry.waiting.len() as u64;
        self.waiting_bytes -= entry.waiting_bytes;
        entry.state = State::Failed { at: now };
        Some(Due::Failed(ip, entry.take_waiting()))
    }

    fn ask(&mut self, next: Instant) -> Lookup {
        self.counts.asked += 1;
        self.wake_at(next);
        Lookup::Ask
    }

    fn wake_at(&mut self, at: Instant) {
        self.earliest = Some(self.earliest.map_or(at, |earliest| earliest.min(at)));
    }

    /// Makes room for one more entry.
    fn make_room(&mut self) {
        if self.entries.len() < self.capacity {
            return;
        }
        // Never looked up (`None`) sorts first. A walk of the whole cache, but only for an address
        // that is new while the cache is full.
        let oldest = self.entries.iter().min_by_key(|(_, entry)| (entry.looked_up, entry.touched));
        let Some(ip) = oldest.map(|(ip, _)| *ip) else { return };
        if let Some(entry) = self.entries.remove(&ip) {
            self.waiting_bytes -= entry.waiting_bytes;
            self.counts.waiting_dropped += entry.waiting.len() as u64;
            self.counts.evicted += 1;
        }
    }
}

impl<P> Entry<P> {
    fn new(now: Instant, looked_up: Option<Instant>, state: State) -> Self {
        Self { state, looked_up, touched: now, waiting: VecDeque::new(), waiting_bytes: 0 }
    }

    fn take_waiting(&mut self) -> VecDeque<P> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting).into_iter().map(|(packet, _)| packet).collect()
    }
}

impl State {
    fn asking_mut(&mut self) -> Option<&mut Asking> {
        match self {
            Self::Incomplete(asking) => Some(asking),
            Self::Known { asking, .. } => asking.as_mut(),
            Self::Failed { .. } => None,
        }
    }
}

impl Asking {
    fn first_sent(now: Instant) -> Self {
        Self { sent: 1, next: now + RETRY }
    }
}

#[cfg(test)]
mod tests;
