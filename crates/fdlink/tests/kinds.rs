//! What belongs to one kind of descriptor: fallbacks, headers in band, VLAN tags, descriptors from
//! elsewhere, macvtap, VSOCK. Rings are in `ring.rs`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::error::Error;
use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use common::{Kind, PATIENCE, Rig, Way, datagrams, recv, seqpackets};
use fdlink::batch::VlanTag;
use fdlink::link::{adopt, open_packet};
use fdlink::offload::vnet::{ChecksumField, Gso, GsoKind, RxChecksum, TxOffload};
use fdlink::{Closed, FdLink, Fill, Link, LinkKind, LinkOptions, Mode, Offload, TxFrame};
use testkit::{Peer, interface, packet};

fn refusal(fds: Vec<OwnedFd>, options: &LinkOptions) -> String {
    let error = adopt(fds, options).expect_err("a refusal");
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[test]
fn a_mode_that_cannot_be_is_an_error_or_replaced_and_reported() {
    let options = LinkOptions::new().mode(Mode::PacketMmap);
    let text = refusal(vec![seqpackets().0], &options);
    assert_eq!(
        text,
        "mode: expected an AF_PACKET socket for packet-mmap, found a seqpacket socket"
    );
    let link = adopt(vec![seqpackets().0], &options.fallback(true)).unwrap();
    let report = link.report();
    assert_eq!((report.asked_mode, report.mode), (Mode::PacketMmap, Mode::Readv));
    assert_eq!(report.notes, ["packet-mmap needs an AF_PACKET socket: readv"]);
    let link = adopt(vec![datagrams().0], &LinkOptions::new()).unwrap();
    assert_eq!((link.report().asked_mode, link.report().mode), (Mode::Auto, Mode::Readv));
    let required = LinkOptions::new().offload(Offload::Required).fallback(true);
    let link = adopt(vec![datagrams().0], &required).unwrap();
    assert_eq!(link.report().notes, ["no offload: a datagram socket without a vnet header"]);
}

#[test]
fn any_datagram_socket_will_do() {
    let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    let link = adopt(vec![a.into()], &LinkOptions::new().ethernet(true)).unwrap();
    assert_eq!(link.properties().kind, LinkKind::SocketDatagram);
    assert_eq!(link.properties().max_frame_len, 1514);
    let mut queues = Box::new(link).into_queues().unwrap();
    let frame = packet::pattern_frame(1514, 7);
    queues[0].tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
    let peer = Peer::on_socket(b.into(), 0);
    assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), frame);
    peer.send(&frame).unwrap();
    assert_eq!(recv(&mut **queues[0].rx.as_mut().unwrap(), 1, PATIENCE), [frame]);
}

/// Without a transport that leads to this machine only the socket itself can be had.
#[test]
fn a_vsock_socket_is_a_seqpacket_socket() {
    use rustix::net::{AddressFamily, SocketType, socket};
    let fd = match socket(AddressFamily::VSOCK, SocketType::SEQPACKET, None) {
        Ok(fd) => fd,
        // The kernel has it not, which no right changes.
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::AFNOSUPPORT);
            return;
        }
    };
    let link = adopt(vec![fd], &LinkOptions::new()).unwrap();
    assert_eq!(link.properties().kind, LinkKind::SocketSeqpacket);
    let rx = Box::new(link).into_queues().unwrap().pop().unwrap().rx;
    // ENOTCONN: it says so once, and does not spin.
    let why = common::closed(&mut *rx.unwrap());
    assert!(matches!(why, Closed::Failed { errno: 107, .. }), "{why}");
}

#[test]
fn a_macvtap_is_a_tap() {
    testkit::in_namespace(|| {
        const NAME: &str = "a_macvtap_is_a_tap";
        if !common::has_macvtap(NAME) {
            return;
        }
        interface::veth("a", "b", 1500).unwrap();
        // Nodes know no namespaces, so the name is to be found nowhere else.
        let name = format!("mvt{}", std::process::id());
        interface::macvtap(&name, "a").unwrap();
        let fd = common::macvtap_node(&name).unwrap();
        let spare = fd.try_clone().unwrap();
        let link = adopt(vec![fd], &LinkOptions::new()).unwrap();
        assert_eq!((link.properties().kind, link.interface()), (LinkKind::Tap, Some(&*name)));
        assert_eq!(link.report().descriptors[0].vnet_header_len, 10);
        let capabilities = link.properties().capabilities;
        assert!(capabilities.tso4 && capabilities.tso6 && capabilities.tx_checksum);
        // Its drops are told by no counter that is known to be the device's.
        assert!(link.device_counters().is_err());
        let mut queues = Box::new(link).into_queues().unwrap().pop().unwrap();
        let rx = queues.rx.as_mut().unwrap();
        let peer = Peer::on_interface("b").unwrap();
        let mut frame = packet::pattern_frame(1514, 3);
        // To everyone, for only what is for its own address comes otherwise.
        frame[..6].fill(0xff);
        peer.send(&frame).unwrap();
        assert_eq!(recv(&mut **rx, 1, PATIENCE), [frame.clone()]);
        let send = |tx: &mut dyn fdlink::Transmit| {
            tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap().sent
        };
        assert_eq!(send(&mut *queues.tx), 1);
        assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), frame);
        let text = refusal(vec![spare.try_clone().unwrap()], &filtered());
        assert!(text.starts_with("ioctl(TUNATTACHFILTER) failed on descriptor 0"), "{text}");
        // When it is gone, the kernel takes what is written and says nothing, nor does poll; so the
        // queue asks to be visited now and then, and finds out.
        assert_eq!(
            (rx.fill().unwrap(), rx.wakeup().after),
            (Fill::Empty, Some(Duration::from_secs(1)))
        );
        interface::remove(&name).unwrap();
        assert_eq!(send(&mut *queues.tx), 1);
        assert_eq!(rx.fill().unwrap(), Fill::Closed(Closed::Removed));
        let text = refusal(vec![spare], &LinkOptions::new());
        assert!(text.contains("descriptor 0 is a macvtap node whose device is gone"), "{text}");
    });
}

fn filtered() -> LinkOptions {
    let everything = fdlink::BpfInstruction { code: 0x06, jt: 0, jf: 0, k: u32::MAX };
    LinkOptions::new().filter(vec![everything])
}

#[test]
fn headers_in_band_carry_offloads_over_any_socket() {
    for len in [10, 12] {
        let (ours, far) = seqpackets();
        let peer = Peer::on_socket(far, len);
        let link = adopt(vec![ours], &LinkOptions::new().in_band_vnet_header(len)).unwrap();
        assert!(link.properties().capabilities.tso4 && link.properties().capabilities.uso);
        assert_eq!(link.properties().gso_max_size, 40 + 44 * 1460);
        let stats = link.stats();
        let mut queues = Box::new(link).into_queues().unwrap();
        let frame = packet::pattern_packet(5000, 1);
        let gso = Gso { kind: GsoKind::TcpV4, size: 1400, header_len: 40, ecn: false };
        let checksum = ChecksumField { start: 20, offset: 16 };
        let offload = TxOffload { checksum: Some(checksum), gso: Some(gso) };
        let parts = [IoSlice::new(&frame)];
        queues[0].tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
        let (vnet, arrived) = peer.recv_with(PATIENCE).unwrap().unwrap();
        assert_eq!((vnet.len(), arrived), (len, frame.clone()));
        peer.send_with(vnet[..10].try_into().unwrap(), &frame).unwrap();
        let rx = queues[0].rx.as_mut().unwrap();
        assert_eq!(rx.fill().unwrap(), Fill::Frames(1));
        let arrived = rx.batch().next().unwrap();
        assert_eq!((arrived.meta().gso, arrived.bytes()), (Some(gso), &frame[..]));
        assert_eq!(arrived.meta().checksum, RxChecksum::Partial(checksum));
        // A header that points past its frame, one that is cut short, and one of a frame of nothing.
        peer.send_with(&[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0], &frame).unwrap();
        rustix::net::send(&peer, &[0; 9], rustix::net::SendFlags::empty()).unwrap();
        peer.send(&[]).unwrap();
        for frames in [0, 0, 1] {
            assert_eq!(rx.fill().unwrap(), Fill::Frames(frames));
        }
        assert!(rx.batch().next().unwrap().bytes().is_empty());
        assert_eq!((stats.rx().frames, stats.rx().malformed), (2, 2));
    }
}

#[test]
fn a_checksum_past_the_end_of_its_frame_is_refused_and_counted() {
    let (ours, far) = seqpackets();
    let link = adopt(vec![ours], &LinkOptions::new()).unwrap();
    let stats = link.stats();
    let mut tx = Box::new(link).into_queues().unwrap().pop().unwrap().tx;
    let offload = TxOffload { checksum: Some(ChecksumField { start: 4, offset: 0 }), gso: None };
    let parts = [IoSlice::new(b"frame")];
    let plain = TxFrame::new(&parts);
    let sent = tx.send(&[plain, plain.with_offload(offload), plain]).unwrap();
    assert_eq!((sent.taken, sent.sent, stats.tx().invalid), (3, 2, 1));
    for offload in [TxOffload::default(), offload, TxOffload::default()] {
        let mut slot = tx.slot(5).unwrap();
        slot.bytes_mut().copy_from_slice(b"slots");
        slot.commit(5, offload);
    }
    let sent = tx.flush().unwrap();
    assert_eq!((sent.taken, sent.sent, stats.tx().invalid), (3, 2, 2));
    let peer = Peer::on_socket(far, 0);
    for expected in [b"frame", b"frame", b"slots", b"slots"] {
        assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), expected);
    }
}

#[test]
fn packet_sockets_must_be_bound() {
    testkit::in_namespace(|| {
        use rustix::net::{AddressFamily, SocketType, socket};
        let open = |kind| socket(AddressFamily::PACKET, kind, None).unwrap();
        let options = LinkOptions::new();
        for kind in [SocketType::RAW, SocketType::DGRAM] {
            let text = refusal(vec![open(kind)], &options);
            assert!(text.contains("bound to no interface"), "{text}");
        }
        let text = open_packet("nosuch", 1, &options).unwrap_err().to_string();
        assert_eq!(text, "ioctl(SIOCGIFINDEX) failed on nosuch");
        interface::veth("a", "b", 1500).unwrap();
        let bound = |name| open_packet(name, 1, &options).unwrap().into_fds().pop().unwrap();
        let text = refusal(vec![bound("a"), bound("b")], &options);
        assert!(text.contains("a packet on b"), "{text}");
        let gone = bound("a");
        interface::remove("a").unwrap();
        let text = refusal(vec![gone], &options);
        assert!(text.contains("gone"), "{text}");
    });
}

#[test]
fn descriptors_are_given_back_and_taken_again() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        let mut fds = open_packet("a", 1, &LinkOptions::new()).unwrap().into_fds();
        for mode in [Mode::PacketMmap, Mode::Readv, Mode::PacketMmap, Mode::RecvMmsg] {
            let link = adopt(fds, &LinkOptions::new().mode(mode)).unwrap();
            assert_eq!(link.properties().mode, mode);
            fds = link.into_fds();
        }
        let spare = fds[0].try_clone().unwrap();
        let link = adopt(fds, &LinkOptions::new().mode(Mode::PacketMmap)).unwrap();
        // The ring is there already.
        let text = refusal(vec![spare], &LinkOptions::new().mode(Mode::PacketMmap));
        assert!(text.contains("descriptor 0") && text.contains("has a ring"), "{text}");
        let mut rx = Box::new(link).into_queues().unwrap().pop().unwrap().rx.unwrap();
        let frame = packet::pattern_frame(100, 1);
        peer.send(&frame).unwrap();
        assert_eq!(recv(&mut *rx, 1, PATIENCE), [frame]);
    });
}

#[test]
fn a_descriptor_of_another_namespace_answers_for_its_own() {
    testkit::in_namespace(|| {
        // Of the same name, to be mistaken for it.
        interface::veth("a", "b", 1500).unwrap();
        let (fds, peer) = testkit::in_second_namespace(|| {
            interface::veth("a", "b", 9000).unwrap();
            let open = || open_packet("a", 1, &LinkOptions::new().offload(Offload::Off)).unwrap();
            let fds: Vec<_> = [open(), open()].into_iter().flat_map(FdLink::into_fds).collect();
            (fds, Peer::on_interface("b").unwrap())
        });
        let link = adopt(fds, &LinkOptions::new().mode(Mode::PacketMmap)).unwrap();
        assert_eq!((link.properties().mtu, link.interface()), (9000, Some("a")));
        assert!(link.properties().capabilities.tso4);
        let descriptors = &link.report().descriptors;
        let set_up = descriptors.iter().all(|d| d.vnet_header_len == 10 && d.ring == 32 << 20);
        assert!(set_up && descriptors[0].fanout_group.is_some(), "{descriptors:?}");
        let mut queues = Box::new(link).into_queues().unwrap();
        let frame = packet::pattern_frame(9014, 1);
        queues[0].tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
        assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), frame);
        peer.send(&frame).unwrap();
        let received = queues.iter_mut().flat_map(|queue| {
            recv(&mut **queue.rx.as_mut().unwrap(), 1, Duration::from_millis(100))
        });
        assert_eq!(received.collect::<Vec<_>>(), [frame]);
    });
}

#[test]
fn vlan_tags_that_the_kernel_took_out_are_told() {
    testkit::in_namespace(|| {
        for way in Way::ALL {
            let mut rig = Rig::new(Kind::Packet, way);
            let plain = rig.kind.frame(100, 1);
            let mut tagged = plain.clone();
            tagged.splice(12..12, [0x81, 0, 0x20, 7]);
            rig.peer.send(&tagged).unwrap();
            rig.peer.send(&plain).unwrap();
            let mut tags = Vec::new();
            while tags.len() < 2 {
                rig.rx.fill().unwrap();
                for frame in rig.rx.batch() {
                    assert_eq!(frame.bytes(), plain, "{way}");
                    tags.push(frame.meta().vlan);
                }
            }
            assert_eq!(tags, [Some(VlanTag { tpid: 0x8100, tci: 0x2007 }), None], "{way}");
        }
    });
}

#[test]
fn without_a_vnet_header_a_partial_checksum_is_still_told() {
    testkit::in_namespace(|| {
        for mode in Mode::NAMED {
            let options = LinkOptions::new().mode(mode).offload(Offload::Off);
            let (link, peer, _) = common::link(Kind::Packet, &options).unwrap();
            assert_eq!(link.report().descriptors[0].vnet_header_len, 0);
            assert_eq!(link.properties().gso_max_size, 0);
            let mut rx = Box::new(link).into_queues().unwrap().pop().unwrap().rx.unwrap();
            let (source, to) = (([192, 0, 2, 1], 5).into(), ([192, 0, 2, 2], 6).into());
            let frame = packet::ethernet_ip([2; 6], [4; 6], &packet::udp(source, to, b"datagram"));
            // NEEDS_CSUM, start 34, offset 6.
            let vnet = [[1, 0], [0, 0], [0, 0], 34_u16.to_ne_bytes(), 6_u16.to_ne_bytes()];
            peer.send_with(vnet.as_flattened().try_into().unwrap(), &frame).unwrap();
            while rx.fill().unwrap() == Fill::Empty {}
            let arrived = rx.batch().next().unwrap();
            let field = ChecksumField { start: 34, offset: 6 };
            assert_eq!(arrived.meta().checksum, RxChecksum::Partial(field), "{mode}");
        }
    });
}

#[test]
fn an_adopted_tap_lets_super_frames_in() {
    testkit::in_namespace(|| {
        if !testkit::has_tun("an_adopted_tap_lets_super_frames_in") {
            return;
        }
        let fds = fdlink::link::open_tap("tap", 1, &LinkOptions::new()).unwrap().into_fds();
        testkit::clear_tun_offloads(fds[0].as_fd()).unwrap();
        interface::up("tap").unwrap();
        let link = adopt(fds, &LinkOptions::new()).unwrap();
        assert!(link.properties().capabilities.uso);
        let mut rx = Box::new(link).into_queues().unwrap().pop().unwrap().rx.unwrap();
        let (source, destination) = (([192, 0, 2, 1], 5).into(), ([192, 0, 2, 2], 6).into());
        let (seq, ack, window, flags) = (1, 1, 1000, packet::flag::ACK);
        let (options, payload) = (&[][..], &[7; 4200][..]);
        let tcp = packet::Tcp { source, destination, seq, ack, window, flags, options, payload };
        let frame = packet::ethernet_ip([2; 6], [4; 6], &packet::tcp(tcp));
        // NEEDS_CSUM, TCPV4; headers of 54 bytes, segments of 1400, start 34, offset 16.
        let words = [54_u16, 1400, 34, 16].map(u16::to_ne_bytes);
        let vnet = [&[1, 1][..], words.as_flattened()].concat();
        let peer = Peer::on_interface("tap").unwrap();
        peer.send_with(vnet[..].try_into().unwrap(), &frame).unwrap();
        assert_eq!(recv(&mut *rx, 1, PATIENCE)[0].len(), frame.len());
    });
}

#[test]
fn several_queues_of_one_tap() {
    testkit::in_namespace(|| {
        if !testkit::has_tun("several_queues_of_one_tap") {
            return;
        }
        let link = fdlink::link::open_tap("many%d", 3, &LinkOptions::new()).unwrap();
        assert_eq!((link.interface(), link.properties().queues), (Some("many0"), 3));
        interface::up("many0").unwrap();
        let peer = Peer::on_interface("many0").unwrap();
        let mut queues = Box::new(link).into_queues().unwrap();
        for (queue, seed) in queues.iter_mut().zip(0..) {
            let frame = packet::pattern_frame(100, seed);
            queue.tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
            assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), frame);
        }
        // Adopted, each descriptor tells what it is.
        let plain = fdlink::link::open_tun("bare", 1, &LinkOptions::new().offload(Offload::Off));
        let link = adopt(plain.unwrap().into_fds(), &LinkOptions::new()).unwrap();
        assert_eq!((link.properties().kind, link.interface()), (LinkKind::Tun, Some("bare")));
        assert_eq!((link.properties().mtu, link.properties().capabilities.tso4), (1500, false));
        let required = LinkOptions::new().offload(Offload::Required);
        let text = refusal(link.into_fds(), &required);
        assert!(text.contains("a tun without a vnet header"), "{text}");
    });
}

#[test]
fn a_link_that_is_not_driven_closes_nothing_but_its_own() {
    let (ours, far) = seqpackets();
    let link: FdLink = adopt(vec![ours], &LinkOptions::new()).unwrap();
    drop(link);
    let link = adopt(vec![far], &LinkOptions::new()).unwrap();
    let mut rx = Box::new(link).into_queues().unwrap().pop().unwrap().rx.unwrap();
    assert_eq!(common::closed(&mut *rx), Closed::PeerClosed);
    assert!(rx.wakeup().descriptor.unwrap().as_fd().try_clone_to_owned().is_ok());
}

/// A full queueing discipline says ENOBUFS, and no readiness follows when it has room again.
#[test]
fn slots_wait_for_a_full_queueing_discipline_and_lists_do_not() {
    testkit::in_namespace(|| {
        const NAME: &str = "slots_wait_for_a_full_queueing_discipline_and_lists_do_not";
        let mut rig = Rig::new(Kind::Packet, Way::READV);
        let shape = "qdisc add dev IF root tbf rate 50mbit burst 10k limit 20k";
        let mut tc = std::process::Command::new("tc");
        tc.args(shape.split(' ').map(|word| if word == "IF" { &rig.interface } else { word }));
        match tc.output() {
            Ok(output) if output.status.success() => {}
            other => return testkit::skip(NAME, &format!("tc: {other:?}")),
        }
        let frame = |i: u16| rig.kind.frame(1000, i.to_be_bytes()[1]);
        let (mut committed, mut received, mut pauses) = (0, 0, 0);
        while committed < 300 || rig.tx.queued() > 0 {
            while committed < 300
                && let Some(mut slot) = rig.tx.slot(1000)
            {
                slot.bytes_mut().copy_from_slice(&frame(committed));
                slot.commit(1000, TxOffload::default());
                committed += 1;
            }
            rig.tx.flush().unwrap();
            if let Some(pause) = rig.tx.wakeup().after {
                assert!(rig.tx.wakeup().descriptor.is_none(), "writable all the while");
                pauses += 1;
                std::thread::sleep(pause);
            }
            while let Some(arrived) = rig.peer.recv(Duration::ZERO).unwrap() {
                assert_eq!(arrived, frame(received));
                received += 1;
            }
        }
        assert!(pauses > 0, "the discipline was never full");
        while received < 300 {
            assert_eq!(rig.peer.recv(PATIENCE).unwrap().expect("the rest"), frame(received));
            received += 1;
        }
        assert_eq!((rig.stats.tx().frames, rig.stats.tx().no_buffers), (300, 0));
        // A gathered frame is the caller's memory and cannot wait.
        let bytes = frame(0);
        let parts = [IoSlice::new(&bytes)];
        let sent = rig.tx.send(&[TxFrame::new(&parts); 200]).unwrap();
        let tx = rig.stats.tx();
        assert_eq!((sent.taken, tx.frames), (200, 300 + sent.sent as u64));
        assert_eq!(tx.no_buffers, (sent.taken - sent.sent) as u64);
        assert!(tx.no_buffers > 0);
    });
}
