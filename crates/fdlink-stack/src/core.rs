//! The stack's state and the order of its work: what arrived (`ingress.rs`), then, after the
//! application has run, what is to be sent. Everything here is behind one lock, is told the time,
//! and never waits; `driver.rs` is where waiting happens.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use fdlink::queue::{Closed, Fill};
use slab::Slab;

use crate::config::StackConfig;
use crate::datagrams::DatagramQueue;
use crate::flows::{FlowKind, FlowTable, TcpFailure};
use crate::icmp::ErrorLimiter;
use crate::nic::{Nic, NicQueue};
use crate::reassembly::Reassembly;
use crate::stats::{StackCounters, StackLevels};
use crate::tcp::ConnectionPool;
use crate::timers::{FlowId, Timers};

/// ICMP errors that are sent at most; Linux's `icmp_msgs_per_sec` and `icmp_msgs_burst` allow
/// 1000 and 50.
const ERRORS_PER_SECOND: u32 = 1_000;
const ERROR_BURST: u32 = 50;
/// Entries of ended flows that the heap of timers may hold beside those of the others, before they
/// are swept out.
pub(crate) const STALE_TIMERS: usize = 4_096;
/// The first port of those we choose ourselves (RFC 6335, section 6: 49152 to 65535).
const FIRST_PORT: u16 = 49_152;

/// The state of a stack.
pub(crate) struct Core {
    pub(crate) config: StackConfig,
    pub(crate) stats: Arc<StackCounters>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) flows: FlowTable,
    pub(crate) listeners: Slab<Listener>,
    pub(crate) udp: Slab<UdpBinding>,
    pub(crate) udp_ports: HashMap<(Option<IpAddr>, u16), usize>,
    pub(crate) transparent: Option<Offers>,
    pub(crate) pool: ConnectionPool,
    pub(crate) reassembly: Reassembly,
    pub(crate) limiter: ErrorLimiter,
    /// Memory for a packet that is built before it is sent.
    pub(crate) scratch: Vec<u8>,
    pub(crate) timers: Timers,
    /// Flows that `emit` is due for.
    pub(crate) touched: Vec<FlowId>,
    /// Flows whose neighbour is being asked for.
    pub(crate) unresolved: Vec<FlowId>,
    pub(crate) next_port: u16,
    pub(crate) driver: DriverWaker,
    pub(crate) stopped: bool,
}

/// A listening port.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    /// Established connections that wait to be accepted.
    pub(crate) ready: VecDeque<FlowId>,
    /// Connections in the handshake, oldest first; those that are through may still be listed.
    pub(crate) handshakes: VecDeque<FlowId>,
    /// How many are ready or in the handshake.
    pub(crate) backlog: usize,
    pub(crate) waker: Option<Waker>,
}

/// A bound UDP port.
#[derive(Debug)]
pub(crate) struct UdpBinding {
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) queue: DatagramQueue,
    pub(crate) waker: Option<Waker>,
}

/// Flows that wait for transparent mode's owner to take them.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    pub(crate) queue: VecDeque<FlowId>,
    pub(crate) waker: Option<Waker>,
}

/// How the driver's task is woken; at most once between two polls.
#[derive(Debug, Default)]
pub(crate) struct DriverWaker {
    waker: Option<Waker>,
    scheduled: bool,
}

impl DriverWaker {
    /// The driver is running now and will look at everything before it waits again.
    pub(crate) fn running(&mut self, waker: &Waker) {
        self.scheduled = true;
        if !self.waker.as_ref().is_some_and(|old| old.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    /// The driver is about to wait.
    pub(crate) fn waiting(&mut self) {
        self.scheduled = false;
    }

    /// There is something for the driver to do.
    pub(crate) fn wake(&mut self) {
        if !std::mem::replace(&mut self.scheduled, true)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }
}

/// What a look at the descriptors brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrivals {
    /// Something came.
    pub(crate) any: bool,
    /// The descriptor had no more.
    pub(crate) drained: bool,
}

impl Core {
    pub(crate) fn new(config: StackConfig, now: Instant) -> Self {
        Self {
            pool: ConnectionPool::new(config.buffer_budget, now),
            stats: Arc::default(),
            nics: Vec::new(),
            flows: FlowTable::default(),
            listeners: Slab::new(),
            udp: Slab::new(),
            udp_ports: HashMap::new(),
            transparent: None,
            reassembly: Reassembly::default(),
            limiter: ErrorLimiter::new(ERRORS_PER_SECOND, ERROR_BURST),
            scratch: Vec::new(),
            timers: Timers::default(),
            touched: Vec::new(),
            unresolved: Vec::new(),
            next_port: FIRST_PORT,
            driver: DriverWaker::default(),
            stopped: false,
            config,
        }
    }

    pub(crate) fn levels(&self) -> StackLevels {
        StackLevels {
            tcp_flows: self.flows.tcp,
            tcp_half_open: self.flows.half_open,
            datagram_flows: self.flows.datagram,
            buffer_bytes: self.pool.used(),
        }
    }

    /// Takes in what one descriptor has, in at most `budget` kernel visits.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        nic: usize,
        queue: usize,
        budget: usize,
    ) -> Arrivals {
        let mut arrivals = Arrivals { any: false, drained: true };
        // Taken out, so that frames can be borrowed from it while the rest changes.
        let Some(mut rx) = self.nics[nic].queues[queue].rx.take() else { return arrivals };
        let mut closed = None;
        for visit in 1..=budget {
            match rx.fill() {
                Ok(Fill::Frames(_)) => {
                    for frame in rx.batch() {
                        self.frame_arrived(now, nic, queue, frame);
                    }
                    arrivals = Arrivals { any: true, drained: visit < budget };
                }
                Ok(Fill::Empty) => break,
                Ok(Fill::Closed(why)) => {
                    closed = Some(why);
                    break;
                }
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(0);
                    closed = Some(Closed::Failed { call: "receive", errno });
                    break;
                }
            }
        }
        rx.release();
        let pair = &mut self.nics[nic].queues[queue];
        // What the descriptor still had has been taken in before its end is believed.
        if closed.is_none() && arrivals.drained {
            closed = pair.failed.take();
        }
        match closed {
            None => pair.rx = Some(rx),
            Some(why) => self.queue_ended(nic, queue, why),
        }
        arrivals
    }

    /// Whether every interface has ended, and why the last one did.
    pub(crate) fn all_closed(&self) -> Option<Closed> {
        self.nics.iter().map(|nic| nic.closed.clone()).collect::<Option<Vec<_>>>()?.pop()
    }

    /// A descriptor has ended; with the last one of an interface, the interface.
    fn queue_ended(&mut self, nic: usize, queue: usize, why: Closed) {
        self.nics[nic].queues[queue].dead = true;
        if self.nics[nic].queues.iter().all(|queue| queue.dead) {
            self.close_nic(nic, why);
        }
    }

    fn close_nic(&mut self, nic: usize, why: Closed) {
        let interface = &mut self.nics[nic];
        interface.closed = Some(why);
        interface.room_wakers.drain(..).for_each(Waker::wake);
        interface.queues.iter_mut().for_each(NicQueue::let_go);
        for id in self.flows.on_nic(nic) {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            match &mut flow.kind {
                FlowKind::Pending(_) => drop(self.flows.remove(id)),
                FlowKind::Datagram(datagram) => {
                    datagram.read_waker.take().into_iter().for_each(Waker::wake);
                }
                FlowKind::Tcp(tcp) => {
                    let owner = tcp.owner;
                    self.fail(id, TcpFailure::LinkClosed);
                    self.connection_over(id, owner);
                }
            }
        }
    }

    /// Nothing will move any more: connections are reset, and whoever waits learns it.
    pub(crate) fn shut_down(&mut self, now: Instant) {
        if self.stopped {
            return;
        }
        for nic in 0..self.nics.len() {
            self.flows.on_nic(nic).into_iter().for_each(|id| self.fail(id, TcpFailure::Aborted));
        }
        // The RSTs leave as far as there is room.
        self.transmit(now);
        self.stopped = true;
        for nic in 0..self.nics.len() {
            if self.nics[nic].closed.is_none() {
                self.close_nic(nic, Closed::Stopped);
            }
        }
        let listeners = self.listeners.iter_mut().filter_map(|(_, l)| l.waker.take());
        listeners
            .chain(self.udp.iter_mut().filter_map(|(_, u)| u.waker.take()))
            .for_each(Waker::wake);
        self.driver.wake();
    }

    /// Sends what is due. Returns whether a transmit queue is full.
    pub(crate) fn transmit(&mut self, now: Instant) -> bool {
        for queue in self.nics.iter_mut().flat_map(|nic| &mut nic.queues) {
            queue.full = false;
        }
        // Taken out and put back, so that the list keeps its memory.
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            if self.emit(now, id) {
                self.touch(id);
            }
        }
        if self.touched.is_empty() {
            self.touched = touched;
        }
        let mut blocked = false;
        for nic in 0..self.nics.len() {
            blocked |= self.flush(nic);
        }
        blocked
    }

    /// Sends what waits in an interface's transmit queues. Returns whether one is full.
    fn flush(&mut self, nic: usize) -> bool {
        let interface = &mut self.nics[nic];
        if interface.closed.is_some() {
            return false;
        }
        let (mut full, mut ended) = (false, None);
        for (at, queue) in interface.queues.iter_mut().enumerate().filter(|(_, queue)| !queue.dead)
        {
            if let Err(error) = queue.tx.flush() {
                let why = end_of(&error);
                match queue.rx {
                    // `receive` takes in the rest first.
                    Some(_) => queue.failed = Some(why),
                    None => ended = Some((at, why)),
                }
                continue;
            }
            queue.full |= queue.tx.queued() > 0;
            full |= queue.full;
        }
        if !full {
            interface.room_wakers.drain(..).for_each(Waker::wake);
        }
        if let Some((queue, why)) = ended {
            self.queue_ended(nic, queue, why);
        }
        full
    }

    /// Whether anything waits to be sent.
    pub(crate) fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Does what has come due.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((at, id)) = self.timers.pop_due(now) {
            self.came_up(now, at, id);
        }
        if self.timers.len() > STALE_TIMERS + 4 * self.flows.tcp {
            let Self { timers, flows, .. } = self;
            timers.sweep(|at, id| flows.tcp_mut(id).is_some_and(|(tcp, _)| tcp.armed.is_for(at)));
        }
        self.expire_neighbors(now);
        self.expire_fragments(now);
    }

    /// When `expire` has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let neighbors = self.nics.iter().filter_map(|nic| nic.neighbors.next_deadline()).min();
        let others = [self.timers.next(), neighbors, self.reassembly.next_deadline()];
        others.into_iter().flatten().min()
    }

    /// A local port that nobody uses towards `remote`.
    pub(crate) fn free_port(&mut self, used: impl Fn(&mut Self, u16) -> bool) -> Option<u16> {
        let (first, last) = (FIRST_PORT, u16::MAX);
        for _ in first..=last {
            let port = self.next_port;
            self.next_port = if port == last { first } else { port + 1 };
            if !used(self, port) {
                return Some(port);
            }
        }
        None
    }

    /// The listener for connections to `local`, an exact address before any of ours.
    pub(crate) fn listener_for(&self, nic: usize, local: SocketAddr) -> Option<usize> {
        let mut on_port = self.listeners.iter().filter(|(_, l)| l.port == local.port());
        let exact = on_port.clone().find(|(_, l)| l.address == Some(local.ip()));
        let any = || on_port.find(|(_, l)| l.address.is_none() && self.nics[nic].owns(local.ip()));
        exact.or_else(any).map(|(number, _)| number)
    }

    /// The socket for datagrams to `local`, likewise.
    pub(crate) fn udp_binding_for(&self, nic: usize, local: SocketAddr) -> Option<usize> {
        let exact = self.udp_ports.get(&(Some(local.ip()), local.port()));
        let any = || {
            let any = self.udp_ports.get(&(None, local.port()));
            any.filter(|_| self.nics[nic].owns(local.ip()))
        };
        exact.or_else(any).copied()
    }
}

/// What a failed flush says of the descriptor.
fn end_of(error: &std::io::Error) -> Closed {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Closed::PeerClosed,
        Some(Errno::BADFD | Errno::NXIO | Errno::NODEV) => Closed::Removed,
        errno => Closed::Failed { call: "send", errno: errno.map_or(0, Errno::raw_os_error) },
    }
}
