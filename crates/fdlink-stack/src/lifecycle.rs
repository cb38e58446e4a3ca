//! A TCP connection's life in the stack: made, moved by segments, by the application and by time,
//! settled after each of those, abandoned, over.
//!
//! A connection is over when TCP has closed it *and* its last words (an RST, the acknowledgement
//! of the peer's FIN) have left, or can no longer leave. Then whoever owns it decides what remains:
//! a stream or a listener's queue keeps it to learn how it ended, nobody keeps nothing.

use std::time::{Duration, Instant};

use crate::core::Core;
use crate::flows::{FlowKind, Owner, Path, TcpFailure, TcpFlow};
use crate::nic::TcpOut;
use crate::tcp::{Connection, ConnectionSpec, Phase, SmolTcp};
use crate::timers::FlowId;

/// How long a connection that the application has left may stay without progress: Linux's
/// `tcp_fin_timeout`.
const ABANDONED_FOR: Duration = Duration::from_secs(60);
/// Connections that get the full buffer while the budget is less than half used; then this.
const SMALL_BUFFER: usize = 64 << 10;
/// The finest step of a flow's timer.
const TICK: Duration = Duration::from_millis(1);
/// How soon a neighbour that is being asked for is looked up again: its entry may have given way
/// to others in a full cache, and then nobody would tell.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(1);

/// What made a connection move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// It was to send and found no room: what it has to say is still due.
    Blocked,
    /// We ended it.
    Ours,
    /// An RST from the peer.
    Reset,
    /// Any other segment.
    Segment,
    /// Sending, or the passing of time.
    Timer,
}

impl Core {
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
    pub(crate) fn emit(&mut self, now: Instant, id: FlowId) -> bool {
        let Some((tcp, path)) = self.flows.tcp_mut(id) else { return false };
        tcp.touched = false;
        let nic = &mut self.nics[path.nic];
        if nic.closed.is_some() {
            // It was failed and settled when the interface ended.
            return false;
        }
        let before = tcp.connection.phase();
        let Some(peer) = path.peer else {
            if before == Phase::Closed {
                self.settle(now, id, before, Cause::Ours);
            } else {
                self.find_neighbor(now, id);
            }
            return false;
        };
        path.queue = nic.live_queue(path.queue);
        let queue = &mut nic.queues[path.queue];
        let mut out = TcpOut {
            tx: &mut *queue.tx,
            shape: &nic.shape,
            path,
            peer,
            stats: &self.stats,
            sent_up_to: &mut tcp.sent_up_to,
        };
        let blocked = tcp.connection.emit(now, &mut out);
        queue.full |= blocked;
        self.settle(now, id, before, if blocked { Cause::Blocked } else { Cause::Timer });
        blocked
    }

    /// Looks up the neighbour of a connection that has not said anything yet.
    fn find_neighbor(&mut self, now: Instant, id: FlowId) {
        let Some((_, path)) = self.flows.tcp_mut(id) else { return };
        let (nic, remote) = (path.nic, path.remote.ip());
        match self.resolve(now, nic, remote) {
            Ok(mac) => {
                self.unresolved.retain(|waiting| *waiting != id);
                if let Some((_, path)) = self.flows.tcp_mut(id) {
                    path.peer = Some(mac);
                }
                self.touch(id);
            }
            Err(why) if why.failed => self.fail(id, TcpFailure::Unreachable),
            Err(_) => self.arm(id, Some(now + LOOK_UP_AGAIN)),
        }
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

    /// Draws the conclusions after a connection did something: why it ended, who is woken, what it
    /// became, and when it comes up next.
    fn settle(&mut self, now: Instant, id: FlowId, before: Phase, cause: Cause) {
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return };
        tcp.peer_closed |= tcp.connection.peer_closed();
        let after = tcp.connection.phase();
        if before != Phase::Closed && after == Phase::Closed && tcp.failure.is_none() {
            tcp.failure = failure_of(cause, before, tcp.passive);
            match tcp.failure {
                Some(TcpFailure::Refused | TcpFailure::Reset) => {
                    self.stats.tcp_reset_by_peer.add(1);
                }
                Some(TcpFailure::TimedOut) => self.stats.tcp_timed_out.add(1),
                _ => {}
            }
        }
        wake_ready(tcp);
        let owner = tcp.owner;
        if owner == Owner::Abandoned && tcp.connection.readable() > 0 && after != Phase::Closed {
            // Nobody will read it (RFC 9293, section 3.6.1): the peer must hear of that.
            tcp.connection.abort();
            tcp.failure = Some(TcpFailure::Aborted);
            return self.touch(id);
        }
        if tcp.half_open && matches!(after, Phase::Open | Phase::TimeWait) {
            self.established(id, owner);
        }
        let over = match after {
            Phase::Closed => true,
            // Kept for a stray segment by the book; here the peer is one hop away, and an RST to a
            // repeated FIN does it no harm.
            Phase::TimeWait => owner == Owner::Abandoned,
            Phase::Opening | Phase::Open => false,
        };
        if !over {
            self.arm_for(now, id);
        } else if cause != Cause::Timer && self.has_last_words(now, id) {
            self.touch(id);
        } else {
            self.connection_over(id, owner);
        }
    }

    /// Whether a connection still has something to say, and a way to say it.
    fn has_last_words(&mut self, now: Instant, id: FlowId) -> bool {
        let Some((tcp, path)) = self.flows.tcp_mut(id) else { return false };
        let due = tcp.connection.deadline(now).is_some_and(|at| at <= now);
        due && path.peer.is_some() && self.nics[path.nic].closed.is_none() && !self.stopped
    }

    /// Sees to it that a connection comes up when it has something to do.
    fn arm_for(&mut self, now: Instant, id: FlowId) {
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return };
        let deadline = tcp.connection.deadline(now).into_iter().chain(tcp.abandon_at).min();
        // What is due at once is on the list of touched flows; a timer must not make a busy loop.
        self.arm(id, deadline.map(|at| at.max(now + TICK)));
    }

    fn arm(&mut self, id: FlowId, deadline: Option<Instant>) {
        if let Some((tcp, _)) = self.flows.tcp_mut(id) {
            self.timers.arm(id, &mut tcp.armed, deadline);
        }
    }

    /// A connection's time has come.
    pub(crate) fn came_up(&mut self, now: Instant, at: Instant, id: FlowId) {
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return };
        if !tcp.armed.came_up(at) {
            return;
        }
        if tcp.abandon_at.is_some_and(|deadline| deadline <= now) {
            let unsent = tcp.connection.unsent();
            if unsent > 0 && unsent < tcp.unsent_before {
                // What the application wrote before it left is on its way still.
                tcp.unsent_before = unsent;
                tcp.abandon_at = Some(now + ABANDONED_FOR);
            } else {
                tcp.connection.abort();
            }
        }
        // `emit` sends what is due, if anything is, and arms the timer again.
        self.touch(id);
    }

    fn established(&mut self, id: FlowId, owner: Owner) {
        self.flows.leave_half_open(id);
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return };
        if tcp.passive {
            self.stats.tcp_accepted.add(1);
        }
        if std::mem::take(&mut tcp.close_wanted) {
            tcp.connection.close();
            self.touch(id);
        }
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
    pub(crate) fn connection_over(&mut self, id: FlowId, owner: Owner) {
        let in_handshake = self.flows.leave_half_open(id);
        match owner {
            Owner::Abandoned => self.discard(id),
            Owner::Stream => self.flows.detach(id),
            Owner::Listener(number) if in_handshake => {
                if let Some(listener) = self.listeners.get_mut(number) {
                    listener.backlog -= 1;
                }
                self.discard(id);
            }
            // It may have brought data: `accept` gets it, with its end.
            Owner::Listener(_) => self.flows.detach(id),
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
        match tcp.connection.phase() {
            Phase::Closed => {
                // An RST may be due still.
                if !self.has_last_words(now, id) {
                    return self.discard(id);
                }
            }
            Phase::Opening => {
                tcp.connection.abort();
                tcp.failure = Some(TcpFailure::Aborted);
            }
            Phase::Open | Phase::TimeWait if tcp.connection.readable() > 0 => {
                tcp.connection.abort();
                tcp.failure = Some(TcpFailure::Aborted);
            }
            Phase::Open | Phase::TimeWait => {
                tcp.connection.close();
                tcp.unsent_before = tcp.connection.unsent();
                tcp.abandon_at = Some(now + ABANDONED_FOR);
            }
        }
        self.touch_and_wake(id);
    }

    /// No more bytes will be written.
    pub(crate) fn close_write(&mut self, id: FlowId) {
        let Some((tcp, _)) = self.flows.tcp_mut(id) else { return };
        if tcp.connection.phase() == Phase::Opening {
            // smoltcp takes the acknowledgement of its SYN for one of its FIN then.
            tcp.close_wanted = true;
            return;
        }
        tcp.connection.close();
        self.touch_and_wake(id);
    }

    /// A connection for `path`, its buffers sized by what is left of the budget.
    pub(crate) fn connection(&mut self, path: &Path, active: bool) -> Option<SmolTcp> {
        let full = self.config.tcp_buffer.min(self.nics[path.nic].shape.max_window);
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
        self.flows.establish(id, TcpFlow { passive: true, ..TcpFlow::new(connection, owner) });
        self.segment_arrived(now, id, syn, false);
        true
    }

    /// Makes room for one more handshake of a listener, at the cost of its oldest where need be:
    /// in a flood of SYNs that nobody follows up, an honest one then lives long enough to be.
    pub(crate) fn room_for_handshake(&mut self, number: usize) -> bool {
        if self.has_room_for_handshake(number) {
            return true;
        }
        while let Some(id) = self.listeners[number].handshakes.pop_front() {
            if self.is_handshake_of(id, number) {
                self.stats.tcp_handshakes_evicted.add(1);
                self.connection_over(id, Owner::Listener(number));
                break;
            }
        }
        self.has_room_for_handshake(number)
    }

    fn has_room_for_handshake(&self, number: usize) -> bool {
        self.flows.tcp < self.config.max_tcp_flows
            && self.flows.half_open < self.config.max_half_open
            && self.listeners[number].backlog < self.config.backlog
    }

    /// Remembers a handshake, for [`room_for_handshake`](Self::room_for_handshake).
    pub(crate) fn note_handshake(&mut self, id: FlowId, number: usize) {
        let mut handshakes = std::mem::take(&mut self.listeners[number].handshakes);
        handshakes.push_back(id);
        // Those that are through are still on the list; now and then they are taken off.
        if handshakes.len() > 2 * self.listeners[number].backlog + 64 {
            handshakes.retain(|id| self.is_handshake_of(*id, number));
        }
        self.listeners[number].handshakes = handshakes;
    }

    pub(crate) fn is_handshake_of(&mut self, id: FlowId, number: usize) -> bool {
        let found = self.flows.tcp_mut(id);
        found.is_some_and(|(tcp, _)| tcp.half_open && tcp.owner == Owner::Listener(number))
    }
}

/// What the application is told about the end of a connection, where that is more than its end.
fn failure_of(cause: Cause, before: Phase, passive: bool) -> Option<TcpFailure> {
    match (cause, before) {
        (Cause::Reset, Phase::Opening) if !passive => Some(TcpFailure::Refused),
        (Cause::Reset, _) => Some(TcpFailure::Reset),
        (Cause::Timer | Cause::Blocked, Phase::Open | Phase::Opening) => Some(TcpFailure::TimedOut),
        _ => None,
    }
}

/// Wakes whoever can go on.
fn wake_ready(tcp: &mut TcpFlow) {
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
}

/// Where a connection's sequence numbers start is nobody's to guess (RFC 6528).
fn random_seed() -> u64 {
    let mut bytes = [0; 8];
    // Fails only before the kernel's pool is ready, at boot; then the address is what differs.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests;
