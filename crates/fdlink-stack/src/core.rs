//! The stack's state and the order of its work: what arrived (`ingress.rs`), then, after the
//! application has run, what is to be sent. Everything here is behind one lock, is told the time,
//! and never waits; `driver.rs` is where waiting happens.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use fdlink::queue::{Closed, Fill};
use slab::Slab;

use crate::config::StackConfig;
use crate::datagrams::DatagramQueue;
use crate::flows::{FlowKind, FlowTable, Owner, Path, TcpFailure, TcpFlow};
use crate::icmp::ErrorLimiter;
use crate::nic::{Nic, TcpOut};
use crate::reassembly::Reassembly;
use crate::stats::{StackCounters, StackLevels};
use crate::tcp::{Connection, ConnectionPool, ConnectionSpec, Phase, SmolTcp};
use crate::timers::{FlowId, Timers};

/// How long a connection that the application has left may take to close: Linux's
/// `tcp_fin_timeout`.
const ABANDONED_FOR: Duration = Duration::from_secs(60);
/// Connections that get the full buffer while the budget is less than half used; then this.
const SMALL_BUFFER: usize = 64 << 10;

/// ICMP errors that are sent at most; Linux's `icmp_msgs_per_sec` and `icmp_msgs_burst` allow
/// 1000 and 50.
const ERRORS_PER_SECOND: u32 = 1_000;
const ERROR_BURST: u32 = 50;
/// The finest step of a flow's timer.
const TICK: Duration = Duration::from_millis(1);
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
    touched: Vec<FlowId>,
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
    /// Those, and the ones in the handshake.
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
        match closed {
            None => self.nics[nic].queues[queue].rx = Some(rx),
            Some(why) => self.queue_closed(nic, why),
        }
        arrivals
    }

    /// Whether every interface has ended, and why the last one did.
    pub(crate) fn all_closed(&self) -> Option<Closed> {
        self.nics.iter().map(|nic| nic.closed.clone()).collect::<Option<Vec<_>>>()?.pop()
    }

    fn queue_closed(&mut self, nic: usize, why: Closed) {
        if self.nics[nic].queues.iter().any(|queue| queue.rx.is_some()) {
            return;
        }
        self.nics[nic].closed = Some(why);
        for id in self.flows.on_nic(nic) {
            self.fail(id, TcpFailure::LinkClosed);
            if let Some((datagram, _)) = self.flows.datagram_mut(id)
                && let Some(waker) = datagram.read_waker.take()
            {
                waker.wake();
            }
        }
    }

    /// Sends what is due. Returns whether a transmit queue is full.
    pub(crate) fn transmit(&mut self, now: Instant) -> bool {
        let mut blocked = false;
        // Taken out and put back, so that the list keeps its memory.
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            if self.emit(now, id) {
                blocked = true;
                self.touch(id);
            }
        }
        if self.touched.is_empty() {
            self.touched = touched;
        }
        for nic in &mut self.nics {
            for queue in &mut nic.queues {
                // A queue that failed for good says so on the way in as well.
                let _ = queue.tx.flush();
                blocked |= queue.tx.queued() > 0;
            }
            if !blocked {
                nic.room_wakers.drain(..).for_each(Waker::wake);
            }
        }
        blocked
    }

    /// Whether anything waits to be sent.
    pub(crate) fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Does what has come due.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((at, id)) = self.timers.pop_due(now) {
            let Some((tcp, _)) = self.flows.tcp_mut(id) else { continue };
            if !tcp.armed.came_up(at) {
                continue;
            }
            if tcp.abandon_at.is_some_and(|deadline| deadline <= now) {
                tcp.connection.abort();
            }
            // `emit` sends what is due, if anything is, and arms the timer again.
            self.touch(id);
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

    /// Puts a flow on the list of those that `emit` is due for.
    pub(crate) fn touch(&mut self, id: FlowId) {
        if let Some((tcp, _)) = self.flows.tcp_mut(id)
            && !std::mem::replace(&mut tcp.touched, true)
        {
            self.touched.push(id);
        }
    }

    /// As `touch`, from an application: the driver is told.
    pub(crate) fn touch_and_wake(&mut self, id: FlowId) {
        self.touch(id);
        self.driver.wake();
    }

    /// Lets a connection send what is due. Returns whether it stopped for want of room.
    fn emit(&mut self, now: Instant, id: FlowId) -> bool {
        let Some((tcp, path)) = self.flows.tcp_mut(id) else { return false };
        tcp.touched = false;
        let nic = &mut self.nics[path.nic];
        if nic.closed.is_some() {
            tcp.connection.abort();
            self.settle(now, id, Phase::Open, Cause::Ours);
            return false;
        }
        let before = tcp.connection.phase();
        let Some(peer) = path.peer else {
            // Comes back when the neighbour has answered, unless it was given up.
            if before == Phase::Closed {
                self.settle(now, id, before, Cause::Ours);
            }
            return false;
        };
        let mut out = TcpOut {
            tx: &mut *nic.queues[path.queue].tx,
            shape: &nic.shape,
            path,
            peer,
            stats: &self.stats,
            sent_up_to: &mut tcp.sent_up_to,
        };
        let blocked = tcp.connection.emit(now, &mut out);
        self.settle(now, id, before, Cause::Timer);
        blocked
    }

    /// Hands a verified segment to its connection. `packet` has TCP's headroom in front.
    pub(crate) fn segment_arrived(
        &mut self,
        now: Instant,
        id: FlowId,
        packet: &mut [u8],
        is_reset: bool,
    ) {
        let Some((tcp, path)) = self.flows.tcp_mut(id) else { return };
        let Some(peer) = path.peer else { return };
        let before = tcp.connection.phase();
        let nic = &mut self.nics[path.nic];
        let mut out = TcpOut {
            tx: &mut *nic.queues[path.queue].tx,
            shape: &nic.shape,
            path,
            peer,
            stats: &self.stats,
            sent_up_to: &mut tcp.sent_up_to,
        };
        tcp.connection.segment_arrived(now, packet, &mut out);
        let cause = if is_reset { Cause::Reset } else { Cause::Segment };
        self.settle(now, id, before, cause);
        self.touch(id);
    }

    /// Draws the conclusions after a connection did something: who is woken, what it became, and
    /// when it comes up next.
    fn settle(&mut self, now: Instant, id: FlowId, before: Phase, cause: Cause) {
        let Some((tcp, path)) = self.flows.tcp_mut(id) else { return };
        let after = tcp.connection.phase();
        if before != Phase::Closed && after == Phase::Closed && tcp.failure.is_none() {
            tcp.failure = match (cause, before) {
                (Cause::Reset, Phase::Opening) => Some(TcpFailure::Refused),
                (Cause::Reset, _) => Some(TcpFailure::Reset),
                (Cause::Timer, Phase::Open | Phase::Opening) => Some(TcpFailure::TimedOut),
                _ => None,
            };
            match tcp.failure {
                Some(TcpFailure::Refused | TcpFailure::Reset) => {
                    self.stats.tcp_reset_by_peer.add(1)
                }
                Some(TcpFailure::TimedOut) => self.stats.tcp_timed_out.add(1),
                _ => {}
            }
        }
        let established = before == Phase::Opening && after == Phase::Open;
        let owner = tcp.owner;
        if tcp.read_waker.is_some()
            && (tcp.connection.readable() > 0 || !tcp.connection.may_read())
            && let Some(waker) = tcp.read_waker.take()
        {
            waker.wake();
        }
        if tcp.write_waker.is_some()
            && (tcp.connection.writable() > 0 || !tcp.connection.may_write())
            && let Some(waker) = tcp.write_waker.take()
        {
            waker.wake();
        }
        if owner == Owner::Abandoned && tcp.connection.readable() > 0 && after != Phase::Closed {
            // Nobody will read it (RFC 9293, section 3.6.1): the peer must hear of that.
            tcp.connection.abort();
            tcp.failure = Some(TcpFailure::Aborted);
            return self.touch(id);
        }
        let over = match after {
            Phase::Closed => true,
            // Kept for a stray segment by the book; here the peer is one hop away, and an RST to a
            // repeated FIN does it no harm.
            Phase::TimeWait => owner == Owner::Abandoned,
            Phase::Opening | Phase::Open => false,
        };
        if over {
            let due = tcp.connection.deadline(now).is_some_and(|at| at <= now);
            if after == Phase::Closed && due && path.peer.is_some() && cause != Cause::Timer {
                // Its RST has not been sent.
                return self.touch(id);
            }
            return self.connection_over(id, owner);
        }
        let deadline = tcp.connection.deadline(now).into_iter().chain(tcp.abandon_at).min();
        let mut armed = tcp.armed;
        // What is due at once is on the list of touched flows; a timer must not make a busy loop.
        self.timers.arm(id, &mut armed, deadline.map(|at| at.max(now + TICK)));
        if let Some((tcp, _)) = self.flows.tcp_mut(id) {
            tcp.armed = armed;
        }
        if established {
            self.established(id, owner);
        }
    }

    fn established(&mut self, id: FlowId, owner: Owner) {
        self.flows.leave_half_open(id);
        if let Owner::Listener(number) = owner
            && let Some(listener) = self.listeners.get_mut(number)
        {
            listener.ready.push_back(id);
            if let Some(waker) = listener.waker.take() {
                waker.wake();
            }
        }
    }

    /// A connection has ended: whoever has it still learns it from the connection itself.
    fn connection_over(&mut self, id: FlowId, owner: Owner) {
        self.flows.leave_half_open(id);
        match owner {
            Owner::Abandoned => self.discard(id),
            Owner::Stream => self.flows.detach(id),
            Owner::Listener(number) => {
                let queued = self.listeners.get(number).is_some_and(|l| l.ready.contains(&id));
                if queued {
                    // It may have brought data: `accept` gets it, with its end.
                    self.flows.detach(id);
                } else {
                    if let Some(listener) = self.listeners.get_mut(number) {
                        listener.backlog -= 1;
                    }
                    self.discard(id);
                }
            }
        }
    }

    /// Removes a connection and keeps its memory for the next one.
    pub(crate) fn discard(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.remove(id)
            && let FlowKind::Tcp(tcp) = flow.kind
        {
            self.pool.recycle(tcp.connection);
        }
    }

    /// Ends a connection for a reason that came from outside.
    pub(crate) fn fail(&mut self, id: FlowId, why: TcpFailure) {
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return };
        tcp.failure.get_or_insert(why);
        tcp.connection.abort();
        tcp.wake_all();
        self.touch(id);
    }

    /// The application has let go of a connection.
    pub(crate) fn abandon(&mut self, now: Instant, id: FlowId) {
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return };
        tcp.owner = Owner::Abandoned;
        if tcp.connection.phase() == Phase::Closed {
            return self.discard(id);
        }
        if tcp.connection.readable() > 0 || tcp.connection.phase() == Phase::Opening {
            tcp.connection.abort();
            tcp.failure = Some(TcpFailure::Aborted);
        } else {
            tcp.connection.close();
            tcp.abandon_at = Some(now + ABANDONED_FOR);
        }
        self.touch_and_wake(id);
    }

    /// A connection for `path`, its buffers sized by what is left of the budget.
    pub(crate) fn connection(&mut self, path: &Path, active: bool) -> Option<SmolTcp> {
        let full = self.config.tcp_buffer;
        let ample = self.pool.used() + 2 * full <= self.config.buffer_budget / 2;
        let buffer = if ample { full } else { full.min(SMALL_BUFFER) };
        let spec: ConnectionSpec =
            self.nics[path.nic].connection_spec(path, buffer, self.config.congestion_control);
        let seed = random_seed();
        let made = match active {
            true => self.pool.active(&spec, seed),
            false => self.pool.passive(&spec, seed),
        };
        if made.is_some() && buffer < full {
            self.stats.tcp_small_buffers.add(1);
        }
        made
    }

    /// A SYN becomes a connection, which answers it.
    pub(crate) fn open_passive(
        &mut self,
        now: Instant,
        id: FlowId,
        owner: Owner,
        syn: &mut [u8],
    ) -> bool {
        let Some(path) = self.flows.get_mut(id).map(|flow| flow.path) else { return false };
        let Some(connection) = self.connection(&path, false) else {
            self.stats.tcp_syn_dropped.add(1);
            self.flows.remove(id);
            return false;
        };
        self.flows.establish(id, TcpFlow::new(connection, owner));
        self.segment_arrived(now, id, syn, false);
        self.stats.tcp_accepted.add(1);
        true
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

    /// The listener for connections to `local`, an exact address before any.
    pub(crate) fn listener_for(&self, local: SocketAddr) -> Option<usize> {
        let mut on_port = self.listeners.iter().filter(|(_, l)| l.port == local.port());
        let exact = on_port.clone().find(|(_, l)| l.address == Some(local.ip()));
        exact.or_else(|| on_port.find(|(_, l)| l.address.is_none())).map(|(number, _)| number)
    }
}

/// What made a connection move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// We ended it.
    Ours,
    /// An RST from the peer.
    Reset,
    /// Any other segment.
    Segment,
    /// Sending, or the passing of time.
    Timer,
}

/// Where a connection's sequence numbers start is nobody's to guess (RFC 6528).
fn random_seed() -> u64 {
    let mut bytes = [0; 8];
    // Fails only before the kernel's pool is ready, at boot; then the address is what differs.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}
