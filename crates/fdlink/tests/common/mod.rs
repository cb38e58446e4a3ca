//! A link under test, its far end, and the few verbs that the tests share.
#![allow(dead_code, reason = "each test binary uses its own part of this; one uses all of it")]
#![allow(clippy::allow_attributes, reason = "so there is nothing to expect in every one of them")]

pub(crate) mod out;
pub(crate) mod recorder;
pub(crate) mod traffic;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fdlink::link::{
    FramePrefix, adopt, adopt_borrowed, adopt_framed, open_packet, open_tap, open_tun,
};
use fdlink::offload::vnet::{ChecksumField, Gso, GsoKind, TxOffload};
use fdlink::stats::LinkStats;
use fdlink::{
    FdLink, Fill, Link, LinkOptions, LinkProperties, Mode, QueuePair, Receive, RingVersion,
    SetupError, Transmit,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use testkit::packet::Tcp;
use testkit::{Peer, interface, packet};

/// Long enough for a busy machine, short enough for a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Long enough for something that should not come to have come.
pub(crate) const QUIET: Duration = Duration::from_millis(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Seqpacket,
    Datagram,
    Udp,
    Framed,
    Packet,
    Cooked,
    Macvtap,
    Tap,
    Tun,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Seqpacket => "seqpacket",
            Self::Datagram => "datagram",
            Self::Udp => "udp",
            Self::Framed => "framed stream",
            Self::Macvtap => "macvtap",
            Self::Packet => "packet",
            Self::Cooked => "cooked",
            Self::Tap => "tap",
            Self::Tun => "tun",
        }
    }

    pub(crate) fn is_socket(self) -> bool {
        matches!(self, Self::Seqpacket | Self::Datagram | Self::Udp | Self::Framed)
    }

    pub(crate) fn ways(self) -> &'static [Way] {
        match self {
            Self::Packet => &Way::ALL,
            Self::Seqpacket | Self::Datagram | Self::Udp | Self::Cooked => {
                &[Way::READV, Way::RECVMMSG]
            }
            Self::Framed | Self::Macvtap | Self::Tap | Self::Tun => &[Way::READV],
        }
    }

    /// The shortest frame that this kind lets through, with some payload.
    pub(crate) fn shortest(self) -> usize {
        match self {
            Self::Seqpacket | Self::Datagram | Self::Udp => 1,
            Self::Framed | Self::Packet | Self::Cooked | Self::Macvtap | Self::Tap => 15,
            Self::Tun => 21,
        }
    }

    /// Bytes of the link header.
    pub(crate) fn header(self) -> usize {
        if self.shortest() == 15 { 14 } else { 0 }
    }

    /// A frame that nobody but the far end answers to.
    pub(crate) fn frame(self, len: usize, seed: u8) -> Vec<u8> {
        match self {
            Self::Framed | Self::Packet | Self::Tap => packet::pattern_frame(len, seed),
            Self::Cooked | Self::Macvtap => {
                // The kernel tells of a destination only what kind of one it is, or lets in only
                // what is for its own or for everybody.
                let mut frame = packet::pattern_frame(len, seed);
                frame[..6].fill(0xff);
                frame
            }
            Self::Tun => packet::pattern_packet(len, seed),
            // Boundaries are all that matters to a socket.
            Self::Seqpacket | Self::Datagram | Self::Udp => {
                (0..len).map(|i| seed.wrapping_add((i % 251).try_into().unwrap())).collect()
            }
        }
    }
}

/// How frames come in: a mode, and the version of its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) mode: Mode,
    version: RingVersion,
}

impl Way {
    pub(crate) const READV: Self = Self { mode: Mode::Readv, version: RingVersion::V3 };
    pub(crate) const RECVMMSG: Self = Self { mode: Mode::RecvMmsg, version: RingVersion::V3 };
    pub(crate) const RING_V2: Self = Self { mode: Mode::PacketMmap, version: RingVersion::V2 };
    pub(crate) const RING_V3: Self = Self { mode: Mode::PacketMmap, version: RingVersion::V3 };
    pub(crate) const ALL: [Self; 4] = [Self::READV, Self::RECVMMSG, Self::RING_V2, Self::RING_V3];

    pub(crate) fn options(self) -> LinkOptions {
        LinkOptions::new().mode(self.mode).ring_version(self.version)
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ring = if self.mode == Mode::PacketMmap {
            format!(" {:?}", self.version)
        } else {
            String::new()
        };
        f.pad(&format!("{}{ring}", self.mode))
    }
}

/// A link under test and its far end.
pub(crate) struct Rig {
    pub(crate) kind: Kind,
    pub(crate) way: Way,
    pub(crate) rx: Box<dyn Receive>,
    pub(crate) tx: Box<dyn Transmit>,
    pub(crate) stats: LinkStats,
    pub(crate) properties: LinkProperties,
    pub(crate) peer: Peer,
    /// The link's own interface.
    pub(crate) interface: String,
}

impl Rig {
    pub(crate) fn new(kind: Kind, way: Way) -> Self {
        let (link, peer, interface) = link(kind, &way.options()).unwrap();
        assert_eq!(link.properties().mode, way.mode);
        assert_eq!(link.report().mode, way.mode);
        let (stats, properties) = (link.stats(), link.properties().clone());
        let mut queues = Box::new(link).into_queues().unwrap();
        let QueuePair { rx, tx } = queues.pop().unwrap();
        Self { kind, way, rx: rx.unwrap(), tx, stats, properties, peer, interface }
    }

    pub(crate) fn recv(&mut self, count: usize) -> Vec<Vec<u8>> {
        recv(&mut *self.rx, count, PATIENCE)
    }

    pub(crate) fn recv_nothing(&mut self) {
        assert_eq!(recv(&mut *self.rx, 1, QUIET), Vec::<Vec<u8>>::new());
    }

    pub(crate) fn peer_recv(&self, count: usize) -> Vec<Vec<u8>> {
        let next = |_| self.peer.recv(PATIENCE).unwrap().expect("a frame in time");
        (0..count).map(next).collect()
    }
}

/// Makes a link of that kind, and its far end; the third is the link's own interface.
pub(crate) fn link(
    kind: Kind,
    options: &LinkOptions,
) -> Result<(FdLink, Peer, String), SetupError> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = format!("fdl{serial}");
    match kind {
        Kind::Seqpacket | Kind::Datagram => {
            let (ours, far) = if kind == Kind::Seqpacket { seqpackets() } else { datagrams() };
            socket_link(ours, far, options)
        }
        Kind::Udp => {
            let (ours, far) = udp_sockets();
            socket_link(ours, far, options)
        }
        Kind::Framed => {
            let (ours, far) = UnixStream::pair().unwrap();
            let link = adopt_framed(ours.into(), FramePrefix::Be32, options)?;
            let vnet_header = link.report().descriptors[0].vnet_header_len;
            Ok((link, Peer::on_stream(far.into(), vnet_header), String::new()))
        }
        Kind::Macvtap => {
            let far = format!("far{serial}");
            interface::veth(&name, &far, 1500).unwrap();
            // Nodes know no namespaces, so the name is to be found nowhere else.
            let tap = format!("mvt{}-{serial}", std::process::id());
            interface::macvtap(&tap, &name).unwrap();
            let link = adopt(vec![macvtap_node(&tap).expect("the device's node")], options)?;
            Ok((link, Peer::on_interface(&far).unwrap(), tap))
        }
        Kind::Packet => {
            let far = format!("far{serial}");
            interface::veth(&name, &far, 1500).unwrap();
            let link = open_packet(&name, 1, options)?;
            Ok((link, Peer::on_interface(&far).unwrap(), name))
        }
        Kind::Cooked => {
            let far = format!("far{serial}");
            interface::veth(&name, &far, 1500).unwrap();
            // It sends from the interface's own address.
            let source = *kind.frame(15, 0)[6..].first_chunk().unwrap();
            interface::set_address(&name, source).unwrap();
            let link = adopt(vec![testkit::cooked_packet_socket(&name).unwrap()], options)?;
            Ok((link, Peer::on_interface(&far).unwrap(), name))
        }
        Kind::Tap | Kind::Tun => {
            let open = if kind == Kind::Tap { open_tap } else { open_tun };
            let link = open(&name, 1, options)?;
            interface::up(&name).unwrap();
            Ok((link, Peer::on_interface(&name).unwrap(), name))
        }
    }
}

/// Whether a macvtap and its node can be made; if not, says that `test` was skipped.
pub(crate) fn has_macvtap(test: &str) -> bool {
    let name = format!("mvt{}", std::process::id());
    interface::veth("mvt-a", "mvt-b", 1500).unwrap();
    let made = interface::macvtap(&name, "mvt-a").map(|()| macvtap_node(&name).is_some());
    interface::remove("mvt-a").unwrap();
    match made {
        Ok(true) => return true,
        Ok(false) => testkit::skip(test, "the node of a macvtap cannot be made"),
        Err(error) => testkit::skip(test, &format!("no macvtap: {error}")),
    }
    false
}

/// Opens a queue of a macvtap. Its node has a minor number of its own, which only a sysfs of this
/// namespace would tell: so each is tried.
pub(crate) fn macvtap_node(name: &str) -> Option<OwnedFd> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let devices = std::fs::read_to_string("/proc/devices").ok()?;
    let major = devices.lines().find_map(|line| line.strip_suffix(" macvtap"))?;
    let major = major.trim().parse().ok()?;
    let path = std::env::temp_dir().join(format!("fdlink-{name}"));
    (1..64).find_map(|minor| {
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(major, minor)).ok()?;
        let node = std::fs::OpenOptions::new().read(true).write(true).open(&path);
        std::fs::remove_file(&path).unwrap();
        let fd = OwnedFd::from(node.ok()?);
        let link = adopt_borrowed(&[fd.as_fd()], &LinkOptions::new()).ok()?;
        (link.interface() == Some(name)).then_some(fd)
    })
}

/// A link on a socket; its far end has the vnet header that was declared.
fn socket_link(
    ours: OwnedFd,
    far: OwnedFd,
    options: &LinkOptions,
) -> Result<(FdLink, Peer, String), SetupError> {
    let link = adopt(vec![ours], options)?;
    let vnet_header = link.report().descriptors[0].vnet_header_len;
    Ok((link, Peer::on_socket(far, vnet_header), String::new()))
}

pub(crate) fn seqpackets() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

pub(crate) fn datagrams() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixDatagram::pair().unwrap();
    (a.into(), b.into())
}

/// Two UDP sockets, connected to each other.
pub(crate) fn udp_sockets() -> (OwnedFd, OwnedFd) {
    let [a, b] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    (a.into(), b.into())
}

/// Receives until there are `count` frames or the time is over.
pub(crate) fn recv(rx: &mut dyn Receive, count: usize, time: Duration) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let end = Instant::now() + time;
    while frames.len() < count && Instant::now() < end {
        match rx.fill().unwrap() {
            Fill::Frames(n) => {
                assert_eq!(rx.batch().len(), n);
                frames.extend(rx.batch().map(|frame| frame.bytes().to_vec()));
            }
            Fill::Empty => std::thread::sleep(Duration::from_micros(200)),
            Fill::Closed(why) => panic!("closed: {why}"),
        }
    }
    frames
}

/// Fills until the queue says something else than frames or nothing.
pub(crate) fn closed(rx: &mut dyn Receive) -> fdlink::Closed {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match rx.fill().unwrap() {
            Fill::Closed(why) => return why,
            Fill::Frames(_) => {}
            Fill::Empty => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("not closed in time");
}

/// Whether poll says that the queue's descriptor is readable.
pub(crate) fn readable(rx: &dyn Receive, time: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let wakeup = rx.wakeup();
    let mut fds = [PollFd::new(wakeup.descriptor.as_ref().unwrap(), PollFlags::IN)];
    let nanos = time.subsec_nanos().into();
    let time = Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap(), tv_nsec: nanos };
    poll(&mut fds, Some(&time)).unwrap() > 0
}

/// Payload bytes of each segment of a [`super_frame`].
pub(crate) const SEGMENT: u16 = 1400;

/// A super-frame of that many segments, what is left to do, and the same as a vnet header.
pub(crate) fn super_frame(
    kind: Kind,
    gso: GsoKind,
    segments: usize,
) -> (Vec<u8>, TxOffload, [u8; 10]) {
    let payload = kind.frame(usize::from(SEGMENT) * segments, 3);
    let v6 = gso == GsoKind::TcpV6;
    let [source, destination]: [SocketAddr; 2] = match v6 {
        false => ["192.0.2.1:5", "192.0.2.2:6"],
        true => ["[2001:db8::1]:5", "[2001:db8::2]:6"],
    }
    .map(|text| text.parse().unwrap());
    let udp = gso == GsoKind::UdpSegments;
    let (seq, ack, window, flags) = (1, 1, 1000, packet::flag::ACK);
    let tcp = Tcp { source, destination, seq, ack, window, flags, options: &[], payload: &payload };
    let mut packet =
        if udp { packet::udp(source, destination, &payload) } else { packet::tcp(tcp) };
    let (ip, transport, offset, protocol) = (
        if v6 { 40 } else { 20 },
        if udp { 8 } else { 20 },
        if udp { 6 } else { 16 },
        if udp { 17 } else { 6 },
    );
    let len = packet.len() - ip;
    let sum = packet::pseudo_header_sum(source.ip(), destination.ip(), protocol, len);
    packet[ip + offset..ip + offset + 2].copy_from_slice(&sum.to_be_bytes());
    if kind.header() > 0 {
        let addresses = kind.frame(15, 0);
        let address = |at: usize| *addresses[at..].first_chunk().unwrap();
        packet = packet::ethernet_ip(address(0), address(6), &packet);
    }
    let narrow = |value: usize| u16::try_from(value).unwrap();
    let start = narrow(kind.header() + ip);
    let header_len = start + narrow(transport);
    let checksum = ChecksumField { start, offset: narrow(offset) };
    // NEEDS_CSUM, and VIRTIO_NET_HDR_GSO_* of linux/virtio_net.h.
    let number = match gso {
        GsoKind::TcpV4 => 1,
        GsoKind::UdpFragments => 3,
        GsoKind::TcpV6 => 4,
        GsoKind::UdpSegments => 5,
    };
    let mut vnet = vec![1, number];
    for field in [header_len, SEGMENT, checksum.start, checksum.offset] {
        vnet.extend(field.to_ne_bytes());
    }
    let gso = Gso { kind: gso, size: SEGMENT, header_len, ecn: false };
    let offload = TxOffload { checksum: Some(checksum), gso: Some(gso) };
    (packet, offload, vnet.try_into().unwrap())
}
