//! The table of flows: who talks to whom, and what the stack keeps for it.
//!
//! One table for TCP connections, for connection requests that wait for an answer of transparent
//! mode's owner, and for the UDP and echo flows of transparent mode. It is capped; its hash is
//! seeded, so that no peer can aim at one bucket.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;
use std::time::Instant;

use fdlink::MacAddr;
use slab::Slab;

use crate::datagrams::DatagramQueue;
use crate::tcp::SmolTcp;
use crate::timers::{Armed, FlowId};

/// What tells one flow from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    local: u128,
    remote: u128,
    ports: (u16, u16),
    /// IPv4 addresses are kept as their IPv4-mapped form; this keeps them apart from IPv6 packets
    /// that really carry such addresses.
    is_v6: bool,
    protocol: u8,
    nic: usize,
}

impl FlowKey {
    pub(crate) fn new(nic: usize, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            local: bits(local.ip()),
            remote: bits(remote.ip()),
            ports: (local.port(), remote.port()),
            is_v6: local.is_ipv6(),
            protocol,
            nic,
        }
    }

    pub(crate) fn protocol(&self) -> u8 {
        self.protocol
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Which way a flow's frames go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) nic: usize,
    pub(crate) queue: usize,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The next hop's link address; `None` until it is known.
    pub(crate) peer: Option<MacAddr>,
}

/// One entry of the table.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    pub(crate) path: Path,
    pub(crate) generation: u64,
    pub(crate) kind: FlowKind,
}

#[derive(Debug)]
pub(crate) enum FlowKind {
    /// A UDP or echo flow of transparent mode.
    Datagram(DatagramFlow),
    /// A connection request that its owner has not answered yet.
    Pending(PendingTcp),
    /// A TCP connection.
    Tcp(Box<TcpFlow>),
}

/// A connection request, held as it came.
#[derive(Debug)]
pub(crate) struct PendingTcp {
    /// The whole IP packet of the SYN.
    pub(crate) syn: Vec<u8>,
}

/// A UDP or echo flow of transparent mode.
#[derive(Debug)]
pub(crate) struct DatagramFlow {
    pub(crate) queue: DatagramQueue,
    pub(crate) read_waker: Option<Waker>,
    /// The start of the packet that began it, until it is accepted: an ICMP error quotes it.
    pub(crate) first: Option<Vec<u8>>,
}

/// A TCP connection.
#[derive(Debug)]
pub(crate) struct TcpFlow {
    pub(crate) connection: SmolTcp,
    pub(crate) owner: Owner,
    /// Why it ended, where the application must be told more than "end of stream".
    pub(crate) failure: Option<TcpFailure>,
    pub(crate) read_waker: Option<Waker>,
    pub(crate) write_waker: Option<Waker>,
    /// On the list of flows that `emit` is due for.
    pub(crate) touched: bool,
    pub(crate) armed: Armed,
    /// When an abandoned connection is ended for good.
    pub(crate) abandon_at: Option<Instant>,
    /// The end of what was sent so far, to recognise retransmissions.
    pub(crate) sent_up_to: Option<u32>,
    /// Whether the handshake is still counted as half open.
    pub(crate) half_open: bool,
    /// Whether the peer asked for it.
    pub(crate) passive: bool,
    /// Whether the peer's FIN has been taken in: what ends it later takes nothing from a reader.
    pub(crate) peer_closed: bool,
    /// Writing was shut down while the handshake was under way.
    pub(crate) close_wanted: bool,
    /// What an abandoned connection had to send when it was last looked at.
    pub(crate) unsent_before: usize,
}

/// Who waits for, or has, a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody any more: the close goes on without the application.
    Abandoned,
    /// A listener, by its number; from the SYN until `accept` takes it.
    Listener(usize),
    /// A `TcpStream`.
    Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpFailure {
    /// We ended it with an RST.
    Aborted,
    /// The interface is gone.
    LinkClosed,
    /// There is no way to its network, says an ICMP error about our SYN.
    NetworkUnreachable,
    /// No answer from the neighbour, or an ICMP error about our SYN.
    Unreachable,
    /// The peer answered our SYN with an RST, or "port unreachable".
    Refused,
    /// The peer reset it.
    Reset,
    /// Retransmission gave up.
    TimedOut,
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct FlowTable {
    by_key: HashMap<FlowKey, usize>,
    flows: Slab<Flow>,
    next_generation: u64,
    /// The flow of the last packet: bulk transfers hit it nearly always.
    last: Option<(FlowKey, usize)>,
    pub(crate) tcp: usize,
    pub(crate) half_open: usize,
    pub(crate) datagram: usize,
}

impl FlowTable {
    pub(crate) fn find(&mut self, key: &FlowKey) -> Option<FlowId> {
        let index = match self.last {
            Some((last, index)) if last == *key => index,
            _ => *self.by_key.get(key)?,
        };
        self.last = Some((*key, index));
        Some(FlowId { index, generation: self.flows[index].generation })
    }

    pub(crate) fn insert(&mut self, key: FlowKey, path: Path, kind: FlowKind) -> FlowId {
        match kind {
            FlowKind::Datagram(_) => self.datagram += 1,
            FlowKind::Pending(_) | FlowKind::Tcp(_) => {
                self.tcp += 1;
                self.half_open += 1;
            }
        }
        self.next_generation += 1;
        let generation = self.next_generation;
        let index = self.flows.insert(Flow { key, path, generation, kind });
        self.by_key.insert(key, index);
        // It may have found the flow that had these ports before.
        self.last = None;
        FlowId { index, generation }
    }

    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(id.index).filter(|flow| flow.generation == id.generation)
    }

    /// The TCP connection of that number, and its path.
    pub(crate) fn tcp_mut(&mut self, id: FlowId) -> Option<(&mut TcpFlow, &mut Path)> {
        let flow = self.get_mut(id)?;
        match &mut flow.kind {
            FlowKind::Tcp(tcp) => Some((tcp, &mut flow.path)),
            _ => None,
        }
    }

    /// The datagram flow of that number, and its path.
    pub(crate) fn datagram_mut(&mut self, id: FlowId) -> Option<(&mut DatagramFlow, &Path)> {
        let flow = self.get_mut(id)?;
        match &mut flow.kind {
            FlowKind::Datagram(datagram) => Some((datagram, &flow.path)),
            _ => None,
        }
    }

    /// A pending request becomes a connection under the same number.
    pub(crate) fn establish(&mut self, id: FlowId, tcp: TcpFlow) {
        if let Some(flow) = self.get_mut(id) {
            flow.kind = FlowKind::Tcp(Box::new(tcp));
        }
    }

    /// The handshake of that connection is over. Whether it was not before.
    pub(crate) fn leave_half_open(&mut self, id: FlowId) -> bool {
        let Some((tcp, _)) = self.tcp_mut(id) else { return false };
        let was_open = std::mem::take(&mut tcp.half_open);
        self.half_open -= usize::from(was_open);
        was_open
    }

    /// Packets no longer find this flow; whoever has its number still does.
    pub(crate) fn detach(&mut self, id: FlowId) {
        let Some(key) = self.get_mut(id).map(|flow| flow.key) else { return };
        if self.by_key.get(&key) == Some(&id.index) {
            self.by_key.remove(&key);
        }
        self.last = None;
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<Flow> {
        self.get_mut(id)?;
        self.detach(id);
        let flow = self.flows.remove(id.index);
        match &flow.kind {
            FlowKind::Datagram(_) => self.datagram -= 1,
            FlowKind::Pending(_) => {
                self.tcp -= 1;
                self.half_open -= 1;
            }
            FlowKind::Tcp(tcp) => {
                self.tcp -= 1;
                self.half_open -= usize::from(tcp.half_open);
            }
        }
        Some(flow)
    }

    /// The numbers of all flows on an interface.
    pub(crate) fn on_nic(&self, nic: usize) -> Vec<FlowId> {
        let flows = self.flows.iter().filter(|(_, flow)| flow.path.nic == nic);
        flows.map(|(index, flow)| FlowId { index, generation: flow.generation }).collect()
    }
}

impl TcpFlow {
    pub(crate) fn new(connection: SmolTcp, owner: Owner) -> Self {
        Self {
            connection,
            owner,
            failure: None,
            read_waker: None,
            write_waker: None,
            touched: false,
            armed: Armed::default(),
            abandon_at: None,
            sent_up_to: None,
            half_open: true,
            passive: false,
            peer_closed: false,
            close_wanted: false,
            unsent_before: 0,
        }
    }

    /// Wakes whoever waits for this connection, whatever for.
    pub(crate) fn wake_all(&mut self) {
        for waker in [self.read_waker.take(), self.write_waker.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}
