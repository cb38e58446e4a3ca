//! How a link is put together: what is refused, with the reason and before anything is changed;
//! what a failure in the middle puts back; descriptors that stay the caller's; pairs.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::error::Error;
use std::io::IoSlice;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use common::{PATIENCE, datagrams, recv, seqpackets};
use fdlink::link::{
    adopt, adopt_borrowed, open_datagram_pair, open_packet, open_seqpacket_pair, open_tap, open_tun,
};
use fdlink::{
    BpfInstruction, Closed, Fanout, FdLink, Link, LinkKind, LinkOptions, MacAddr, Mode, Offload,
    SetupError, TxFrame,
};
use testkit::{Peer, interface, packet, packet_socket};

/// Keeps whole frames (BPF_RET | BPF_K).
const EVERYTHING: BpfInstruction = BpfInstruction { code: 0x06, jt: 0, jf: 0, k: u32::MAX };

fn text(error: &SetupError) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

fn refusal(fds: &[BorrowedFd<'_>], options: &LinkOptions) -> String {
    text(&adopt_borrowed(fds, options).expect_err("a refusal"))
}

/// What can be read of a descriptor that a link may change.
#[derive(Debug, PartialEq, Eq)]
struct State {
    flags: rustix::fs::OFlags,
    options: Vec<Option<i32>>,
    filter: Option<u32>,
}

impl State {
    fn of(fd: impl AsFd) -> Self {
        // SOL_SOCKET: SO_SNDBUF, SO_RCVBUF, SO_TIMESTAMPNS. SOL_PACKET: PACKET_AUXDATA,
        // PACKET_VERSION, PACKET_VNET_HDR, PACKET_FANOUT, PACKET_IGNORE_OUTGOING.
        let names = [1, 1, 1, 263, 263, 263, 263, 263].iter().zip([7, 8, 35, 8, 10, 15, 18, 23]);
        let option =
            |(level, name): (&i32, i32)| testkit::socket_option(fd.as_fd(), *level, name).ok();
        Self {
            flags: rustix::fs::fcntl_getfl(&fd).unwrap(),
            options: names.map(option).collect(),
            filter: testkit::filter_len(fd.as_fd()).ok(),
        }
    }
}

use rustix::net::{AddressFamily, SocketType};

#[test]
fn what_is_no_base_for_a_link_is_refused_with_the_reason() {
    use rustix::event::{EventfdFlags, epoll, eventfd};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
    let alone = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let cases: [(OwnedFd, &str); 11] = [
        (alone, "a seqpacket socket that is not connected"),
        (UnixStream::pair().unwrap().0.into(), "a stream socket, which keeps no boundaries"),
        (stream.into(), "a stream socket, which keeps no boundaries"),
        (listener.into(), "a stream socket, which keeps no boundaries"),
        (std::io::pipe().unwrap().0.into(), "a pipe"),
        (file("/proc/self/exe"), "a file"),
        (memory, "a file"),
        (file("/"), "a directory"),
        (file("/dev/null"), "a character device that is no TUN or TAP"),
        (epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(), "anon_inode:[eventpoll]"),
        (eventfd(0, EventfdFlags::CLOEXEC).unwrap(), "anon_inode:[eventfd]"),
    ];
    let good = seqpackets().0;
    for (fd, reason) in cases {
        let before = (State::of(&good), State::of(&fd));
        let text = refusal(&[good.as_fd(), fd.as_fd()], &LinkOptions::new());
        assert!(text.starts_with("descriptor 1 is "), "{text}");
        assert!(text.contains(reason) && text.contains("a link needs"), "{text}");
        assert_eq!((State::of(&good), State::of(&fd)), before);
    }
    let text = refusal(&[good.as_fd(), testkit::closed_descriptor()], &LinkOptions::new());
    assert!(text.starts_with("descriptor 1 is the number 2147483647, which is closed"), "{text}");
    assert_eq!(refusal(&[], &LinkOptions::new()), "a link needs at least one descriptor");
    assert!(matches!(adopt(Vec::new(), &LinkOptions::new()), Err(SetupError::NoDescriptors)));
}

#[test]
fn descriptors_that_do_not_go_together_are_refused() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let (one, other, datagram) = (seqpackets().0, seqpackets().0, datagrams().0);
        let packets = ["a", "a", "b"].map(|name| packet_socket(name).unwrap());
        let vnet = open_packet("a", 1, &LinkOptions::new()).unwrap().into_fds().pop().unwrap();
        let twice = one.try_clone().unwrap();
        let packet_twice = packets[0].try_clone().unwrap();
        let elsewhere = testkit::in_second_namespace(|| {
            interface::veth("a", "b", 1500).unwrap();
            packet_socket("a").unwrap()
        });
        let cases: [(&[&OwnedFd], &str, &str); 7] = [
            (&[&packets[0], &elsewhere], "1 is a packet on a", "the same network namespace"),
            (&[&one, &other, &twice], "descriptor 2 is the same as descriptor 0", "no duplicates"),
            (&[&packets[0], &packet_twice], "1 is the same as descriptor 0", "no duplicates"),
            (&[&one, &datagram], "descriptor 1 is a datagram socket", "the same kind"),
            (&[&packets[0], &one], "descriptor 1 is a seqpacket socket", "the same kind"),
            (&[&packets[0], &packets[2]], "descriptor 1 is a packet on b", "the same interface"),
            (&[&packets[0], &vnet], "with 10 bytes of vnet header", "as long a vnet header"),
        ];
        for (fds, found, expected) in cases {
            let before: Vec<_> = fds.iter().map(State::of).collect();
            let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            let text = refusal(&borrowed, &LinkOptions::new());
            assert!(text.contains(found) && text.contains(expected), "{text}");
            assert_eq!(fds.iter().map(State::of).collect::<Vec<_>>(), before);
        }
        if testkit::has_tun("descriptors_that_do_not_go_together_are_refused") {
            let tuns = open_tun("tun", 2, &LinkOptions::new()).unwrap().into_fds();
            let twice = tuns[0].try_clone().unwrap();
            let text = refusal(&[tuns[0].as_fd(), twice.as_fd()], &LinkOptions::new());
            assert!(text.starts_with("descriptor 1 is the same as descriptor 0"), "{text}");
            let both = [tuns[0].as_fd(), tuns[1].as_fd()];
            assert_eq!(adopt_borrowed(&both, &LinkOptions::new()).unwrap().properties().queues, 2);
        }
    });
}

/// A socket that is in a group can leave it only by being closed, and a ring is its maker's.
#[test]
fn a_group_or_a_ring_that_is_there_already_is_refused() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let ring = LinkOptions::new().mode(Mode::PacketMmap);
        for mode in Mode::NAMED {
            let fd = packet_socket("a").unwrap();
            let link = adopt_borrowed(&[fd.as_fd()], &ring).unwrap();
            let text = refusal(&[fd.as_fd()], &LinkOptions::new().mode(mode));
            assert!(text.starts_with("descriptor 0 is an AF_PACKET socket that has a ring"));
            drop(link);
            let fds = open_packet("a", 2, &LinkOptions::new()).unwrap().into_fds();
            let text = refusal(&[fds[1].as_fd()], &LinkOptions::new().mode(mode));
            assert!(text.starts_with("descriptor 0 is an AF_PACKET socket that is in a group"));
        }
    });
}

#[test]
fn an_option_that_does_not_fit_is_refused_before_anything_is_changed() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let new = LinkOptions::new;
        let program = |len| new().filter(vec![EVERYTHING; len]);
        let nonsense = new().filter(vec![BpfInstruction { code: 0xffff, ..EVERYTHING }]);
        let always = [
            (new().mtu(0), "mtu: expected 68 to 65536 bytes, found 0"),
            (new().mtu(67), "mtu: expected 68 to 65536 bytes, found 67"),
            (new().mtu(65537), "mtu: expected 68 to 65536 bytes, found 65537"),
            (new().batch(0), "batch: expected 1 to 1024 frames, found 0"),
            (new().batch(1025), "batch: expected 1 to 1024 frames, found 1025"),
            (new().gso_max_size(0), "gso_max_size: expected"),
            (new().gso_max_size(65550), "to 65549 bytes, found 65550"),
            (new().in_band_vnet_header(11), "in_band_vnet_header: expected 10 or 12 bytes"),
            (new().offload(Offload::Off).gso_max_size(9000), "with segmentation offload, found"),
        ];
        let filters = [
            (program(0), "filter: expected 1 to 4096 instructions, found 0"),
            (program(4097), "filter: expected 1 to 4096 instructions, found 4097"),
            (nonsense, "filter: expected a classic BPF program, found what the kernel refuses"),
        ];
        let ring = new().mode(Mode::PacketMmap);
        let fanout = new().fanout(Fanout::default());
        let sockets = [
            (ring, "mode: expected an AF_PACKET socket for packet-mmap, found a"),
            (new().offload(Offload::Required), "offload: expected a vnet header"),
            (new().promiscuous(true), "promiscuous: expected an AF_PACKET socket, found a"),
            (fanout, "fanout: expected AF_PACKET sockets, found a"),
        ];
        let devices = [
            (new().mode(Mode::RecvMmsg), "mode: expected a socket for recvmmsg, found a"),
            (new().timestamps(true), "timestamps: expected a socket, found a"),
            (new().in_band_vnet_header(10), "in_band_vnet_header: expected"),
        ];
        let ethernet =
            [(new().ethernet(true), "ethernet: expected false, as a tun has it here, found true")];
        let bare = [(
            new().ethernet(false),
            "ethernet: expected true, as a packet has it here, found false",
        )];
        let tun = [(program(1), "filter: expected a socket or a TAP device, found a tun")];
        let mut cases = vec![
            (packet_socket("a").unwrap(), [&always[..], &filters, &bare].concat()),
            (seqpackets().0, [&always[..], &filters, &sockets].concat()),
            (datagrams().0, [&always[..], &filters, &sockets].concat()),
        ];
        if testkit::has_tun("an_option_that_does_not_fit_is_refused_before_anything_is_changed") {
            let off = new().offload(Offload::Off);
            let [tap, l3] = [open_tap("tap", 1, &off), open_tun("tun", 1, &off)]
                .map(|link| link.unwrap().into_fds().pop().unwrap());
            cases.push((tap, [&always[..], &filters, &sockets, &devices].concat()));
            cases.push((l3, [&always[..], &sockets, &devices, &ethernet, &tun].concat()));
        }
        for (fd, refused) in cases {
            let before = State::of(&fd);
            for (options, reason) in refused {
                let text = refusal(&[fd.as_fd()], &options);
                assert!(text.contains(reason), "{text}, not {reason}");
                assert_eq!(State::of(&fd), before, "{reason}");
            }
        }
        for text in
            [open_packet("a", 0, &new()), open_tap("x", 0, &new()), open_tun("x", 0, &new())]
                .map(|result| result.unwrap_err().to_string())
        {
            assert_eq!(text, "queues: expected at least 1, found 0");
        }
    });
}

#[test]
fn what_cannot_be_had_is_left_out_and_said_with_fallback() {
    let options = LinkOptions::new().fallback(true).promiscuous(true).fanout(Fanout::default());
    let link = adopt(vec![seqpackets().0], &options.gso_max_size(9000)).unwrap();
    assert_eq!(
        link.report().notes,
        [
            "no super-frames of 9000 bytes: no segmentation offload",
            "no promiscuous: expected an AF_PACKET socket, found a seqpacket socket",
            "no fanout: expected AF_PACKET sockets, found a seqpacket socket",
        ]
    );
    let got = &link.report().descriptors[0];
    assert!(!got.promiscuous && got.fanout.is_none() && got.filter == 0);
}

/// The last of three fails: the address space is used up by the rings of the others.
#[test]
fn a_failure_at_the_last_descriptor_puts_the_others_back() {
    testkit::in_namespace(|| {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        interface::veth("a", "b", 1500).unwrap();
        let everything = LinkOptions::new()
            .mode(Mode::PacketMmap)
            .promiscuous(true)
            .timestamps(true)
            .filter(vec![EVERYTHING]);
        let fds = [(); 3].map(|()| packet_socket("a").unwrap());
        let borrowed = fds.each_ref().map(AsFd::as_fd);
        let before = fds.each_ref().map(State::of);
        let ring = {
            let link = adopt_borrowed(&borrowed[..1], &everything).unwrap();
            let (report, changed) = (&link.report().descriptors[0], State::of(&fds[0]));
            assert!(report.promiscuous && report.timestamps && report.filter == 1, "{report}");
            assert!(
                changed.options.iter().zip(&before[0].options).filter(|(a, b)| a != b).count() >= 5
            );
            assert_eq!(interface::promiscuity("a").unwrap(), 1);
            u64::try_from(report.ring).unwrap()
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let size: u64 = size.trim_end_matches("kB").trim().parse().unwrap();
        let old = getrlimit(Resource::As);
        let current = Some(size * 1024 + ring * 5 / 2);
        setrlimit(Resource::As, Rlimit { current, maximum: old.maximum }).unwrap();
        let result = adopt_borrowed(&borrowed, &everything);
        let replaced = adopt_borrowed(&borrowed, &everything.clone().fallback(true));
        setrlimit(Resource::As, old).unwrap();
        let text = text(&result.unwrap_err());
        assert!(text.contains("PACKET_RX_RING") && text.contains("descriptor 2"), "{text}");
        // With fallback all have smaller rings, and all the rest.
        let replaced = replaced.unwrap();
        assert_eq!(replaced.report().mode, Mode::PacketMmap);
        assert!(replaced.report().notes[0].contains("not enough memory"));
        let got = &replaced.report().descriptors;
        assert!(got.iter().all(|d| (1..ring).contains(&(d.ring as u64)) && d.filter == 1));
        drop(replaced);
        // Nothing of the first attempt was left, or the second would have been refused for a group
        // that is there already; of the second, its group is.
        let strip = |mut state: State| {
            state.options.remove(6);
            state
        };
        assert_eq!(fds.each_ref().map(|fd| strip(State::of(fd))), before.map(strip));
        assert_eq!(interface::promiscuity("a").unwrap(), 0);
    });
}

#[test]
fn a_failed_set_up_leaves_no_group_behind() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let member = open_packet("a", 2, &LinkOptions::new()).unwrap().into_fds().pop().unwrap();
        let fds = [packet_socket("a").unwrap(), packet_socket("a").unwrap(), member];
        let borrowed = fds.each_ref().map(AsFd::as_fd);
        let before = fds.each_ref().map(State::of);
        let text = refusal(&borrowed, &LinkOptions::new());
        assert!(text.starts_with("descriptor 2 ") && text.contains("in a group"), "{text}");
        assert_eq!(fds.each_ref().map(State::of), before);
        // The others can still be made a link.
        let link = adopt_borrowed(&borrowed[..2], &LinkOptions::new()).unwrap();
        assert!(link.report().descriptors[0].fanout_group.is_some());
    });
}

#[test]
fn without_descriptors_left_nothing_is_made_and_nothing_changed() {
    testkit::in_namespace(|| {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let fd = seqpackets().0;
        let before = State::of(&fd);
        let old = getrlimit(Resource::Nofile);
        // The next number is the lowest free one.
        let next = std::os::fd::AsRawFd::as_raw_fd(&fd.try_clone().unwrap());
        let current = u64::try_from(next).ok();
        setrlimit(Resource::Nofile, Rlimit { current, maximum: old.maximum }).unwrap();
        let borrowed = adopt_borrowed(&[fd.as_fd()], &LinkOptions::new());
        let pair = open_seqpacket_pair(&LinkOptions::new());
        setrlimit(Resource::Nofile, old).unwrap();
        let text = text(&borrowed.unwrap_err());
        assert!(text.starts_with("fcntl(F_DUPFD_CLOEXEC) failed on descriptor 0: "), "{text}");
        assert_eq!(pair.unwrap_err().to_string(), "socketpair failed on AF_UNIX");
        assert_eq!(State::of(&fd), before);
    });
}

/// Until the last of link and queues is gone, and in whatever order they go.
#[test]
fn borrowed_descriptors_go_back_to_what_they_were() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        let frame = packet::pattern_frame(100, 1);
        for mode in Mode::NAMED {
            let fd = packet_socket("a").unwrap();
            let before = State::of(&fd);
            let options = LinkOptions::new().mode(mode).promiscuous(true).timestamps(true);
            let options = options.filter(vec![EVERYTHING]);
            let link = || adopt_borrowed(&[fd.as_fd()], &options).unwrap();
            drop(link());
            assert_eq!(State::of(&fd), before, "{mode}: the link");
            drop(link().into_fds());
            assert_eq!(State::of(&fd), before, "{mode}: its descriptors");
            for rx_first in [true, false] {
                let mut queues = Box::new(link()).into_queues().unwrap().pop().unwrap();
                let mut rx = queues.rx.take().unwrap();
                peer.send(&frame).unwrap();
                assert!(recv(&mut *rx, 1, PATIENCE)[0] == frame);
                queues.tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
                assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), frame);
                if rx_first {
                    drop(rx);
                    assert_ne!(State::of(&fd), before, "{mode}: one of two");
                } else {
                    drop(queues);
                    assert_ne!(State::of(&fd), before, "{mode}: one of two");
                }
            }
            assert_eq!(State::of(&fd), before, "{mode}: the queues");
            assert_eq!(interface::promiscuity("a").unwrap(), 0);
            // And it receives without a ring again.
            peer.send(&frame).unwrap();
            assert_eq!(Peer::on_socket(fd, 0).recv(PATIENCE).unwrap().unwrap(), frame);
        }
    });
}

#[test]
fn pairs_have_large_buffers_at_both_ends() {
    let kinds = [
        (open_seqpacket_pair as fn(&LinkOptions) -> Result<(FdLink, OwnedFd), SetupError>, true),
        (open_datagram_pair, false),
    ];
    for (open, seqpacket) in kinds {
        let (link, far) = open(&LinkOptions::new().in_band_vnet_header(12)).unwrap();
        let kind = if seqpacket { LinkKind::SocketSeqpacket } else { LinkKind::SocketDatagram };
        assert_eq!(link.properties().kind, kind);
        let ours = link.report().descriptors[0].clone();
        let theirs = link.report().far_end.clone().unwrap();
        assert_eq!(
            (ours.receive_buffer, ours.send_buffer),
            (theirs.receive_buffer, theirs.send_buffer)
        );
        let told = testkit::socket_option(far.as_fd(), 1, 8).unwrap();
        assert_eq!(usize::try_from(told).unwrap(), theirs.receive_buffer);
        // Root gets what it asks for; others up to net.core.rmem_max.
        let root = rustix::process::geteuid().is_root();
        assert!(theirs.receive_buffer == 4 << 20 || !root, "{theirs}");
        assert_eq!((ours.vnet_header_len, theirs.vnet_header_len), (12, 12));
        let mut queues = Box::new(link).into_queues().unwrap().pop().unwrap();
        let frame = vec![7; 60_000];
        // Eight of these are more than what sockets hold by default.
        let parts = [IoSlice::new(&frame)];
        let list = [TxFrame::new(&parts); 8];
        let peer = Peer::on_socket(far, 12);
        assert!(queues.tx.send(&list).unwrap().sent == 8 || !root);
        assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), frame);
        peer.send(&frame).unwrap();
        let rx = queues.rx.as_mut().unwrap();
        assert_eq!(recv(&mut **rx, 1, PATIENCE), [frame]);
        drop(peer);
        if seqpacket {
            assert_eq!(common::closed(&mut **rx), Closed::PeerClosed);
        }
    }
    let text = open_seqpacket_pair(&LinkOptions::new().mtu(1)).unwrap_err().to_string();
    assert_eq!(text, "mtu: expected 68 to 65536 bytes, found 1");
}

#[test]
fn a_device_that_is_there_stays_as_it_is() {
    if !testkit::has_tun("a_device_that_is_there_stays_as_it_is") {
        return;
    }
    testkit::in_namespace(|| {
        let fds = open_tap("t", 2, &LinkOptions::new()).unwrap().into_fds();
        testkit::set_tun_vnet_header(fds[0].as_fd(), 12).unwrap();
        let text = text(&open_tap("t", 2, &LinkOptions::new().mtu(1)).unwrap_err());
        assert_eq!(text, "mtu: expected 68 to 65536 bytes, found 1");
        let link = adopt(fds, &LinkOptions::new()).unwrap();
        assert_eq!(link.report().descriptors[0].vnet_header_len, 12);
        // Nor does one more queue change it for the others.
        let more = open_tap("t", 2, &LinkOptions::new()).unwrap();
        assert_eq!(more.report().descriptors[0].vnet_header_len, 12);
        let same = adopt(link.into_fds(), &LinkOptions::new()).unwrap();
        assert_eq!(same.report().descriptors[0].vnet_header_len, 12);
    });
}

#[test]
fn what_means_nothing_to_a_link_is_said() {
    let fd = datagrams().0;
    let group = LinkOptions::new().ethernet(true).address(MacAddr::BROADCAST);
    let found = "found ff:ff:ff:ff:ff:ff";
    let expected = "address: expected a station's address, and no group's";
    assert_eq!(refusal(&[fd.as_fd()], &group), format!("{expected}, {found}"));
    let options = LinkOptions::new().address(MacAddr([2, 0, 0, 0, 0, 1])).socket_buffer(1 << 20);
    let link = adopt(vec![fd], &options).unwrap();
    assert_eq!(link.report().notes, ["no address 02:00:00:00:00:01: no frame has one"]);
    if testkit::has_tun("what_means_nothing_to_a_link_is_said") {
        testkit::in_namespace(|| {
            let options = LinkOptions::new().socket_buffer(1 << 20);
            let link = open_tap("t", 1, &options).unwrap();
            assert_eq!(link.report().notes, ["no socket_buffer on a tap"]);
        });
    }
}

#[test]
fn other_time_stamps_come_back() {
    // asm-generic/socket.h: SO_TIMESTAMP, SO_TIMESTAMP_NEW, SO_TIMESTAMPNS_NEW, SO_TIMESTAMPNS.
    for name in [29, 63, 64, 35] {
        let fd = datagrams().0;
        testkit::set_socket_option(fd.as_fd(), 1, name, 1).unwrap();
        let link = adopt_borrowed(&[fd.as_fd()], &LinkOptions::new().timestamps(true)).unwrap();
        assert!(link.report().descriptors[0].timestamps);
        assert_eq!(testkit::socket_option(fd.as_fd(), 1, 35).unwrap(), 1);
        drop(link);
        assert_eq!(testkit::socket_option(fd.as_fd(), 1, name).unwrap(), 1, "{name}");
    }
}
