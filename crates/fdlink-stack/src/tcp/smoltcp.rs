//! smoltcp's TCP socket as a [`Connection`].
//!
//! Theory of operation. smoltcp has no way to drive a TCP socket without an `Interface` and a
//! `SocketSet`, and both are linear in the number of sockets; so each connection has its own of
//! each, with one socket in it, behind the stack's flow table. smoltcp also drops the segmentation
//! metadata of IPv6 packets (0.14), and knows nothing of what we know of a frame. So it is shown
//! only what it needs: every connection is IPv4 between two fixed addresses, whatever carried it.
//! On the way in, the [`SEGMENT_HEADROOM`] bytes in front of a segment (the end of its real IP
//! header, which has been read by then) become that IPv4 header; on the way out the sink writes
//! the real one over it. Checksums are off: the stack verified the segment, the link or the stack
//! completes ours.
//!
//! smoltcp answers some segments at once through the token that it receives with them (a challenge
//! ACK, an RST); ordinary acknowledgements wait for `emit`, after the application has read. It takes
//! such an answer for sent, so one that finds no room is kept for `emit`, or the peer would wait for
//! its retransmission timer.
//!
//! The window that leaves is one unit smaller than smoltcp's. smoltcp rounds its window down to the
//! unit of the window scale, so its right edge moves back and forth by less than that, and it drops
//! bytes beyond the edge that it told last; a peer that fills the window would lose the last of them
//! and wait for a timer.

use std::num::{NonZeroU16, NonZeroUsize};
use std::time::{Duration, Instant};

use ::smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use ::smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium, PacketMeta};
use ::smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use ::smoltcp::time::Instant as SmolInstant;
use ::smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint, Ipv4Address};

use super::{Connection, ConnectionSpec, Phase, SEGMENT_HEADROOM, SegmentSink};

/// The two ends of every connection, as smoltcp sees them (RFC 5737, TEST-NET-1).
const LOCAL: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);
const REMOTE: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);

/// Length of the TCP header without options (RFC 9293, section 3.1).
const TCP_HEADER_LEN: usize = 20;

/// How long a peer may be silent while it owes an answer, before the connection is given up; the
/// order of magnitude of Linux's `tcp_retries2`, cut to what a local peer needs, and just what
/// `tcp_syn_retries` comes to.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// The same for the answer to our SYN-ACK (Linux's `tcp_synack_retries` comes to 63 s).
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(60);

/// One connection over smoltcp.
pub(crate) struct SmolTcp {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    capabilities: DeviceCapabilities,
    /// The instant that smoltcp's clock counts from.
    epoch: Instant,
    /// Capacity of each buffer, for the pool.
    buffer: usize,
    /// Since when the peer owes an answer: to a SYN, to data, to a FIN. smoltcp's own timeout is
    /// off, because it runs while nothing is owed as well and would end every idle connection.
    owed_since: Option<Instant>,
    /// To be closed when everything has been acknowledged. In LAST-ACK smoltcp takes a window update
    /// for a duplicate acknowledgement and forgets it: data that waited for the window would wait
    /// for a probe. So it gets there with nothing left to send but the FIN.
    closing: bool,
    /// An answer that found no room, with its headroom.
    unsaid: Option<Box<[u8]>>,
}

impl SmolTcp {
    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn owes_answer(&self) -> bool {
        let control = matches!(
            self.socket().state(),
            State::SynSent | State::SynReceived | State::FinWait1 | State::Closing | State::LastAck
        );
        control || self.socket().send_queue() > 0
    }

    /// When the connection is given up, if the peer stays silent.
    fn limit(&self) -> Option<Instant> {
        let limit = match self.socket().state() {
            State::SynReceived => HANDSHAKE_LIMIT,
            State::Closed => return None,
            _ => SILENCE_LIMIT,
        };
        self.owed_since.map(|since| since + limit)
    }

    fn time(&self, now: Instant) -> SmolInstant {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        // Offset by a second: smoltcp takes instant 0 to mean "at once".
        SmolInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX / 2) + 1_000_000)
    }

    fn instant(&self, time: SmolInstant) -> Instant {
        let micros = u64::try_from(time.total_micros() - 1_000_000).unwrap_or(0);
        self.epoch + Duration::from_micros(micros)
    }
}

impl Connection for SmolTcp {
    fn segment_arrived(&mut self, now: Instant, packet: &mut [u8], sink: &mut dyn SegmentSink) {
        write_ipv4_header(packet, REMOTE, LOCAL);
        let time = self.time(now);
        let mut keep = Keep(&mut self.unsaid);
        let sink: &mut dyn SegmentSink = if sink.room() { sink } else { &mut keep };
        let mut device = Phy { arrived: Some(packet), sink, capabilities: &self.capabilities };
        self.interface.poll_ingress_single(time, &mut device, &mut self.sockets);
        // Whatever it says, it is there. A handshake must come to its end nevertheless.
        if self.phase() != Phase::Opening {
            self.owed_since = None;
        }
    }

    fn emit(&mut self, now: Instant, sink: &mut dyn SegmentSink) -> bool {
        let time = self.time(now);
        if self.limit().is_some_and(|limit| limit <= now) {
            self.abort();
        }
        loop {
            if !sink.room() {
                return true;
            }
            if let Some(unsaid) = self.unsaid.take() {
                let len = unsaid.len() - SEGMENT_HEADROOM;
                sink.segment(len, None, &mut |packet| packet.copy_from_slice(&unsaid));
                continue;
            }
            let mut device = Phy { arrived: None, sink, capabilities: &self.capabilities };
            let polled = self.interface.poll_egress(time, &mut device, &mut self.sockets);
            if self.closing && self.socket().send_queue() == 0 {
                self.closing = false;
                self.socket_mut().close();
                continue;
            }
            if polled == PollResult::None {
                self.owed_since = self.owes_answer().then(|| self.owed_since.unwrap_or(now));
                return false;
            }
        }
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(self.time(now), &self.sockets);
        at.map(|at| self.instant(at)).into_iter().chain(self.limit()).min()
    }

    fn phase(&self) -> Phase {
        match self.socket().state() {
            // LISTEN is where it starts, just before its SYN, and where an RST to our SYN-ACK
            // takes it back to.
            State::Closed | State::Listen => Phase::Closed,
            State::SynSent | State::SynReceived => Phase::Opening,
            State::TimeWait => Phase::TimeWait,
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => Phase::Open,
        }
    }

    fn readable(&self) -> usize {
        self.socket().recv_queue()
    }

    fn peer_closed(&self) -> bool {
        matches!(
            self.socket().state(),
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait
        )
    }

    fn unsent(&self) -> usize {
        self.socket().send_queue()
    }

    fn may_read(&self) -> bool {
        self.phase() == Phase::Opening || self.socket().may_recv()
    }

    fn writable(&self) -> usize {
        let socket = self.socket();
        if socket.may_send() && !self.closing {
            socket.send_capacity() - socket.send_queue()
        } else {
            0
        }
    }

    fn may_write(&self) -> bool {
        self.phase() == Phase::Opening || self.socket().may_send() && !self.closing
    }

    fn read(&mut self, take: &mut dyn FnMut(&[u8]) -> usize) -> usize {
        self.socket_mut()
            .recv(|bytes| {
                let used = take(bytes).min(bytes.len());
                (used, used)
            })
            .unwrap_or(0)
    }

    fn write(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> usize {
        self.socket_mut()
            .send(|space| {
                let written = fill(space).min(space.len());
                (written, written)
            })
            .unwrap_or(0)
    }

    fn close(&mut self) {
        self.closing = self.socket().state() == State::CloseWait && self.unsent() > 0;
        if !self.closing {
            self.socket_mut().close();
        }
    }

    fn abort(&mut self) {
        self.socket_mut().abort();
    }
}

impl std::fmt::Debug for SmolTcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SmolTcp").field("state", &self.socket().state()).finish_non_exhaustive()
    }
}

/// Makes connections, within a budget of buffer memory, and keeps a few ended ones: their buffers
/// are mapped and warm, where fresh ones cost a page fault every 4 KiB.
#[derive(Debug)]
pub(crate) struct ConnectionPool {
    idle: Vec<SmolTcp>,
    /// Bytes of buffer in connections that were handed out or are idle.
    used: usize,
    budget: usize,
    epoch: Instant,
}

impl ConnectionPool {
    /// How many ended connections are kept.
    const MAX_IDLE: usize = 16;

    pub(crate) fn new(budget: usize, epoch: Instant) -> Self {
        Self { idle: Vec::new(), used: 0, budget, epoch }
    }

    /// Bytes of buffer in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// A connection that answers the SYN it is given next; `None` where the budget is used up.
    pub(crate) fn passive(&mut self, spec: &ConnectionSpec, seed: u64) -> Option<SmolTcp> {
        let mut connection = self.connection(spec, seed)?;
        let local = IpListenEndpoint { addr: None, port: spec.local_port };
        // Refused only for port 0 or a socket that is open, and this one is neither.
        connection.socket_mut().listen(local).ok()?;
        Some(connection)
    }

    /// A connection that sends a SYN first; `None` where the budget is used up.
    pub(crate) fn active(&mut self, spec: &ConnectionSpec, seed: u64) -> Option<SmolTcp> {
        let mut connection = self.connection(spec, seed)?;
        let SmolTcp { interface, sockets, handle, .. } = &mut connection;
        let local = IpListenEndpoint { addr: Some(LOCAL.into()), port: spec.local_port };
        sockets
            .get_mut::<Socket<'_>>(*handle)
            .connect(interface.context(), (IpAddress::Ipv4(REMOTE), spec.remote_port), local)
            .ok()?;
        Some(connection)
    }

    /// Takes an ended connection back.
    pub(crate) fn recycle(&mut self, connection: SmolTcp) {
        if self.idle.len() < Self::MAX_IDLE {
            self.idle.push(connection);
        } else {
            self.used -= 2 * connection.buffer;
        }
    }

    fn connection(&mut self, spec: &ConnectionSpec, seed: u64) -> Option<SmolTcp> {
        let (mut sockets, handle) = match self.idle.iter().rposition(|c| c.buffer == spec.buffer) {
            Some(at) => {
                let SmolTcp { sockets, handle, .. } = self.idle.swap_remove(at);
                (sockets, handle)
            }
            None => self.allocate(spec.buffer)?,
        };
        let socket = sockets.get_mut::<Socket<'_>>(handle);
        socket.abort();
        // A lone super-frame would wait for a delayed acknowledgement, and small writes for Nagle.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(None);
        socket.set_timeout(None);
        socket.set_congestion_control(match spec.congestion_control {
            true => CongestionControl::Cubic,
            false => CongestionControl::None,
        });
        let capabilities = capabilities(spec);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut device = Unplugged(&capabilities);
        let mut interface =
            Interface::new(config, &mut device, SmolInstant::from_micros(1_000_000));
        interface.update_ip_addrs(|addresses| {
            // The vector holds two, and this is the first.
            let _ = addresses.push(IpCidr::new(LOCAL.into(), 24));
        });
        let (epoch, buffer) = (self.epoch, spec.buffer);
        Some(SmolTcp {
            interface,
            sockets,
            handle,
            capabilities,
            epoch,
            buffer,
            owed_since: None,
            closing: false,
            unsaid: None,
        })
    }

    fn allocate(&mut self, buffer: usize) -> Option<(SocketSet<'static>, SocketHandle)> {
        while self.used + 2 * buffer > self.budget {
            // Idle connections of another size make room first.
            self.used -= 2 * self.idle.pop()?.buffer;
        }
        self.used += 2 * buffer;
        let ring = || SocketBuffer::new(vec![0; buffer]);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(Socket::new(ring(), ring()));
        Some((sockets, handle))
    }
}

fn capabilities(spec: &ConnectionSpec) -> DeviceCapabilities {
    let headers = SEGMENT_HEADROOM + TCP_HEADER_LEN;
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = headers + spec.mss;
    capabilities.checksum.ipv4 = Checksum::None;
    capabilities.checksum.tcp = Checksum::None;
    capabilities.segmentation.tcpv4 =
        spec.super_segment.and_then(|payload| NonZeroUsize::new(headers + payload));
    capabilities
}

/// The IPv4 header that smoltcp sees in front of a segment; 20 bytes, checksum not filled in.
fn write_ipv4_header(packet: &mut [u8], source: Ipv4Address, destination: Ipv4Address) {
    let total = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    let header = &mut packet[..SEGMENT_HEADROOM];
    header.fill(0);
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[8] = 64;
    header[9] = crate::packet::TCP;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
}

/// What smoltcp takes for a network device: at most one packet in, the sink out.
struct Phy<'a> {
    arrived: Option<&'a [u8]>,
    sink: &'a mut dyn SegmentSink,
    capabilities: &'a DeviceCapabilities,
}

impl Device for Phy<'_> {
    type RxToken<'t>
        = Arrived<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outlet<'t>
    where
        Self: 't;

    fn receive(&mut self, _: SmolInstant) -> Option<(Arrived<'_>, Outlet<'_>)> {
        let arrived = Arrived(self.arrived.take()?);
        Some((arrived, Outlet { sink: self.sink, mss: None }))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Outlet<'_>> {
        self.sink.room().then_some(Outlet { sink: self.sink, mss: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

struct Arrived<'a>(&'a [u8]);

impl phy::RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

struct Outlet<'a> {
    sink: &'a mut dyn SegmentSink,
    mss: Option<NonZeroU16>,
}

impl phy::TxToken for Outlet<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.mss = meta.segmentation_offload_size;
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut write = Some(write);
        let mut result = None;
        self.sink.segment(len - SEGMENT_HEADROOM, self.mss, &mut |packet| {
            result = write.take().map(|write| write(packet));
            shrink_window(&mut packet[SEGMENT_HEADROOM..]);
        });
        result.expect("a sink calls `write` once, as its contract says")
    }
}

/// Takes one unit from the window of a segment; that of a SYN is not scaled.
fn shrink_window(segment: &mut [u8]) {
    if let [_, _, _, _, _, _, _, _, _, _, _, _, _, control, high, low, ..] = segment
        && *control & super::flags::SYN == 0
    {
        [*high, *low] = u16::from_be_bytes([*high, *low]).saturating_sub(1).to_be_bytes();
    }
}

/// Keeps the last answer that found no room.
struct Keep<'a>(&'a mut Option<Box<[u8]>>);

impl SegmentSink for Keep<'_> {
    fn room(&mut self) -> bool {
        true
    }

    fn segment(&mut self, len: usize, _: Option<NonZeroU16>, write: &mut dyn FnMut(&mut [u8])) {
        let mut packet = vec![0; SEGMENT_HEADROOM + len].into_boxed_slice();
        write(&mut packet);
        *self.0 = Some(packet);
    }
}

/// The device that an interface is made with: it reads only the capabilities then.
struct Unplugged<'a>(&'a DeviceCapabilities);

impl Device for Unplugged<'_> {
    type RxToken<'t>
        = Arrived<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outlet<'t>
    where
        Self: 't;

    fn receive(&mut self, _: SmolInstant) -> Option<(Arrived<'_>, Outlet<'_>)> {
        None
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Outlet<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.0.clone()
    }
}
