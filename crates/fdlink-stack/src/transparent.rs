//! Transparent mode: every new flow, whatever address it is for, is offered to one owner, who
//! accepts or refuses it.
//!
//! A TCP flow is offered when its SYN comes, and nothing is answered before the owner has decided:
//! it can dial the real destination first. A UDP or echo flow is offered with its first datagram.
//! Listeners and bound sockets of the stack come first; echo requests to the stack's own addresses
//! are answered by the stack.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::core::{Core, Offers};
use crate::flows::{FlowKind, Owner, Path};
use crate::icmp::{self, Unreachable};
use crate::ingress::{Arrival, MAX_ERROR_LEN};
use crate::nic::Outcome;
use crate::outward::udp_header;
use crate::packet;
use crate::sockets::TcpStream;
use crate::stack::{Shared, Stack};
use crate::tcp::SEGMENT_HEADROOM;
use crate::timers::FlowId;

/// The owner's end of transparent mode; dropped, the mode is off and waiting flows are refused.
pub struct Transparent {
    shared: Arc<Shared>,
}

/// A new flow.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// Echo requests with one identifier.
    Echo(IncomingEcho),
    /// A TCP connection request.
    Tcp(IncomingTcp),
    /// UDP datagrams between two addresses and ports.
    Udp(IncomingUdp),
}

/// How a flow is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Host unreachable.
    HostUnreachable,
    /// Network unreachable (IPv6: no route).
    NetworkUnreachable,
    /// As by a firewall: communication administratively prohibited.
    Prohibited,
    /// As if nobody listened: an RST to a TCP flow, port unreachable to others.
    Refused,
}

impl Refusal {
    fn as_icmp(self) -> Unreachable {
        match self {
            Self::HostUnreachable => Unreachable::Host,
            Self::NetworkUnreachable => Unreachable::Network,
            Self::Prohibited => Unreachable::Prohibited,
            Self::Refused => Unreachable::Port,
        }
    }
}

impl Stack {
    /// Turns transparent mode on.
    ///
    /// # Errors
    ///
    /// `AddrInUse` while another owner has it.
    pub fn transparent(&self) -> io::Result<Transparent> {
        let mut core = self.shared.core();
        if core.transparent.is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        core.transparent = Some(Offers::default());
        Ok(Transparent { shared: Arc::clone(&self.shared) })
    }
}

impl Transparent {
    /// The next new flow.
    pub async fn next(&mut self) -> Incoming {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next).
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        let mut guard = self.shared.core();
        let core = &mut *guard;
        let Some(offers) = &mut core.transparent else { return Poll::Pending };
        while let Some(id) = offers.queue.pop_front() {
            // It may have ended since: the peer gave up.
            let Some(flow) = core.flows.get_mut(id) else { continue };
            let (path, protocol) = (flow.path, flow.key.protocol());
            let offered = Offered { shared: Arc::clone(&self.shared), id, path, open: true };
            return Poll::Ready(match protocol {
                packet::TCP => Incoming::Tcp(IncomingTcp(offered)),
                packet::UDP => Incoming::Udp(IncomingUdp(offered)),
                _ => Incoming::Echo(IncomingEcho(offered)),
            });
        }
        offers.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Transparent {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        let offers = core.transparent.take().unwrap_or_default();
        for id in offers.queue {
            core.refuse(id, Refusal::Refused);
        }
        core.driver.wake();
    }
}

impl std::fmt::Debug for Transparent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transparent").finish_non_exhaustive()
    }
}

/// A flow that has not been answered; dropped, it is refused.
struct Offered {
    shared: Arc<Shared>,
    id: FlowId,
    path: Path,
    open: bool,
}

impl Offered {
    fn refuse(&mut self, why: Refusal) {
        if std::mem::take(&mut self.open) {
            let mut core = self.shared.core();
            core.refuse(self.id, why);
            core.driver.wake();
        }
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.refuse(Refusal::Refused);
    }
}

impl std::fmt::Debug for Offered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.path.remote, self.path.local)
    }
}

/// A TCP connection request, unanswered. Dropped, it is refused with an RST.
#[derive(Debug)]
pub struct IncomingTcp(Offered);

impl IncomingTcp {
    /// Who asks.
    pub fn source(&self) -> SocketAddr {
        self.0.path.remote
    }

    /// Whom it asks for.
    pub fn destination(&self) -> SocketAddr {
        self.0.path.local
    }

    /// Answers with a SYN-ACK. The stream is there at once; bytes go when the handshake is over.
    ///
    /// # Errors
    ///
    /// `ConnectionAborted` where the peer has given up meanwhile, `OutOfMemory` where the buffer
    /// budget is used up (the request is dropped; the peer will repeat it).
    pub fn accept(mut self) -> io::Result<TcpStream> {
        self.0.open = false;
        let Offered { shared, id, path, .. } = &self.0;
        let mut core = shared.core();
        let Some(flow) = core.flows.get_mut(*id) else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        let FlowKind::Pending(pending) = &mut flow.kind else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        let mut syn = std::mem::take(&mut pending.syn);
        // It was walked when it came.
        let view = packet::parse(&syn).map_err(|_| io::ErrorKind::InvalidData)?;
        let segment = &mut syn[view.transport - SEGMENT_HEADROOM..view.end];
        if !core.open_passive(Instant::now(), *id, Owner::Stream, segment) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        core.driver.wake();
        drop(core);
        Ok(TcpStream::new(shared, *id, path))
    }

    /// Refuses it.
    pub fn refuse(mut self, why: Refusal) {
        self.0.refuse(why);
    }
}

/// A UDP flow, unanswered. Dropped, it is refused with "port unreachable".
#[derive(Debug)]
pub struct IncomingUdp(Offered);

impl IncomingUdp {
    /// Who sent the first datagram.
    pub fn source(&self) -> SocketAddr {
        self.0.path.remote
    }

    /// Whom it is for.
    pub fn destination(&self) -> SocketAddr {
        self.0.path.local
    }

    /// Takes the flow; its first datagram waits to be read.
    pub fn accept(self) -> UdpFlow {
        UdpFlow(DatagramEnd::new(self.0))
    }

    /// Refuses it. The next datagram offers it again.
    pub fn refuse(mut self, why: Refusal) {
        self.0.refuse(why);
    }
}

/// Echo requests with one identifier, unanswered. Dropped, they are refused.
#[derive(Debug)]
pub struct IncomingEcho(Offered);

impl IncomingEcho {
    /// Who asks; the port is the identifier.
    pub fn source(&self) -> SocketAddr {
        self.0.path.remote
    }

    /// Whom it asks.
    pub fn destination(&self) -> IpAddr {
        self.0.path.local.ip()
    }

    /// Takes the flow; its first request waits to be read.
    pub fn accept(self) -> EchoFlow {
        EchoFlow(DatagramEnd::new(self.0))
    }

    /// Refuses it.
    pub fn refuse(mut self, why: Refusal) {
        self.0.refuse(why);
    }
}

/// Our end of a datagram flow; dropped, the flow is forgotten.
struct DatagramEnd {
    shared: Arc<Shared>,
    id: FlowId,
    path: Path,
}

impl DatagramEnd {
    fn new(mut offered: Offered) -> Self {
        offered.open = false;
        let (shared, id, path) = (Arc::clone(&offered.shared), offered.id, offered.path);
        if let Some((flow, _)) = shared.core().flows.datagram_mut(id) {
            flow.first = None;
        }
        Self { shared, id, path }
    }

    fn poll_recv<R>(
        &self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Poll<io::Result<R>> {
        let mut core = self.shared.core();
        let link_closed = core.nics[self.path.nic].closed.is_some();
        let Some((flow, _)) = core.flows.datagram_mut(self.id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if let Some(result) = flow.queue.pop(|_, bytes| read(bytes)) {
            return Poll::Ready(Ok(result));
        }
        if link_closed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        flow.read_waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for DatagramEnd {
    fn drop(&mut self) {
        self.shared.core().flows.remove(self.id);
    }
}

/// The datagrams between one inner address and port and one outer.
pub struct UdpFlow(DatagramEnd);

impl UdpFlow {
    /// The next datagram from inside, cut to `buf` where it is longer.
    ///
    /// # Errors
    ///
    /// `ConnectionAborted` when the interface has ended.
    pub fn poll_recv(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, |bytes| {
            let len = bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&bytes[..len]);
            len
        })
    }

    /// As [`poll_recv`](Self::poll_recv).
    ///
    /// # Errors
    ///
    /// The same.
    pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_recv(cx, buf)).await
    }

    /// Sends a datagram inwards. False where the transmit queue had no room and it was dropped, as
    /// a network does; counted.
    pub fn send(&self, bytes: &[u8]) -> bool {
        let DatagramEnd { shared, path, .. } = &self.0;
        let mut core = shared.core();
        let outcome = core.send_datagram_on(path, bytes);
        core.count_if_full(outcome)
    }

    /// Tells the sender that nobody listens ("port unreachable" about what it sent last).
    pub fn refuse(self) {
        let mut core = self.0.shared.core();
        core.report(&self.0.path, |out, packet, source| {
            icmp::unreachable(out, Unreachable::Port, packet, source)
        });
    }

    /// Tells the sender that datagrams beyond `mtu` bytes, IP header included, cannot go further
    /// ("fragmentation needed", or "packet too big").
    pub fn too_big(&self, mtu: u32) {
        let mut core = self.0.shared.core();
        core.report(&self.0.path, |out, packet, source| icmp::too_big(out, mtu, packet, source));
    }
}

impl std::fmt::Debug for UdpFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UdpFlow({} -> {})", self.0.path.remote, self.0.path.local)
    }
}

/// The echo requests with one identifier.
pub struct EchoFlow(DatagramEnd);

impl EchoFlow {
    /// The next request: its sequence number, and the length of its data in `buf`.
    ///
    /// # Errors
    ///
    /// `ConnectionAborted` when the interface has ended.
    pub async fn recv(&self, buf: &mut [u8]) -> io::Result<(u16, usize)> {
        poll_fn(|cx| {
            self.0.poll_recv(cx, |bytes| {
                let (sequence, data) = bytes.split_at(2.min(bytes.len()));
                let len = data.len().min(buf.len());
                buf[..len].copy_from_slice(&data[..len]);
                let sequence = sequence.try_into().map_or(0, u16::from_be_bytes);
                (sequence, len)
            })
        })
        .await
    }

    /// Sends the reply to the request with that sequence number.
    pub fn reply(&self, sequence: u16, data: &[u8]) {
        let DatagramEnd { shared, path, .. } = &self.0;
        let mut core = shared.core();
        core.send_echo_reply(path, sequence, data);
        core.driver.wake();
    }
}

impl std::fmt::Debug for EchoFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EchoFlow({} -> {})", self.0.path.remote, self.0.path.local.ip())
    }
}

impl Core {
    /// Answers a flow that was not accepted, and forgets it.
    fn refuse(&mut self, id: FlowId, why: Refusal) {
        let Some(flow) = self.flows.remove(id) else { return };
        let path = flow.path;
        let (packet, is_tcp) = match flow.kind {
            FlowKind::Pending(pending) => (pending.syn, true),
            FlowKind::Datagram(datagram) => (datagram.first.unwrap_or_default(), false),
            FlowKind::Tcp(_) => return,
        };
        match is_tcp {
            true => self.stats.tcp_refused.add(1),
            false => self.stats.flows_refused.add(1),
        }
        let Ok(view) = packet::parse_quoted(&packet) else { return };
        if is_tcp && why == Refusal::Refused {
            return self.refuse_syn(&path, &packet, &view);
        }
        let Some(peer) = path.peer else { return };
        let arrival = Arrival { nic: path.nic, queue: path.queue, peer, to_group: false };
        self.send_unreachable(Instant::now(), arrival, why.as_icmp(), &packet, &view);
    }

    /// An ICMP error about a datagram as the peer of `path` would have sent it.
    fn report(
        &mut self,
        path: &Path,
        write: impl FnOnce(&mut [u8], &[u8], IpAddr) -> Option<usize>,
    ) {
        let Some(peer) = path.peer else { return };
        if !self.limiter.allow(Instant::now()) {
            return self.stats.icmp_errors_limited.add(1);
        }
        let (source, destination) = (path.remote.ip(), path.local.ip());
        let header = udp_header(path.remote, path.local, 0);
        let mut packet = [0; 48];
        let ip = packet::write_header(&mut packet, source, destination, packet::UDP, 8, 0, 64);
        packet[ip..ip + 8].copy_from_slice(&header);
        let nic = &mut self.nics[path.nic];
        // It comes from whom the datagram was for: a connected socket hears no other.
        let mut error = [0; MAX_ERROR_LEN];
        if let Some(len) = write(&mut error, &packet[..ip + 8], destination) {
            let sent = nic.send_packet(path.queue, peer, &error[..len], &self.stats);
            self.stats.icmp_errors.add(u64::from(sent));
        }
        self.driver.wake();
    }

    fn send_echo_reply(&mut self, path: &Path, sequence: u16, data: &[u8]) {
        let Some(peer) = path.peer else { return };
        let (source, destination, ident) = (path.local.ip(), path.remote.ip(), path.remote.port());
        // Room for the headers in front of the data.
        self.scratch.resize((data.len() + 64).max(self.scratch.len()), 0);
        let out = &mut self.scratch;
        let written = icmp::write_echo_reply(out, source, destination, ident, sequence, data);
        if let Some(len) = written {
            let nic = &mut self.nics[path.nic];
            let sent = nic.send_packet(path.queue, peer, &self.scratch[..len], &self.stats);
            self.stats.echo_replies.add(u64::from(sent));
        }
    }

    fn count_if_full(&mut self, outcome: Outcome) -> bool {
        if outcome == Outcome::Full {
            self.stats.tx_no_room.add(1);
        }
        self.driver.wake();
        outcome == Outcome::Queued
    }
}
