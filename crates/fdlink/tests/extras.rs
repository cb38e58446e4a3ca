//! What may be asked of a link beside frames: promiscuous mode, filters, time stamps, the size of a
//! batch, what the device dropped.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{ErrorKind, IoSlice};
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use common::{Kind, PATIENCE, QUIET, datagrams, recv, seqpackets};
use fdlink::link::{adopt, adopt_borrowed, open_packet, open_tap, open_tun};
use fdlink::{BpfInstruction, FdLink, Fill, Link, LinkOptions, Mode, QueuePair, Receive, TxFrame};
use testkit::{Peer, interface, packet, packet_socket};

fn rx_of(link: FdLink) -> Box<dyn Receive> {
    Box::new(link).into_queues().unwrap().pop().unwrap().rx.unwrap()
}

/// What comes: `count` frames, and whatever should not have come behind them.
fn all_of(rx: &mut dyn Receive, count: usize) -> Vec<Vec<u8>> {
    let mut frames = recv(rx, count, PATIENCE);
    frames.extend(recv(rx, usize::MAX, QUIET));
    frames
}

/// What comes on any of several queues.
fn all_of_any(queues: &mut [QueuePair], count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let end = Instant::now() + PATIENCE;
    loop {
        let complete = frames.len() >= count || Instant::now() > end;
        for queue in &mut *queues {
            let rx = queue.rx.as_mut().unwrap();
            frames.extend(recv(&mut **rx, usize::MAX, if complete { QUIET } else { BRIEF }));
        }
        if complete {
            return frames;
        }
    }
}

const BRIEF: Duration = Duration::from_millis(2);

/// Keeps frames whose byte at `offset` is `value`.
fn byte_is(offset: u32, value: u32) -> Vec<BpfInstruction> {
    let new = |code, jf, k| BpfInstruction { code, jt: 0, jf, k };
    // BPF_LD | BPF_B | BPF_ABS, BPF_JMP | BPF_JEQ, BPF_RET, BPF_RET.
    vec![new(0x30, 0, offset), new(0x15, 1, value), new(0x06, 0, u32::MAX), new(0x06, 0, 0)]
}

#[test]
fn an_interface_is_promiscuous_as_long_as_its_link() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let promiscuity = || interface::promiscuity("a").unwrap();
        let options = LinkOptions::new().promiscuous(true);
        let link = open_packet("a", 2, &options).unwrap();
        assert!(link.report().descriptors.iter().all(|got| got.promiscuous));
        assert_eq!(promiscuity(), 2);
        let mut queues = Box::new(link).into_queues().unwrap();
        queues.pop();
        assert_eq!(promiscuity(), 1);
        drop(queues);
        assert_eq!(promiscuity(), 0);
        let plain = open_packet("a", 1, &LinkOptions::new()).unwrap();
        assert!(!plain.report().descriptors[0].promiscuous && promiscuity() == 0);
        let fds = plain.into_fds();
        let borrowed = adopt_borrowed(&[fds[0].as_fd()], &options).unwrap();
        assert_eq!(promiscuity(), 1);
        drop(borrowed);
        assert_eq!(promiscuity(), 0);
    });
}

/// Neither what comes later nor what waited when the link was made.
#[test]
fn a_filter_lets_in_what_it_keeps_and_nothing_else() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        // The first byte behind the Ethernet header.
        let options = LinkOptions::new().filter(byte_is(14, 2));
        let frames = [1, 2, 3, 2].map(|seed| packet::pattern_frame(100, seed));
        for mode in Mode::NAMED {
            let options = options.clone().mode(mode);
            let waiting = packet_socket("a").unwrap();
            frames.iter().for_each(|frame| peer.send(frame).unwrap());
            for fds in [vec![waiting], open_packet("a", 1, &LinkOptions::new()).unwrap().into_fds()]
            {
                let link = adopt(fds, &options).unwrap();
                assert_eq!(link.report().descriptors[0].filter, 4);
                let mut rx = rx_of(link);
                frames.iter().for_each(|frame| peer.send(frame).unwrap());
                let received = all_of(&mut *rx, 2);
                assert_eq!(received, [frames[1].clone(), frames[3].clone()], "{mode}");
            }
            // Several, behind the filter that keeps a ring empty until the group is there.
            let link = open_packet("a", 3, &options).unwrap();
            let mut queues = Box::new(link).into_queues().unwrap();
            frames.iter().for_each(|frame| peer.send(frame).unwrap());
            let all = all_of_any(&mut queues, 2);
            assert_eq!(all, [frames[1].clone(), frames[3].clone()], "{mode}");
        }
    });
}

#[test]
fn a_filter_on_plain_sockets() {
    for (ours, far) in [seqpackets(), datagrams()] {
        let peer = Peer::on_socket(far, 0);
        peer.send(&[1, 1]).unwrap();
        let link = adopt(vec![ours], &LinkOptions::new().filter(byte_is(0, 2))).unwrap();
        let mut rx = rx_of(link);
        for message in [[1, 2], [2, 3], [3, 4]] {
            peer.send(&message).unwrap();
        }
        assert_eq!(all_of(&mut *rx, 1), [[2, 3]]);
    }
    let (ours, far) = udp_pair();
    // Behind the 8 bytes of the UDP header.
    let mut rx = rx_of(adopt(vec![ours], &LinkOptions::new().filter(byte_is(8, 2))).unwrap());
    for message in [[1, 2], [2, 3], [3, 4]] {
        far.send(&message).unwrap();
    }
    assert_eq!(all_of(&mut *rx, 1), [[2, 3]]);
}

fn udp_pair() -> (OwnedFd, UdpSocket) {
    let [a, b] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    (a.into(), b)
}

/// It is the device's, so it would outlive the descriptors of a device that stays.
#[test]
fn a_filter_on_a_tap_goes_with_the_link() {
    testkit::in_namespace(|| {
        if !testkit::has_tun("a_filter_on_a_tap_goes_with_the_link") {
            return;
        }
        let fds = open_tap("tap", 2, &LinkOptions::new()).unwrap().into_fds();
        interface::up("tap").unwrap();
        let peer = Peer::on_interface("tap").unwrap();
        let frames = [1, 2, 3].map(|seed| packet::pattern_frame(100, seed));
        frames.iter().for_each(|frame| peer.send(frame).unwrap());
        let stays: Vec<_> = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
        let options = LinkOptions::new().filter(byte_is(14, 2));
        let link = adopt(fds, &options).unwrap();
        assert!(link.report().descriptors.iter().all(|got| got.filter == 4));
        let counters = link.device_counters().unwrap();
        let mut queues = Box::new(link).into_queues().unwrap();
        // A frame that is refused looks like one for which there is no room, so sending may fail.
        let send = || frames.iter().for_each(|frame| drop(peer.send(frame)));
        send();
        assert_eq!(all_of_any(&mut queues, 1), frames[1..2]);
        assert_eq!(counters.dropped().unwrap(), 2);
        // It stays for the other queue.
        drop(queues.remove(0));
        send();
        assert_eq!(counters.dropped().unwrap(), 4);
        drop(queues);
        let mut queues =
            Box::new(adopt(stays, &LinkOptions::new()).unwrap()).into_queues().unwrap();
        send();
        // With what waited: one kept by the filter.
        assert_eq!(all_of_any(&mut queues, 4).len(), 3 + 1);
    });
}

#[test]
fn the_kernel_says_when_it_took_a_frame_in() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        // So that it does not end in between.
        let (asking, _far) = udp_pair();
        let _asking = adopt(vec![asking], &LinkOptions::new().timestamps(true)).unwrap();
        for mode in [Mode::Readv, Mode::RecvMmsg] {
            let frame = packet::pattern_frame(100, 1);
            for asked in [true, false] {
                let options = LinkOptions::new().mode(mode).timestamps(asked);
                let (unix, far) = seqpackets();
                let (datagram, far_datagram) = datagrams();
                let (udp, far_udp) = udp_pair();
                let sockets = [
                    (packet_socket("a").unwrap(), Peer::on_interface("b").unwrap()),
                    (unix, Peer::on_socket(far, 0)),
                    (datagram, Peer::on_socket(far_datagram, 0)),
                    (udp, Peer::on_socket(far_udp.into(), 0)),
                ];
                for (ours, peer) in sockets {
                    let link = adopt(vec![ours], &options).unwrap();
                    let kind = link.properties().kind;
                    assert_eq!(link.report().descriptors[0].timestamps, asked);
                    let mut rx = rx_of(link);
                    let mut exchange = || {
                        peer.send(&frame).unwrap();
                        // Long before it is read.
                        std::thread::sleep(Duration::from_millis(20));
                        let read = SystemTime::now();
                        while rx.fill().unwrap() == Fill::Empty {}
                        let frame = rx.batch().next().unwrap();
                        frame.meta().timestamp.map(|stamp| (stamp, read))
                    };
                    // The kernel begins to look at the clock a moment after it was first asked.
                    let end = Instant::now() + PATIENCE;
                    while exchange().is_some_and(|(stamp, read)| stamp >= read) {
                        assert!(Instant::now() < end, "{kind:?} {mode}: stamped when read");
                    }
                    let before = SystemTime::now();
                    let stamps = [exchange(), exchange()];
                    assert_eq!(stamps.map(|stamp| stamp.is_some()), [asked; 2], "{kind:?} {mode}");
                    for (stamp, read) in stamps.into_iter().flatten() {
                        assert!(before <= stamp && stamp < read, "{kind:?} {mode}");
                    }
                    assert!(stamps[0].map(|s| s.0) < stamps[1].map(|s| s.0) || !asked);
                }
            }
        }
    });
}

#[test]
fn a_call_brings_as_many_frames_as_it_was_told() {
    for batch in [1, 7, 1024] {
        let (ours, far) = seqpackets();
        let options = LinkOptions::new().mode(Mode::RecvMmsg).batch(batch);
        let link = adopt(vec![ours], &options).unwrap();
        let stats = link.stats();
        let mut rx = rx_of(link);
        let peer = Peer::on_socket(far, 0);
        (0..40).for_each(|seed| peer.send(&[seed, 7]).unwrap());
        let mut frames = Vec::new();
        while let Fill::Frames(count) = rx.fill().unwrap() {
            assert!(count <= batch);
            frames.extend(rx.batch().map(|frame| frame.bytes()[0]));
        }
        assert_eq!(frames, (0..40).collect::<Vec<_>>());
        assert_eq!(stats.rx().batches, 40_u64.div_ceil(u64::try_from(batch).unwrap()));
    }
}

#[test]
fn what_a_device_dropped_is_told_to_the_frame() {
    testkit::in_namespace(|| {
        if !testkit::has_tun("what_a_device_dropped_is_told_to_the_frame") {
            return;
        }
        for kind in [Kind::Tap, Kind::Tun] {
            let (link, peer, name) = common::link(kind, &LinkOptions::new()).unwrap();
            assert_eq!(link.device_drops().unwrap(), 0);
            let counters = link.device_counters().unwrap();
            assert_eq!(counters.interface(), name);
            let stats = link.stats();
            let mut rx = rx_of(link);
            // More than a device's queue takes. Whether the sender hears of a drop depends on the
            // queueing discipline.
            (0..1500).for_each(|_| drop(peer.send(&kind.frame(100, 1))));
            let received = all_of(&mut *rx, 500).len();
            let dropped = std::thread::scope(|scope| scope.spawn(|| counters.dropped()).join());
            let dropped = dropped.unwrap().unwrap();
            assert_eq!(u64::try_from(received).unwrap() + dropped, 1500, "{kind:?}");
            assert!(dropped > 0 && stats.rx().frames == 1500 - dropped);
            drop(rx);
            let gone = counters.dropped().unwrap_err();
            assert_eq!(gone.raw_os_error(), Some(19), "ENODEV: {gone}");
        }
    });
}

#[test]
fn a_device_elsewhere_is_not_mistaken_for_one_of_its_name_here() {
    testkit::in_namespace(|| {
        const NAME: &str = "a_device_elsewhere_is_not_mistaken_for_one_of_its_name_here";
        if !testkit::has_tun(NAME) {
            return;
        }
        let here = open_tap("same", 1, &LinkOptions::new()).unwrap();
        interface::set_mtu("same", 9000).unwrap();
        let counters = here.device_counters().unwrap();
        let (fds, told) = testkit::in_second_namespace(|| {
            let link = open_tun("same", 1, &LinkOptions::new()).unwrap();
            assert_eq!(link.device_drops().unwrap(), 0);
            (link.into_fds(), counters.dropped().unwrap())
        });
        assert_eq!(told, 0);
        let link = adopt(fds, &LinkOptions::new()).unwrap();
        assert_eq!(link.properties().mtu, 1500);
        assert_eq!(link.report().notes, ["the interface's MTU is not known here: 1500"]);
        let error = link.device_counters().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.to_string(), "same is in another network namespace");
        let socket = adopt(vec![seqpackets().0], &LinkOptions::new()).unwrap();
        assert_eq!(socket.device_drops().unwrap_err().kind(), ErrorKind::Unsupported);
    });
}

#[test]
fn borrowed_devices_are_blocking_again() {
    testkit::in_namespace(|| {
        if !testkit::has_tun("borrowed_devices_are_blocking_again") {
            return;
        }
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        let fd = open_tap("tap", 1, &LinkOptions::new()).unwrap().into_fds().pop().unwrap();
        interface::up("tap").unwrap();
        let peer = Peer::on_interface("tap").unwrap();
        fcntl_setfl(&fd, fcntl_getfl(&fd).unwrap() - OFlags::NONBLOCK).unwrap();
        let link = adopt_borrowed(&[fd.as_fd()], &LinkOptions::new()).unwrap();
        assert!(fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK));
        let mut queues = Box::new(link).into_queues().unwrap().pop().unwrap();
        let frame = packet::pattern_frame(100, 1);
        queues.tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
        assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), frame);
        drop(queues);
        assert!(!fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK));
    });
}

#[test]
fn a_part_of_a_frame_that_a_filter_keeps_is_counted_and_not_delivered() {
    testkit::in_namespace(|| {
        // The frame's first 50 bytes; of a cooked socket's, those behind the link header.
        let part = BpfInstruction { code: 0x06, jt: 0, jf: 0, k: 50 };
        for kind in [Kind::Packet, Kind::Cooked] {
            for way in kind.ways() {
                let options = way.options().filter(vec![part]);
                let (link, peer, _) = common::link(kind, &options).unwrap();
                let stats = link.stats();
                let mut rx = rx_of(link);
                let whole = kind.frame(50, 1);
                peer.send(&kind.frame(100, 2)).unwrap();
                peer.send(&whole).unwrap();
                assert_eq!(all_of(&mut *rx, 1), [whole], "{kind:?} {way}");
                assert_eq!(stats.rx().truncated, 1, "{kind:?} {way}");
            }
        }
    });
}
