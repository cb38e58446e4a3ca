//! An interface of the stack: a link's queues, its addresses, its neighbours, and how packets are
//! put into its transmit queues.

mod segments;

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::task::Waker;
use std::time::Instant;

use fdlink::batch::{LinkHeader, ethernet_header};
use fdlink::offload::checksum;
use fdlink::offload::vnet::{ChecksumField, TxOffload};
use fdlink::queue::{Closed, QueuePair, Receive, Sent, Transmit, Wakeup};
use fdlink::{EtherType, LinkKind, LinkProperties, MacAddr, TxFrame, TxSlot};

use crate::address::{Cidr, NicId, Route};
use crate::flows::Path;
use crate::fragment;
use crate::ingress::MAX_NEIGHBOR_FRAME;
use crate::neighbor::{Lookup, Neighbors};
use crate::packet;
use crate::resolution;
use crate::stats::StackCounters;
use crate::tcp::ConnectionSpec;

pub(crate) use self::segments::TcpOut;

/// Time to live of what we send (RFC 1700's recommendation, and Linux's default).
const HOP_LIMIT: u8 = 64;
/// Length of a TCP header without options (RFC 9293, section 3.1).
const TCP_HEADER_LEN: usize = 20;
/// The longest IP packet whose length field can say so.
const MAX_IP_LEN: usize = 65_535;

/// An interface.
pub(crate) struct Nic {
    pub(crate) id: NicId,
    pub(crate) shape: Shape,
    pub(crate) queues: Vec<NicQueue>,
    pub(crate) addresses: Vec<Cidr>,
    pub(crate) routes: Vec<Route>,
    /// What waits for a neighbour is a whole IP packet.
    pub(crate) neighbors: Neighbors<Box<[u8]>>,
    /// Why it ended, once it has.
    pub(crate) closed: Option<Closed>,
    /// Tasks that wait for room in a transmit queue.
    pub(crate) room_wakers: Vec<Waker>,
    scratch: Vec<u8>,
    /// The next IPv4 or IPv6 fragment identification.
    ident: u32,
}

/// One descriptor of an interface.
pub(crate) struct NicQueue {
    pub(crate) rx: Option<Box<dyn Receive>>,
    pub(crate) tx: Box<dyn Transmit>,
    /// The last `transmit` ran out of room here.
    pub(crate) full: bool,
    /// Sending failed for good: it ends when what it still has is taken in.
    pub(crate) failed: Option<Closed>,
    /// It has ended, and the interface goes on with its other descriptors.
    pub(crate) dead: bool,
}

impl From<QueuePair> for NicQueue {
    fn from(QueuePair { rx, tx }: QueuePair) -> Self {
        Self { rx, tx, full: false, failed: None, dead: false }
    }
}

impl NicQueue {
    /// Closes the descriptor, so that whoever has its other end hears of it.
    pub(crate) fn let_go(&mut self) {
        (self.rx, self.tx, self.dead) = (None, Box::new(Gone), true);
    }
}

/// The way out of an interface that has ended.
struct Gone;

impl Transmit for Gone {
    fn send(&mut self, _: &[TxFrame<'_>]) -> io::Result<Sent> {
        Ok(Sent::default())
    }

    fn slot(&mut self, _: usize) -> Option<TxSlot<'_>> {
        None
    }

    fn flush(&mut self) -> io::Result<Sent> {
        Ok(Sent::default())
    }

    fn queued(&self) -> usize {
        0
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup::default()
    }
}

/// What is fixed about the frames of an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) link: LinkHeader,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: usize,
    pub(crate) trusts_unverified: bool,
    /// Segments of connections that nobody here knows may belong to a stack that will be restored:
    /// the link may be handed over, and its flows are not to be reset.
    pub(crate) spares_strays: bool,
    tx_checksum: bool,
    tso4: bool,
    tso6: bool,
    gso_max_size: usize,
    /// The longest frame that a slot is asked for.
    max_slot: usize,
    /// What one connection may have under way towards us, in bytes: more would overrun the
    /// descriptor's own queue.
    pub(crate) max_window: usize,
}

/// The IP side of a packet to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
}

/// The link address of a neighbour is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unresolved {
    /// It has just not answered; else it is being asked for.
    pub(crate) failed: bool,
}

/// What became of a packet that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// In the transmit queue, or waiting for the neighbour's answer.
    Queued,
    /// The transmit queue is full; nothing was done.
    Full,
    /// There is no way to send it; counted.
    Dropped,
}

impl Nic {
    pub(crate) fn new(
        id: NicId,
        properties: &LinkProperties,
        queues: Vec<NicQueue>,
        addresses: Vec<Cidr>,
    ) -> Self {
        let mtu = usize::try_from(properties.mtu).unwrap_or(MAX_IP_LEN).min(MAX_IP_LEN);
        let caps = &properties.capabilities;
        let shape = Shape {
            link: properties.link_header,
            mac: properties.address.unwrap_or_default(),
            mtu,
            trusts_unverified: caps.rx_checksum,
            spares_strays: caps.save_restore && !caps.disconnect_ok,
            tx_checksum: caps.tx_checksum,
            tso4: caps.tso4,
            tso6: caps.tso6,
            gso_max_size: properties.gso_max_size,
            max_slot: properties.max_frame_len.max(properties.gso_max_size),
            max_window: max_window(properties),
        };
        Self {
            id,
            shape,
            queues,
            addresses,
            routes: Vec::new(),
            neighbors: Neighbors::default(),
            closed: None,
            room_wakers: Vec::new(),
            scratch: Vec::new(),
            ident: 0,
        }
    }

    /// Whether `address` is one of ours.
    pub(crate) fn owns(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address() == address)
    }

    /// Our address to talk to `destination` from: one in its network, else the first of its kind.
    pub(crate) fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        let same_kind =
            || self.addresses.iter().filter(|a| a.address().is_ipv4() == destination.is_ipv4());
        same_kind()
            .find(|own| own.contains(destination))
            .or_else(|| same_kind().next())
            .map(Cidr::address)
    }

    /// The neighbour through which `destination` is reached: itself, or a gateway.
    pub(crate) fn next_hop(&self, destination: IpAddr) -> Option<IpAddr> {
        if self.addresses.iter().any(|own| own.contains(destination)) {
            return Some(destination);
        }
        self.routes
            .iter()
            .filter(|route| route.destination.contains(destination))
            .max_by_key(|route| route.destination.prefix())
            .map(|route| route.gateway)
    }

    /// That queue, or another one if it has ended.
    pub(crate) fn live_queue(&self, queue: usize) -> usize {
        match self.queues[queue].dead {
            false => queue,
            true => self.queues.iter().position(|queue| !queue.dead).unwrap_or(queue),
        }
    }

    /// A task waits for room in a transmit queue.
    pub(crate) fn wait_for_room(&mut self, waker: &Waker) {
        if !self.room_wakers.iter().any(|known| known.will_wake(waker)) {
            self.room_wakers.push(waker.clone());
        }
    }

    /// How a connection between these addresses is to be made.
    pub(crate) fn connection_spec(&self, path: &Path, buffer: usize, cc: bool) -> ConnectionSpec {
        let ip = packet::header_len(path.local.ip());
        let headers = ip + TCP_HEADER_LEN;
        let mss = self.shape.mtu.saturating_sub(headers).max(1);
        let tso = if path.local.is_ipv4() { self.shape.tso4 } else { self.shape.tso6 };
        // Whole segments only: a short one at the end of each super-frame would cost the peer a
        // merge. The length field must be able to say it, in either IP version.
        let room = self.shape.gso_max_size.saturating_sub(self.shape.link.len()).min(MAX_IP_LEN);
        let whole = room.saturating_sub(headers) / mss * mss;
        ConnectionSpec {
            local_port: path.local.port(),
            remote_port: path.remote.port(),
            mss,
            super_segment: (tso && whole > mss).then_some(whole),
            buffer,
            congestion_control: cc,
        }
    }

    /// Sends an IP packet made of a header and `parts`. `checksum` is where the transport's
    /// checksum field lies in the parts; the field's content is overwritten.
    pub(crate) fn send_ip(
        &mut self,
        queue: usize,
        peer: MacAddr,
        head: Head,
        parts: &[&[u8]],
        checksum: Option<u16>,
        stats: &StackCounters,
    ) -> Outcome {
        let payload: usize = parts.iter().map(|part| part.len()).sum();
        let ip = packet::header_len(head.source);
        let queue = self.live_queue(queue);
        // IPv6's length field does not count the header.
        let counted = if head.source.is_ipv4() { ip + payload } else { payload };
        if counted > MAX_IP_LEN {
            stats.tx_no_room.add(1);
            return Outcome::Dropped;
        }
        if ip + payload > self.shape.mtu {
            return self.send_in_fragments(queue, peer, head, parts, checksum, stats);
        }
        let link = self.shape.link.len();
        let total = link + ip + payload;
        let shape = self.shape;
        let Some(mut slot) = self.queues[queue].tx.slot(total) else { return Outcome::Full };
        let frame = &mut slot.bytes_mut()[..total];
        shape.write_link_header(frame, peer, head.source);
        write_packet(&mut frame[link..], head, 0, parts);
        let offload = match checksum {
            Some(offset) => shape.leave_checksum(frame, link + ip, offset, head),
            None => TxOffload::default(),
        };
        slot.commit(total, offload);
        Outcome::Queued
    }

    /// Sends a whole IP packet as it is; in fragments where it is longer than the MTU. Nobody waits
    /// to send it again: where there is no room, it is dropped and counted. Whether it was sent.
    pub(crate) fn send_packet(
        &mut self,
        queue: usize,
        peer: MacAddr,
        whole: &[u8],
        stats: &StackCounters,
    ) -> bool {
        let Ok(view) = packet::parse(whole) else { return false };
        let head =
            Head { source: view.source, destination: view.destination, protocol: view.protocol };
        let payload = &whole[view.transport..view.end];
        let outcome = self.send_ip(queue, peer, head, &[payload], None, stats);
        stats.tx_no_room.add(u64::from(outcome == Outcome::Full));
        outcome == Outcome::Queued
    }

    fn send_in_fragments(
        &mut self,
        queue: usize,
        peer: MacAddr,
        head: Head,
        parts: &[&[u8]],
        checksum: Option<u16>,
        stats: &StackCounters,
    ) -> Outcome {
        let payload: usize = parts.iter().map(|part| part.len()).sum();
        let ip = packet::header_len(head.source);
        self.ident = self.ident.wrapping_add(1);
        // IPv4 identification 0 would mean "do not fragment" to our header writer.
        let ident = u16::try_from(self.ident % 65_535).unwrap_or(0) + 1;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(ip + payload + self.shape.mtu, 0);
        let (whole, piece) = scratch.split_at_mut(ip + payload);
        write_packet(whole, head, ident, parts);
        if let Some(offset) = checksum {
            // Nobody completes a checksum over fragments for us.
            let software = Shape { tx_checksum: false, ..self.shape };
            software.leave_checksum(whole, ip, offset, head);
        }
        let (shape, link) = (self.shape, self.shape.link.len());
        let tx = &mut self.queues[queue].tx;
        let mut outcome = Outcome::Queued;
        let mut begun = false;
        let wide_ident = self.ident;
        let cut = fragment::for_each_fragment(whole, shape.mtu, wide_ident, piece, |fragment| {
            // Nothing has left before the first one; of what has begun to leave, the rest is lost.
            if outcome != Outcome::Queued {
                return;
            }
            let Some(mut slot) = tx.slot(link + fragment.len()) else {
                outcome = if begun { Outcome::Dropped } else { Outcome::Full };
                return;
            };
            begun = true;
            let frame = &mut slot.bytes_mut()[..link + fragment.len()];
            shape.write_link_header(frame, peer, head.source);
            frame[link..].copy_from_slice(fragment);
            slot.commit(link + fragment.len(), TxOffload::default());
        });
        if cut.is_err() {
            outcome = Outcome::Dropped;
        }
        stats.tx_no_room.add(u64::from(outcome == Outcome::Dropped));
        stats.tx_fragmented.add(u64::from(outcome == Outcome::Queued));
        self.scratch = scratch;
        outcome
    }

    /// Sends a whole frame that is not IP (ARP), or that carries its own headers (NDP).
    pub(crate) fn send_frame(&mut self, queue: usize, frame: &[u8], stats: &StackCounters) {
        let queue = self.live_queue(queue);
        let Some(mut slot) = self.queues[queue].tx.slot(frame.len()) else {
            stats.tx_no_room.add(1);
            return;
        };
        slot.bytes_mut()[..frame.len()].copy_from_slice(frame);
        slot.commit(frame.len(), TxOffload::default());
    }

    /// The link address of the neighbour `hop`, asking for it where it is not known.
    pub(crate) fn resolve(
        &mut self,
        now: Instant,
        hop: IpAddr,
        stats: &StackCounters,
    ) -> Result<MacAddr, Unresolved> {
        if self.shape.link == LinkHeader::None {
            return Ok(MacAddr::default());
        }
        match self.neighbors.lookup(now, hop) {
            Lookup::Found(peer) => Ok(peer),
            Lookup::Ask => {
                self.ask(hop, stats);
                Err(Unresolved { failed: false })
            }
            Lookup::Wait => Err(Unresolved { failed: false }),
            Lookup::Failed => Err(Unresolved { failed: true }),
        }
    }

    /// Sends an ARP request or a neighbour solicitation.
    pub(crate) fn ask(&mut self, hop: IpAddr, stats: &StackCounters) {
        let Some(own) = self.source_for(hop) else { return };
        let mut frame = [0; MAX_NEIGHBOR_FRAME];
        if let Some(len) = resolution::request(&mut frame, self.shape.mac, own, hop) {
            self.send_frame(0, &frame[..len], stats);
        }
    }

    /// Whether a packet to `destination` is for us, or could be in transparent mode: never to a
    /// group, never to nobody.
    pub(crate) fn is_unicast(destination: IpAddr) -> bool {
        match destination {
            IpAddr::V4(a) => !a.is_multicast() && !a.is_broadcast() && !a.is_unspecified(),
            IpAddr::V6(a) => !a.is_multicast() && a != Ipv6Addr::UNSPECIFIED,
        }
    }
}

/// A packet socket drops what does not fit into its buffer, of which the kernel's own bookkeeping
/// takes up to half. A full unix socket makes its peer wait instead, and a TUN or TAP has a queue of
/// packets, not bytes.
fn max_window(properties: &LinkProperties) -> usize {
    match properties.kind {
        LinkKind::Packet | LinkKind::PacketCooked if properties.rx_queue_bytes > 0 => {
            properties.rx_queue_bytes / 2
        }
        _ => usize::MAX,
    }
}

fn write_packet(out: &mut [u8], head: Head, ident: u16, parts: &[&[u8]]) {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    let mut at = packet::write_header(
        out,
        head.source,
        head.destination,
        head.protocol,
        payload,
        ident,
        HOP_LIMIT,
    );
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

impl Shape {
    fn write_link_header(&self, frame: &mut [u8], peer: MacAddr, source: IpAddr) {
        if self.link == LinkHeader::Ethernet {
            let protocol = if source.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
            frame[..self.link.len()].copy_from_slice(&ethernet_header(peer, self.mac, protocol));
        }
    }

    /// Seeds the checksum field with the pseudo-header's sum and leaves the rest to the link, or
    /// completes it here.
    fn leave_checksum(&self, frame: &mut [u8], start: usize, offset: u16, head: Head) -> TxOffload {
        let len = frame.len() - start;
        let sum = packet::pseudo_header_sum(head.source, head.destination, head.protocol, len);
        let at = start + usize::from(offset);
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        let field = ChecksumField { start: u16::try_from(start).unwrap_or(0), offset };
        if self.tx_checksum {
            return TxOffload { checksum: Some(field), gso: None };
        }
        // The field lies within the frame: it was written just now.
        let _ = checksum::complete(frame, field);
        TxOffload::default()
    }
}
