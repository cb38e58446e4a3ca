//! A link under test, its far end, and the few verbs that the tests share.
#![expect(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod out;
pub(crate) mod traffic;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fdlink::link::{adopt, open_packet, open_tap, open_tun};
use fdlink::stats::LinkStats;
use fdlink::{
    FdLink, Fill, Link, LinkOptions, LinkProperties, Mode, QueuePair, Receive, SetupError, Transmit,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use testkit::{Peer, interface, packet};

/// Long enough for a busy machine, short enough for a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Long enough for something that should not come to have come.
pub(crate) const QUIET: Duration = Duration::from_millis(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Seqpacket,
    Datagram,
    Packet,
    Tap,
    Tun,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Seqpacket => "seqpacket",
            Self::Datagram => "datagram",
            Self::Packet => "packet",
            Self::Tap => "tap",
            Self::Tun => "tun",
        }
    }

    pub(crate) fn is_socket(self) -> bool {
        matches!(self, Self::Seqpacket | Self::Datagram)
    }

    pub(crate) fn modes(self) -> &'static [Mode] {
        match self {
            Self::Packet => &[Mode::Readv, Mode::RecvMmsg, Mode::PacketMmap],
            Self::Seqpacket | Self::Datagram => &[Mode::Readv, Mode::RecvMmsg],
            Self::Tap | Self::Tun => &[Mode::Readv],
        }
    }

    /// The shortest frame that this kind lets through, with some payload.
    pub(crate) fn shortest(self) -> usize {
        match self {
            Self::Seqpacket | Self::Datagram => 1,
            Self::Packet | Self::Tap => 15,
            Self::Tun => 21,
        }
    }

    /// Bytes of the link header.
    pub(crate) fn header(self) -> usize {
        if matches!(self, Self::Packet | Self::Tap) { 14 } else { 0 }
    }

    /// A frame that nobody but the far end answers to.
    pub(crate) fn frame(self, len: usize, seed: u8) -> Vec<u8> {
        match self {
            Self::Packet | Self::Tap => packet::pattern_frame(len, seed),
            Self::Tun => packet::pattern_packet(len, seed),
            // Boundaries are all that matters to a socket.
            Self::Seqpacket | Self::Datagram => {
                (0..len).map(|i| seed.wrapping_add((i % 251).try_into().unwrap())).collect()
            }
        }
    }
}

/// A link under test and its far end.
pub(crate) struct Rig {
    pub(crate) kind: Kind,
    pub(crate) mode: Mode,
    pub(crate) rx: Box<dyn Receive>,
    pub(crate) tx: Box<dyn Transmit>,
    pub(crate) stats: LinkStats,
    pub(crate) properties: LinkProperties,
    pub(crate) peer: Peer,
    /// The link's own interface.
    pub(crate) interface: String,
}

impl Rig {
    pub(crate) fn new(kind: Kind, mode: Mode) -> Self {
        let (link, peer, interface) = link(kind, &LinkOptions::new().mode(mode)).unwrap();
        assert_eq!(link.properties().mode, mode);
        assert_eq!(link.report().mode, mode);
        let (stats, properties) = (link.stats(), link.properties().clone());
        let mut queues = Box::new(link).into_queues().unwrap();
        let QueuePair { rx, tx } = queues.pop().unwrap();
        Self { kind, mode, rx: rx.unwrap(), tx, stats, properties, peer, interface }
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
            Ok((adopt(vec![ours], options)?, Peer::on_socket(far, 0), String::new()))
        }
        Kind::Packet => {
            let far = format!("far{serial}");
            interface::veth(&name, &far, 1500).unwrap();
            let link = open_packet(&name, 1, options)?;
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

pub(crate) fn seqpackets() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

pub(crate) fn datagrams() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixDatagram::pair().unwrap();
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
