//! What a received frame is, and who gets it: neighbours' questions, fragments, ICMP, UDP, TCP.
//!
//! A frame is read once and in place. Nothing in it is believed before it is checked: addresses,
//! lengths, and the transport checksum unless the link says that it was verified or never left
//! this machine.

mod tcp;

use std::net::SocketAddr;
use std::time::Instant;

use fdlink::offload::checksum::{self, Verdict};
use fdlink::offload::vnet::RxChecksum;
use fdlink::{EtherType, Frame, LinkHeader, MacAddr};

use crate::core::Core;
use crate::datagrams::DatagramQueue;
use crate::flows::{DatagramFlow, FlowKey, FlowKind, Path};
use crate::icmp;
use crate::nic::Nic;
use crate::packet::{self, IpView};
use crate::reassembly;
use crate::resolution::{self, Ndp};
use crate::timers::FlowId;

/// Offset of the sequence number in an echo message (RFC 792; RFC 4443, section 4.1).
pub(crate) const ECHO_SEQUENCE_AT: usize = 6;

/// The longest ICMP error we send: IPv6's minimum MTU (RFC 4443, section 2.4).
pub(crate) const MAX_ERROR_LEN: usize = 1_280;
/// Room for a frame that asks or tells about neighbours: Ethernet, IPv6, an advertisement with one
/// option (RFC 4861, section 4.4).
pub(crate) const MAX_NEIGHBOR_FRAME: usize = 14 + 40 + 32;

/// A VLAN's number in a tag's control information.
const VLAN_NUMBER: u16 = 0x0fff;
/// The longest request that waits for an answer of transparent mode's owner: headers with all their
/// options. A SYN that carries data beyond this is dropped.
const MAX_HELD_SYN: usize = 1_280;

/// Where a packet came from.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) nic: usize,
    pub(crate) queue: usize,
    /// The sender's link address; none on links without.
    pub(crate) peer: MacAddr,
    /// Whether the frame was for a group or for all: nobody answers those one by one (RFC 1122,
    /// sections 3.2.2 and 4.2.3.10).
    pub(crate) to_group: bool,
}

/// Whether a packet came as it is.
#[derive(Clone, Copy)]
enum Origin {
    Link,
    Reassembled,
}

impl Core {
    /// A frame has come.
    pub(crate) fn frame_arrived(
        &mut self,
        now: Instant,
        nic: usize,
        queue: usize,
        frame: Frame<'_>,
    ) {
        let shape = self.nics[nic].shape;
        let (protocol, meta) = (frame.protocol(), *frame.meta());
        let peer = frame.source().unwrap_or_default();
        let to_group = frame.destination().is_some_and(MacAddr::is_multicast);
        let for_another = frame.destination().is_some_and(|to| to != shape.mac) && !to_group;
        // A tag with a number: another network on the same wire (IEEE 802.1Q; 0 is a priority only).
        if for_another || meta.vlan.is_some_and(|tag| tag.tci & VLAN_NUMBER != 0) {
            return self.stats.rx_foreign.add(1);
        }
        if peer.is_multicast() {
            // No station has such an address, and an answer would go to all of them.
            return self.stats.rx_malformed.add(1);
        }
        let arrival = Arrival { nic, queue, peer, to_group };
        let verified = shape.trusts_unverified || meta.checksum != RxChecksum::Unverified;
        let bytes = frame.into_bytes();
        match protocol {
            Some(EtherType::IPV4 | EtherType::IPV6) => {
                let at = meta.link_header.len();
                self.packet_arrived(now, arrival, &mut bytes[at..], verified, Origin::Link);
            }
            Some(EtherType::ARP) => self.arp_arrived(now, arrival, bytes),
            Some(_) => self.stats.rx_unknown_protocol.add(1),
            None => self.stats.rx_malformed.add(1),
        }
    }

    fn packet_arrived(
        &mut self,
        now: Instant,
        arrival: Arrival,
        bytes: &mut [u8],
        verified: bool,
        origin: Origin,
    ) {
        let Ok(view) = packet::parse(bytes) else { return self.stats.rx_malformed.add(1) };
        let ours = self.nics[arrival.nic].owns(view.destination);
        let solicitation = view.protocol == packet::ICMPV6;
        if !ours && !solicitation && !self.takes_in(arrival.nic, bytes, &view) {
            return self.stats.rx_not_ours.add(1);
        }
        // Nobody sends from a group's address, nor anybody else from ours.
        let impossible = !Nic::is_unicast(view.source) && !solicitation;
        if impossible || self.nics[arrival.nic].owns(view.source) {
            return self.stats.rx_malformed.add(1);
        }
        match (view.fragment, origin) {
            (None, _) => {}
            (Some(_), Origin::Link) => return self.fragment_arrived(now, arrival, bytes, &view),
            // Fragments of fragments are nobody's honest doing, and could nest without end.
            (Some(_), Origin::Reassembled) => return self.stats.rx_malformed.add(1),
        }
        self.stats.rx_packets.add(1);
        if !verified {
            match checksum::verify_transport(&bytes[..view.end]) {
                Verdict::Wrong => return self.stats.rx_bad_checksum.add(1),
                Verdict::Correct => self.stats.rx_verified.add(1),
                _ => {}
            }
        }
        match view.protocol {
            packet::TCP => self.tcp_arrived(now, arrival, bytes, &view),
            packet::UDP => self.udp_arrived(now, arrival, &bytes[..view.end], &view),
            packet::ICMPV4 | packet::ICMPV6 => {
                self.icmp_arrived(now, arrival, &bytes[..view.end], &view, ours);
            }
            _ => self.stats.rx_unknown_protocol.add(1),
        }
    }

    /// Whether a packet to a stranger is taken in: every one in transparent mode, and later what
    /// belongs to a flow that was accepted in it.
    fn takes_in(&mut self, nic: usize, bytes: &[u8], view: &IpView) -> bool {
        if !Nic::is_unicast(view.destination) {
            return false;
        }
        self.transparent.is_some() || self.knows(nic, bytes, view)
    }

    /// Whether a packet belongs to a flow in the table.
    fn knows(&mut self, nic: usize, bytes: &[u8], view: &IpView) -> bool {
        let ports = match view.protocol {
            packet::TCP => {
                packet::parse_tcp(bytes, view).map(|t| (t.destination_port, t.source_port))
            }
            packet::UDP => {
                packet::parse_udp(bytes, view).map(|u| (u.destination_port, u.source_port))
            }
            _ => icmp::parse_echo(bytes, view).map(|echo| (0, echo.ident)),
        };
        let Some((local, remote)) = ports else { return false };
        let local = SocketAddr::new(view.destination, local);
        let remote = SocketAddr::new(view.source, remote);
        self.flows.find(&FlowKey::new(nic, view.protocol, local, remote)).is_some()
    }

    fn fragment_arrived(
        &mut self,
        now: Instant,
        arrival: Arrival,
        bytes: &mut [u8],
        view: &IpView,
    ) {
        self.stats.rx_fragments.add(1);
        match self.reassembly.push(now, &bytes[..view.end], view) {
            reassembly::Outcome::Waiting => {}
            reassembly::Outcome::Dropped(_) => self.stats.rx_fragments_dropped.add(1),
            reassembly::Outcome::Complete(mut whole) => {
                self.packet_arrived(now, arrival, &mut whole, false, Origin::Reassembled);
            }
        }
    }

    // --- UDP ---

    fn udp_arrived(&mut self, now: Instant, arrival: Arrival, bytes: &[u8], view: &IpView) {
        let Some(udp) = packet::parse_udp(bytes, view) else {
            return self.stats.rx_malformed.add(1);
        };
        let local = SocketAddr::new(view.destination, udp.destination_port);
        let remote = SocketAddr::new(view.source, udp.source_port);
        let payload = &bytes[udp.payload.clone()];
        if let Some(number) = self.udp_binding_for(arrival.nic, local) {
            let binding = &mut self.udp[number];
            if !binding.queue.push(remote, payload) {
                return self.stats.datagram_queue_drops.add(1);
            }
            self.stats.udp_rx.add(1);
            if let Some(waker) = binding.waker.take() {
                waker.wake();
            }
            return;
        }
        // A stranger's address gets here only in transparent mode, or with a flow from there.
        if self.transparent.is_some() || !self.nics[arrival.nic].owns(local.ip()) {
            return self.datagram_flow_arrived(arrival, packet::UDP, local, remote, bytes, payload);
        }
        self.send_unreachable(now, arrival, icmp::Unreachable::Port, bytes, view);
    }

    /// A datagram, or an echo request, of transparent mode.
    fn datagram_flow_arrived(
        &mut self,
        arrival: Arrival,
        protocol: u8,
        local: SocketAddr,
        remote: SocketAddr,
        packet: &[u8],
        payload: &[u8],
    ) {
        let key = FlowKey::new(arrival.nic, protocol, local, remote);
        let known = self.flows.find(&key);
        let is_new = known.is_none();
        let id = match known {
            Some(id) => id,
            None => {
                let waiting = self.transparent.as_ref().map_or(0, |offers| offers.queue.len());
                if self.flows.datagram >= self.config.max_datagram_flows
                    || waiting >= self.config.max_offers
                {
                    return self.stats.flows_over_cap.add(1);
                }
                self.stats.datagram_flows.add(1);
                let flow = DatagramFlow {
                    queue: DatagramQueue::new(self.config.datagram_queue),
                    read_waker: None,
                    first: Some(packet[..packet.len().min(MAX_ERROR_LEN)].to_vec()),
                };
                let Arrival { nic, queue, peer, .. } = arrival;
                let path = Path { nic, queue, local, remote, peer: Some(peer) };
                self.flows.insert(key, path, FlowKind::Datagram(flow))
            }
        };
        let Some((flow, _)) = self.flows.datagram_mut(id) else { return };
        if flow.queue.push(remote, payload) {
            self.stats.udp_rx.add(u64::from(protocol == packet::UDP));
        } else {
            self.stats.datagram_queue_drops.add(1);
        }
        if let Some(waker) = flow.read_waker.take() {
            waker.wake();
        }
        if is_new {
            self.offer(id);
        }
    }

    fn offer(&mut self, id: FlowId) {
        if let Some(offers) = &mut self.transparent {
            offers.queue.push_back(id);
            if let Some(waker) = offers.waker.take() {
                waker.wake();
            }
        }
    }

    // --- ICMP ---

    fn icmp_arrived(
        &mut self,
        now: Instant,
        arrival: Arrival,
        bytes: &[u8],
        view: &IpView,
        ours: bool,
    ) {
        if let Some(echo) = icmp::parse_echo(bytes, view).filter(|echo| echo.request) {
            if ours {
                return self.answer_echo(arrival, bytes, view);
            }
            if Nic::is_unicast(view.source) && self.takes_in(arrival.nic, bytes, view) {
                let local = SocketAddr::new(view.destination, 0);
                let remote = SocketAddr::new(view.source, echo.ident);
                // What follows the identifier is the flow's payload: sequence number and data.
                let payload = &bytes[view.transport + ECHO_SEQUENCE_AT..view.end];
                return self.datagram_flow_arrived(
                    arrival,
                    view.protocol,
                    local,
                    remote,
                    bytes,
                    payload,
                );
            }
            return self.stats.rx_not_ours.add(1);
        }
        let on_ethernet = self.nics[arrival.nic].shape.link == LinkHeader::Ethernet;
        if view.protocol == packet::ICMPV6
            && on_ethernet
            && self.neighbor_message_arrived(now, arrival, bytes, view)
        {
            return;
        }
        if ours && let Some(error) = icmp::parse_error(bytes, view) {
            self.icmp_error_arrived(arrival, &error);
        }
    }

    fn answer_echo(&mut self, arrival: Arrival, request: &[u8], view: &IpView) {
        let Arrival { nic, queue, peer, .. } = arrival;
        self.scratch.resize(request.len().max(self.scratch.len()), 0);
        if let Some(len) = icmp::echo_reply(&mut self.scratch, request, view) {
            let sent = self.nics[nic].send_packet(queue, peer, &self.scratch[..len], &self.stats);
            self.stats.echo_replies.add(u64::from(sent));
        }
    }

    /// Sends an ICMP error about a packet, where one may be sent.
    pub(crate) fn send_unreachable(
        &mut self,
        now: Instant,
        arrival: Arrival,
        why: icmp::Unreachable,
        offending: &[u8],
        view: &IpView,
    ) {
        if arrival.to_group {
            return;
        }
        if !self.limiter.allow(now) {
            return self.stats.icmp_errors_limited.add(1);
        }
        let nic = &mut self.nics[arrival.nic];
        // An error about a packet to a stranger comes from the router that we are to the sender.
        let own = nic.owns(view.destination).then_some(view.destination);
        let Some(source) = own.or_else(|| nic.source_for(view.source)) else { return };
        let mut error = [0; MAX_ERROR_LEN];
        if let Some(len) = icmp::unreachable(&mut error, why, offending, source) {
            let sent = nic.send_packet(arrival.queue, arrival.peer, &error[..len], &self.stats);
            self.stats.icmp_errors.add(u64::from(sent));
        }
    }

    // --- neighbours ---

    fn arp_arrived(&mut self, now: Instant, arrival: Arrival, frame: &[u8]) {
        let Some(arp) = resolution::parse_arp(&frame[LinkHeader::Ethernet.len()..]) else {
            return self.stats.rx_malformed.add(1);
        };
        let nic = &mut self.nics[arrival.nic];
        let for_us = nic.owns(arp.target.into());
        if !for_us {
            // Said to somebody else, but said: a neighbour we know may have moved (RFC 826).
            if let Some((ip, mac)) = arp.claim() {
                self.neighbor_told(now, arrival.nic, ip, mac, true);
            }
            return;
        }
        if arp.request {
            let mut reply = [0; MAX_NEIGHBOR_FRAME];
            if let Some(len) = resolution::arp_reply(&mut reply, nic.shape.mac, &arp) {
                nic.send_frame(arrival.queue, &reply[..len], &self.stats);
            }
        }
        // A request tells of its sender as well as a reply does (RFC 826).
        if let Some((ip, mac)) = arp.claim() {
            self.neighbor_learned(now, arrival.nic, ip, mac);
        }
    }

    /// Whether the message was about neighbours, and so is dealt with.
    fn neighbor_message_arrived(
        &mut self,
        now: Instant,
        arrival: Arrival,
        bytes: &[u8],
        view: &IpView,
    ) -> bool {
        match resolution::parse_ndp(bytes, view) {
            Some(Ndp::Solicitation(asked)) => {
                let nic = &mut self.nics[arrival.nic];
                if nic.owns(asked.target.into()) {
                    let mut reply = [0; MAX_NEIGHBOR_FRAME];
                    let (own, peer) = (nic.shape.mac, arrival.peer);
                    let len = resolution::neighbor_advertisement(&mut reply, own, &asked, peer);
                    if let Some(len) = len {
                        nic.send_frame(arrival.queue, &reply[..len], &self.stats);
                    }
                    if let Some((ip, mac)) = asked.claim() {
                        self.neighbor_learned(now, arrival.nic, ip, mac);
                    }
                }
                true
            }
            Some(Ndp::Advertisement(told)) => {
                let Some((ip, mac)) = told.claim() else { return true };
                if told.solicited {
                    self.neighbor_learned(now, arrival.nic, ip, mac);
                } else {
                    self.neighbor_told(now, arrival.nic, ip, mac, told.overrides);
                }
                true
            }
            None => false,
        }
    }
}
