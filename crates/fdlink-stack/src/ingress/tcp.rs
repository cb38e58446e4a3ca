//! Segments: the connection they belong to, connection requests, and what belongs to nobody.

use std::net::SocketAddr;
use std::time::Instant;

use crate::core::Core;
use crate::flows::{FlowKey, FlowKind, Owner, Path, PendingTcp};
use crate::ingress::{Arrival, MAX_HELD_SYN};
use crate::nic::{Head, Outcome};
use crate::packet::{self, IpView};
use crate::tcp::{Connection, Phase, SEGMENT_HEADROOM, flags};
use crate::timers::FlowId;

impl Core {
    pub(super) fn tcp_arrived(
        &mut self,
        now: Instant,
        arrival: Arrival,
        bytes: &mut [u8],
        view: &IpView,
    ) {
        let Some(tcp) = packet::parse_tcp(bytes, view) else {
            return self.stats.rx_malformed.add(1);
        };
        if SEGMENT_HEADROOM + view.end - view.transport > usize::from(u16::MAX) {
            return self.stats.tcp_too_long.add(1);
        }
        let local = SocketAddr::new(view.destination, tcp.destination_port);
        let remote = SocketAddr::new(view.source, tcp.source_port);
        let key = FlowKey::new(arrival.nic, packet::TCP, local, remote);
        if arrival.to_group || tcp.flags & (flags::SYN | flags::FIN) == flags::SYN | flags::FIN {
            return self.stats.rx_malformed.add(1);
        }
        let is_syn = tcp.flags & (flags::SYN | flags::ACK | flags::RST) == flags::SYN;
        let is_reset = tcp.flags & flags::RST != 0;
        if let Some(id) = self.flows.find(&key)
            && !self.gives_way(id, is_syn)
        {
            let Some(flow) = self.flows.get_mut(id) else { return };
            flow.path.queue = arrival.queue;
            flow.path.peer = Some(arrival.peer);
            match &flow.kind {
                FlowKind::Tcp(_) => {
                    let packet = &mut bytes[view.transport - SEGMENT_HEADROOM..view.end];
                    self.segment_arrived(now, id, packet, is_reset);
                }
                // The peer gave up before its request was answered; a repeated SYN changes nothing.
                FlowKind::Pending(_) if is_reset => drop(self.flows.remove(id)),
                FlowKind::Pending(_) | FlowKind::Datagram(_) => {}
            }
            return;
        }
        let path = Path {
            nic: arrival.nic,
            queue: arrival.queue,
            local,
            remote,
            peer: Some(arrival.peer),
        };
        if is_syn {
            self.syn_arrived(now, key, path, bytes, view);
        } else if !is_reset && self.nics[path.nic].shape.spares_strays {
            self.stats.tcp_strays_spared.add(1);
        } else if !is_reset {
            self.stats.tcp_stray_resets.add(1);
            self.send_reset(&path, &tcp, view.end - view.transport);
        }
    }

    /// Whether an ended connection makes way for a new one between the same ports.
    fn gives_way(&mut self, id: FlowId, is_syn: bool) -> bool {
        if !is_syn {
            return false;
        }
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return false };
        let over = matches!(tcp.connection.phase(), Phase::Closed | Phase::TimeWait);
        let abandoned = tcp.owner == Owner::Abandoned;
        if over && abandoned {
            self.discard(id);
        } else if over {
            self.flows.detach(id);
        }
        over
    }

    fn syn_arrived(
        &mut self,
        now: Instant,
        key: FlowKey,
        path: Path,
        bytes: &mut [u8],
        view: &IpView,
    ) {
        if let Some(number) = self.listener_for(path.nic, path.local) {
            if !self.room_for_handshake(number) {
                return self.stats.tcp_syn_dropped.add(1);
            }
            self.listeners[number].backlog += 1;
            // The connection replaces this placeholder at once.
            let id =
                self.flows.insert(key, path, FlowKind::Pending(PendingTcp { syn: Vec::new() }));
            self.note_handshake(id, number);
            let packet = &mut bytes[view.transport - SEGMENT_HEADROOM..view.end];
            if !self.open_passive(now, id, Owner::Listener(number), packet) {
                self.listeners[number].backlog -= 1;
            }
            return;
        }
        let Some(offers) = &mut self.transparent else {
            self.stats.tcp_refused.add(1);
            return self.refuse_syn(&path, bytes, view);
        };
        let full = self.flows.tcp >= self.config.max_tcp_flows
            || self.flows.half_open >= self.config.max_half_open
            || offers.queue.len() >= self.config.max_offers;
        if full || view.end > MAX_HELD_SYN {
            return self.stats.tcp_syn_dropped.add(1);
        }
        let pending = PendingTcp { syn: bytes[..view.end].to_vec() };
        let id = self.flows.insert(key, path, FlowKind::Pending(pending));
        self.offer(id);
    }

    /// Answers a SYN with an RST.
    pub(crate) fn refuse_syn(&mut self, path: &Path, syn: &[u8], view: &IpView) {
        if let Some(tcp) = packet::parse_tcp(syn, view) {
            self.send_reset(path, &tcp, view.end - view.transport);
        }
    }

    /// An RST to a segment that belongs to no connection (RFC 9293, section 3.10.7.1).
    fn send_reset(&mut self, path: &Path, segment: &packet::Tcp, len: usize) {
        let Some(peer) = path.peer else { return };
        let mut header = [0; 20];
        header[..2].copy_from_slice(&segment.destination_port.to_be_bytes());
        header[2..4].copy_from_slice(&segment.source_port.to_be_bytes());
        header[12] = 5 << 4;
        if segment.flags & flags::ACK != 0 {
            header[4..8].copy_from_slice(&segment.ack.to_be_bytes());
            header[13] = flags::RST;
        } else {
            let controls = (segment.flags & flags::SYN != 0, segment.flags & flags::FIN != 0);
            let data = len.saturating_sub(segment.header_len);
            let taken = data + usize::from(controls.0) + usize::from(controls.1);
            let ack = segment.seq.wrapping_add(u32::try_from(taken).unwrap_or(0));
            header[8..12].copy_from_slice(&ack.to_be_bytes());
            header[13] = flags::RST | flags::ACK;
        }
        let head =
            Head { source: path.local.ip(), destination: path.remote.ip(), protocol: packet::TCP };
        let nic = &mut self.nics[path.nic];
        let outcome = nic.send_ip(path.queue, peer, head, &[&header], Some(16), &self.stats);
        self.stats.tx_no_room.add(u64::from(outcome == Outcome::Full));
    }
}
