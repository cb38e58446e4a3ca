//! What a socket says beside its messages, and must neither end a queue nor keep it busy: errors of
//! earlier sends, an error queue, an end of receiving. And datagrams that its owner had merged.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use common::{PATIENCE, QUIET, Way, datagrams, readable, recv, seqpackets, udp_sockets};
use fdlink::link::{adopt, adopt_borrowed, open_packet};
use fdlink::{Closed, Fill, Link, LinkOptions, QueuePair, Receive, TxFrame};
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketType, ipproto, sendto, shutdown, socket,
};
use testkit::{Peer, interface, packet};

const WAYS: [Way; 2] = [Way::READV, Way::RECVMMSG];

fn queue(fd: OwnedFd, options: &LinkOptions) -> QueuePair {
    Box::new(adopt(vec![fd], options).unwrap()).into_queues().unwrap().pop().unwrap()
}

/// Fills as a level-triggered loop does, until it would sleep or has ended.
fn until_quiet(rx: &mut dyn Receive) -> Option<Closed> {
    for _ in 0..100 {
        if let Fill::Closed(why) = rx.fill().unwrap() {
            return Some(why);
        }
        if !readable(rx, QUIET) {
            return None;
        }
    }
    panic!("ready for ever, with nothing to receive");
}

/// An ICMP message that a datagram could not be delivered, as a router sends it.
fn icmp_error(kind: u8, code: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    // Of "fragmentation needed" (RFC 1191) the last two bytes are an MTU.
    let mut message = vec![kind, code, 0, 0, 0, 0, 2, 88];
    message.extend(&packet::udp(source, destination, &[0; 8])[..28]);
    let sum = packet::checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

#[test]
fn no_icmp_message_ends_a_queue() {
    testkit::in_namespace(|| {
        interface::up("lo").unwrap();
        let router = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
        for way in WAYS {
            let (ours, far) = udp_sockets();
            let socket = UdpSocket::from(ours.try_clone().unwrap());
            let (source, destination) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
            let mut queue = queue(ours, &way.options());
            let rx = &mut **queue.rx.as_mut().unwrap();
            let peer = Peer::on_socket(far, 0);
            // Every code of "destination unreachable" (RFC 792, RFC 1812), and a parameter problem.
            for (kind, code) in (0..16).map(|code| (3, code)).chain([(12, 0)]) {
                let error = icmp_error(kind, code, source, destination);
                sendto(&router, &error, SendFlags::empty(), &source).unwrap();
                // Behind it on the same interface.
                peer.send(&[kind, code]).unwrap();
                assert_eq!(recv(rx, 1, PATIENCE), [[kind, code]], "{way}");
            }
        }
    });
}

#[test]
fn what_is_on_an_error_queue_keeps_nobody_busy() {
    // linux/in.h; asm-generic/socket.h and linux/net_tstamp.h: a stamp for each frame that leaves.
    const IP_RECVERR: (i32, i32) = (0, 11);
    const SO_TIMESTAMPING: (i32, i32) = (1, 37);
    const STAMPS: i32 = 1 << 1 | 1 << 4;
    let set = |fd: &OwnedFd, (level, name), value| {
        testkit::set_socket_option(fd.as_fd(), level, name, value).unwrap();
    };
    testkit::in_namespace(|| {
        interface::up("lo").unwrap();
        for way in WAYS {
            let (ours, far) = udp_sockets();
            set(&ours, IP_RECVERR, 1);
            let mut queue = queue(ours, &way.options());
            drop(far);
            queue.tx.send(&[TxFrame::new(&[IoSlice::new(b"to nobody")])]).unwrap();
            assert_eq!(until_quiet(&mut **queue.rx.as_mut().unwrap()), None, "{way}");
        }
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        for way in Way::ALL {
            let ours = testkit::packet_socket("a").unwrap();
            set(&ours, SO_TIMESTAMPING, STAMPS);
            let mut queue = queue(ours, &way.options());
            let frame = packet::pattern_frame(100, 1);
            queue.tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
            let rx = &mut **queue.rx.as_mut().unwrap();
            assert_eq!(until_quiet(rx), None, "{way}");
            peer.send(&frame).unwrap();
            assert_eq!(recv(rx, 1, PATIENCE), [frame], "{way}");
        }
    });
}

#[test]
fn a_datagram_socket_that_was_shut_down_for_receiving_ends_its_queue() {
    testkit::in_namespace(|| {
        interface::up("lo").unwrap();
        for (way, (ours, far)) in
            WAYS.iter().flat_map(|way| [(way, datagrams()), (way, udp_sockets())])
        {
            let shared = ours.try_clone().unwrap();
            let mut queue = queue(ours, &way.options());
            let rx = &mut **queue.rx.as_mut().unwrap();
            Peer::on_socket(far, 0).send(b"before").unwrap();
            shutdown(&shared, Shutdown::Read).unwrap();
            assert_eq!(recv(rx, 1, PATIENCE), [b"before"], "{way}");
            assert_eq!(until_quiet(rx), Some(Closed::Stopped), "{way}");
        }
    });
}

#[test]
fn one_look_after_waiting_finds_that_an_interface_went() {
    testkit::in_namespace(|| {
        for way in Way::ALL {
            interface::veth("a", "b", 1500).unwrap();
            let mut queues =
                Box::new(open_packet("a", 1, &way.options()).unwrap()).into_queues().unwrap();
            let rx = queues[0].rx.as_mut().unwrap();
            while rx.fill().unwrap() != Fill::Empty {}
            rx.release();
            interface::remove("a").unwrap();
            // Whoever waits for edges gets one, and is told to look again by the clock.
            assert!(readable(&**rx, PATIENCE), "{way}");
            assert!(!matches!(rx.fill().unwrap(), Fill::Closed(_)), "{way}");
            assert!(rx.wakeup().after.is_some(), "{way}");
            assert_eq!(common::closed(&mut **rx), Closed::Removed, "{way}");
        }
    });
}

#[test]
fn what_a_peer_sent_before_it_closed_comes_whatever_it_left_unread() {
    for way in WAYS {
        let (ours, far) = seqpackets();
        let mut queue = queue(ours, &way.options());
        queue.tx.send(&[TxFrame::new(&[IoSlice::new(b"unread")])]).unwrap();
        let peer = Peer::on_socket(far, 0);
        (0..3).for_each(|serial| peer.send(&[serial]).unwrap());
        // The kernel tells ECONNRESET before what waits.
        drop(peer);
        let rx = &mut **queue.rx.as_mut().unwrap();
        assert_eq!(recv(rx, 3, PATIENCE), [[0], [1], [2]], "{way}");
        assert_eq!(until_quiet(rx), Some(Closed::PeerClosed), "{way}");
    }
}

#[test]
fn what_came_before_an_interface_was_removed_comes_first() {
    testkit::in_namespace(|| {
        for way in Way::ALL {
            interface::veth("a", "b", 1500).unwrap();
            let mut queues =
                Box::new(open_packet("a", 1, &way.options()).unwrap()).into_queues().unwrap();
            let rx = &mut **queues[0].rx.as_mut().unwrap();
            let peer = Peer::on_interface("b").unwrap();
            let frames = [1, 2, 3].map(|serial| packet::pattern_frame(100, serial));
            frames.iter().for_each(|frame| peer.send(frame).unwrap());
            interface::remove("a").unwrap();
            assert_eq!(recv(rx, 3, PATIENCE), frames, "{way}");
            assert_eq!(common::closed(rx), Closed::Removed, "{way}");
        }
    });
}

#[test]
fn drops_count_from_when_the_link_was_built() {
    testkit::in_namespace(|| {
        for way in WAYS {
            let (ours, far) = udp_sockets();
            // SOL_SOCKET, SO_RCVBUF: the least there is, which holds one.
            testkit::set_socket_option(ours.as_fd(), 1, 8, 1).unwrap();
            let peer = Peer::on_socket(far, 0);
            let send = || (0..5).for_each(|_| peer.send(&[7; 1000]).unwrap());
            send();
            let link = adopt(vec![ours], &way.options().socket_buffer(1)).unwrap();
            send();
            let stats = link.stats();
            let mut queue = Box::new(link).into_queues().unwrap().pop().unwrap();
            let rx = &mut **queue.rx.as_mut().unwrap();
            recv(rx, usize::MAX, QUIET);
            rx.update_stats();
            assert_eq!((stats.rx().frames, stats.rx().kernel_drops), (1, 5), "{way}");
        }
    });
}

#[test]
fn datagrams_are_neither_merged_nor_cut() {
    // linux/udp.h
    const UDP_SEGMENT: (i32, i32) = (17, 103);
    const UDP_GRO: (i32, i32) = (17, 104);
    let set = |fd: &OwnedFd, (level, name), value| {
        testkit::set_socket_option(fd.as_fd(), level, name, value).unwrap();
    };
    let get = |fd: &OwnedFd, (level, name)| testkit::socket_option(fd.as_fd(), level, name);
    testkit::in_namespace(|| {
        interface::up("lo").unwrap();
        for way in WAYS {
            let (ours, far) = udp_sockets();
            set(&ours, UDP_GRO, 1);
            set(&ours, UDP_SEGMENT, 100);
            set(&far, UDP_SEGMENT, 100);
            let link = adopt_borrowed(&[ours.as_fd()], &way.options()).unwrap();
            let mut queue = Box::new(link).into_queues().unwrap().pop().unwrap();
            let peer = Peer::on_socket(far, 0);
            peer.send(&[7; 300]).unwrap();
            let rx = &mut **queue.rx.as_mut().unwrap();
            assert_eq!(recv(rx, 3, PATIENCE), [[7; 100]; 3], "{way}");
            queue.tx.send(&[TxFrame::new(&[IoSlice::new(&[8; 300])])]).unwrap();
            assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), [8; 300], "{way}");
            drop(queue);
            assert_eq!((get(&ours, UDP_GRO).unwrap(), get(&ours, UDP_SEGMENT).unwrap()), (1, 100));
        }
    });
}
