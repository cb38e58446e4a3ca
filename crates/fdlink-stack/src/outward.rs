//! The way from the stack's core to its interfaces for everything that is not a TCP segment:
//! routes, neighbours that must be asked for first, datagrams, and what the network answers.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use fdlink::MacAddr;

use crate::core::Core;
use crate::flows::{FlowKey, Path, TcpFailure};
use crate::icmp::{self, ErrorKind, IcmpError, Unreachable};
use crate::ingress::{Arrival, MAX_ERROR_LEN};
use crate::neighbor::Due;
use crate::nic::{Head, Nic, Outcome, Unresolved};
use crate::packet;
use crate::tcp::{Connection, Phase};
use crate::timers::FlowId;

/// Offset of UDP's checksum in its header (RFC 768).
const UDP_CHECKSUM_OFFSET: u16 = 6;

impl Core {
    /// The interface through which `remote` is reached, and our address on it.
    pub(crate) fn way_to(&self, remote: IpAddr) -> Option<(usize, IpAddr)> {
        let usable = |nic: &Nic| nic.closed.is_none() && nic.next_hop(remote).is_some();
        let at = self.nics.iter().position(usable)?;
        Some((at, self.nics[at].source_for(remote)?))
    }

    /// The link address that packets to `remote` go to; asked for where it is not known.
    pub(crate) fn resolve(
        &mut self,
        now: Instant,
        nic: usize,
        remote: IpAddr,
    ) -> Result<MacAddr, Unresolved> {
        let nic = &mut self.nics[nic];
        let hop = nic.next_hop(remote).ok_or(Unresolved { failed: true })?;
        nic.resolve(now, hop, &self.stats)
    }

    /// Sends a UDP datagram; one whose neighbour is not known waits in the neighbour cache.
    pub(crate) fn send_datagram(
        &mut self,
        now: Instant,
        nic: usize,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) -> Outcome {
        let peer = self.resolve(now, nic, remote.ip()).ok();
        if peer.is_some() {
            let path = Path { nic, queue: 0, local, remote, peer };
            return self.send_datagram_on(&path, bytes);
        }
        self.driver.wake();
        let interface = &mut self.nics[nic];
        let hop = interface.next_hop(remote.ip()).unwrap_or_else(|| remote.ip());
        let packet = udp_packet(local, remote, bytes);
        let len = packet.len();
        if !interface.neighbors.hold(hop, packet, len) {
            self.stats.tx_unresolved.add(1);
            return Outcome::Dropped;
        }
        Outcome::Queued
    }

    /// Sends a UDP datagram on a path that is known.
    pub(crate) fn send_datagram_on(&mut self, path: &Path, bytes: &[u8]) -> Outcome {
        let Some(peer) = path.peer else { return Outcome::Dropped };
        let header = udp_header(path.local, path.remote, bytes.len());
        let (source, destination) = (path.local.ip(), path.remote.ip());
        let head = Head { source, destination, protocol: packet::UDP };
        let nic = &mut self.nics[path.nic];
        if nic.closed.is_some() {
            return Outcome::Dropped;
        }
        let parts: [&[u8]; 2] = [&header, bytes];
        let sum = Some(UDP_CHECKSUM_OFFSET);
        let outcome = nic.send_ip(path.queue, peer, head, &parts, sum, &self.stats);
        if outcome == Outcome::Queued {
            self.stats.udp_tx.add(1);
            self.driver.wake();
        }
        outcome
    }

    /// A neighbour has told us its link address: what waited for it goes.
    pub(crate) fn neighbor_learned(&mut self, now: Instant, nic: usize, ip: IpAddr, mac: MacAddr) {
        let waiting = self.nics[nic].neighbors.learn(now, ip, mac);
        self.neighbor_known(nic, ip, mac, waiting);
    }

    /// Somebody has told everyone, or somebody else, a link address.
    pub(crate) fn neighbor_told(
        &mut self,
        now: Instant,
        nic: usize,
        ip: IpAddr,
        mac: MacAddr,
        overrides: bool,
    ) {
        let waiting = self.nics[nic].neighbors.update(now, ip, mac, overrides);
        self.neighbor_known(nic, ip, mac, waiting);
    }

    fn neighbor_known(
        &mut self,
        nic: usize,
        ip: IpAddr,
        mac: MacAddr,
        waiting: VecDeque<Box<[u8]>>,
    ) {
        for packet in waiting {
            let sent = self.nics[nic].send_packet(0, mac, &packet, &self.stats);
            self.stats.udp_tx.add(u64::from(sent));
        }
        // They look the neighbour up when it is their turn.
        self.waiting_for(nic, ip).into_iter().for_each(|id| self.touch(id));
    }

    /// The connections that wait for a neighbour's link address.
    fn waiting_for(&mut self, nic: usize, hop: IpAddr) -> Vec<FlowId> {
        let Self { unresolved, flows, nics, .. } = self;
        unresolved.retain(|id| flows.tcp_mut(*id).is_some_and(|(_, path)| path.peer.is_none()));
        let mut waits = |id: &FlowId| {
            let path = flows.tcp_mut(*id).map(|(_, path)| *path);
            path.is_some_and(|p| p.nic == nic && nics[nic].next_hop(p.remote.ip()) == Some(hop))
        };
        unresolved.iter().copied().filter(|id| waits(id)).collect()
    }

    /// Asks neighbours again, and gives up on those that do not answer.
    pub(crate) fn expire_neighbors(&mut self, now: Instant) {
        for nic in 0..self.nics.len() {
            if self.nics[nic].neighbors.next_deadline().is_none_or(|at| at > now) {
                continue;
            }
            for due in self.nics[nic].neighbors.due(now) {
                match due {
                    Due::Ask(hop) => self.nics[nic].ask(hop, &self.stats),
                    Due::Failed(hop, waiting) => {
                        let lost = u64::try_from(waiting.len()).unwrap_or(0);
                        self.stats.tx_unresolved.add(lost);
                        self.neighbor_failed(nic, hop);
                    }
                }
            }
        }
    }

    fn neighbor_failed(&mut self, nic: usize, hop: IpAddr) {
        for id in self.waiting_for(nic, hop) {
            self.fail(id, TcpFailure::Unreachable);
        }
    }

    /// Drops fragments whose rest has not come, and tells their senders.
    pub(crate) fn expire_fragments(&mut self, now: Instant) {
        if self.reassembly.next_deadline().is_none_or(|at| at > now) {
            return;
        }
        let before = self.reassembly.counts().timed_out;
        for first in self.reassembly.expire(now) {
            self.send_time_exceeded(now, &first);
        }
        self.stats.rx_packets_incomplete.add(self.reassembly.counts().timed_out - before);
    }

    fn send_time_exceeded(&mut self, now: Instant, first: &[u8]) {
        let Ok(view) = packet::parse_quoted(first) else { return };
        let Some(nic) = self.nics.iter().position(|nic| nic.owns(view.destination)) else { return };
        let Ok(peer) = self.resolve(now, nic, view.source) else { return };
        if !self.limiter.allow(now) {
            return self.stats.icmp_errors_limited.add(1);
        }
        let mut error = [0; MAX_ERROR_LEN];
        let source = view.destination;
        if let Some(len) = icmp::reassembly_time_exceeded(&mut error, first, source) {
            let sent = self.nics[nic].send_packet(0, peer, &error[..len], &self.stats);
            self.stats.icmp_errors.add(u64::from(sent));
        }
    }

    /// An ICMP error about a packet of ours: a connection that is being opened fails with it. An
    /// open one does not (RFC 5927, section 5.2: it could be forged, and retransmission decides).
    pub(crate) fn icmp_error_arrived(&mut self, arrival: Arrival, error: &IcmpError) {
        let key = FlowKey::new(arrival.nic, error.protocol, error.source, error.destination);
        let Some(id) = self.flows.find(&key) else { return };
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return };
        let ErrorKind::Unreachable(why) = error.kind else { return };
        if tcp.connection.phase() == Phase::Opening {
            self.fail(
                id,
                match why {
                    Unreachable::Network => TcpFailure::NetworkUnreachable,
                    Unreachable::Host | Unreachable::Prohibited => TcpFailure::Unreachable,
                    Unreachable::Port => TcpFailure::Refused,
                },
            );
        }
    }
}

/// A UDP header without its checksum.
pub(crate) fn udp_header(local: SocketAddr, remote: SocketAddr, payload: usize) -> [u8; 8] {
    let mut header = [0; 8];
    header[..2].copy_from_slice(&local.port().to_be_bytes());
    header[2..4].copy_from_slice(&remote.port().to_be_bytes());
    let len = u16::try_from(header.len() + payload).unwrap_or(u16::MAX);
    header[4..6].copy_from_slice(&len.to_be_bytes());
    header
}

/// A whole IP packet, checksum and all, that can wait.
fn udp_packet(local: SocketAddr, remote: SocketAddr, bytes: &[u8]) -> Box<[u8]> {
    let mut header = udp_header(local, remote, bytes.len());
    let (source, destination) = (local.ip(), remote.ip());
    let payload = header.len() + bytes.len();
    let sum =
        packet::transport_checksum(source, destination, packet::UDP, &[&header, bytes].concat());
    header[6..].copy_from_slice(&sum.to_be_bytes());
    let mut whole = vec![0; packet::header_len(source) + payload];
    let ip = packet::write_header(&mut whole, source, destination, packet::UDP, payload, 0, 64);
    whole[ip..ip + 8].copy_from_slice(&header);
    whole[ip + 8..].copy_from_slice(bytes);
    whole.into_boxed_slice()
}
