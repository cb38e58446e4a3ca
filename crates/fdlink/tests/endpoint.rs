//! The push shape: threads that deliver, and how they end.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use common::recorder::{Event, next, over, recorder};
use common::{Kind, PATIENCE, QUIET, seqpackets};
use fdlink::batch::RxMeta;
use fdlink::link::{FramePrefix, adopt};
use fdlink::queue::Wakeup;
use fdlink::stats::LinkStats;
use fdlink::{
    AttachError, Closed, Endpoint, EtherType, FdLink, HandOverError, InjectError,
    InjectableEndpoint, JoinError, Link, LinkEndpoint, LinkOptions, LinkProperties, MacAddr, Mode,
    QueuePair, Report, Sent, SetupError, Transmit, TxFrame, TxPacket, TxSlot, WritePolicy,
};
use testkit::{Peer, packet};

#[test]
fn delivers_until_stopped_and_can_be_attached_again() {
    for mode in [Mode::Readv, Mode::RecvMmsg] {
        let ((a, far_a), (b, far_b)) = (seqpackets(), seqpackets());
        let peers = [far_a, far_b].map(|fd| Peer::on_socket(fd, 0));
        let endpoint = over(vec![a, b], &LinkOptions::new().mode(mode));
        for _ in 0..3 {
            assert!(!endpoint.is_attached());
            let (dispatcher, events) = recorder(|| {});
            endpoint.attach(Arc::clone(&dispatcher)).unwrap();
            assert!(endpoint.is_attached());
            let again = endpoint.attach(dispatcher);
            assert!(matches!(again, Err(AttachError::AlreadyAttached)));
            for (index, peer) in peers.iter().enumerate() {
                peer.send(b"one").unwrap();
                assert_eq!(next(&events), Event::Frame(index, b"one".to_vec()));
            }
            // Both threads wait in poll by now.
            std::thread::sleep(QUIET);
            let begin = Instant::now();
            endpoint.stop();
            endpoint.join().unwrap();
            assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
            let mut closed = [next(&events), next(&events)];
            closed.sort_by_key(|event| matches!(event, Event::Closed(1, _)));
            assert_eq!(closed, [0, 1].map(|index| Event::Closed(index, Closed::Stopped)));
            assert!(events.recv().is_err(), "one notice for each descriptor, and the end");
        }
        assert_eq!((endpoint.stats().rx().frames, endpoint.stats().rx().bytes), (6, 18));
        // Stop and join of what is not attached are nothing.
        endpoint.stop();
        endpoint.join().unwrap();
    }
}

#[test]
fn each_descriptor_ends_on_its_own_with_the_reason() {
    let ((a, far_a), (b, far_b)) = (seqpackets(), seqpackets());
    let endpoint = over(vec![a, b], &LinkOptions::new());
    let (dispatcher, events) = recorder(|| {});
    endpoint.attach(dispatcher).unwrap();
    drop(far_a);
    assert_eq!(next(&events), Event::Closed(0, Closed::PeerClosed));
    Peer::on_socket(far_b, 0).send(b"last").unwrap();
    assert_eq!(next(&events), Event::Frame(1, b"last".to_vec()));
    assert_eq!(next(&events), Event::Closed(1, Closed::PeerClosed));
    // Without a stop: everything has ended.
    endpoint.join().unwrap();
}

#[test]
fn a_panicking_dispatcher_ends_its_queue_only() {
    let ((a, far_a), (b, far_b)) = (seqpackets(), seqpackets());
    let peers = [far_a, far_b].map(|fd| Peer::on_socket(fd, 0));
    let endpoint = over(vec![a, b], &LinkOptions::new());
    let calls = Mutex::new(0);
    let (dispatcher, events) = recorder(move || {
        let first = {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            *calls == 1
        };
        assert!(!first, "on purpose");
    });
    endpoint.attach(dispatcher).unwrap();
    peers[0].send(b"x").unwrap();
    assert_eq!(next(&events), Event::Frame(0, b"x".to_vec()));
    assert_eq!(next(&events), Event::Closed(0, Closed::Panicked));
    peers[1].send(b"y").unwrap();
    assert_eq!(next(&events), Event::Frame(1, b"y".to_vec()));
    endpoint.stop();
    endpoint.join().unwrap();
    assert_eq!(next(&events), Event::Closed(1, Closed::Stopped));
}

#[test]
fn stop_and_join_from_within_a_delivery() {
    let (ours, far) = seqpackets();
    let endpoint = Arc::new(over(vec![ours], &LinkOptions::new()));
    let weak: Weak<Endpoint> = Arc::downgrade(&endpoint);
    let (dispatcher, events) = recorder(move || {
        let endpoint = weak.upgrade().unwrap();
        assert_eq!(endpoint.join(), Err(JoinError::OwnThread));
        endpoint.stop();
        endpoint.write_raw(b"from within").unwrap();
    });
    endpoint.attach(dispatcher).unwrap();
    let peer = Peer::on_socket(far, 0);
    peer.send(b"x").unwrap();
    assert_eq!(next(&events), Event::Frame(0, b"x".to_vec()));
    assert_eq!(next(&events), Event::Closed(0, Closed::Stopped));
    assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), b"from within");
    endpoint.join().unwrap();
}

#[test]
fn the_last_owner_may_be_the_dispatcher() {
    let (ours, far) = seqpackets();
    let endpoint = Arc::new(over(vec![ours], &LinkOptions::new()));
    let held = Mutex::new(None);
    let held = Arc::new(held);
    let inner = Arc::clone(&held);
    let (dispatcher, events) = recorder(move || {
        drop::<Option<Arc<Endpoint>>>(inner.lock().unwrap().take());
    });
    endpoint.attach(dispatcher).unwrap();
    *held.lock().unwrap() = Some(endpoint);
    Peer::on_socket(far, 0).send(b"x").unwrap();
    assert_eq!(next(&events), Event::Frame(0, b"x".to_vec()));
    assert_eq!(next(&events), Event::Closed(0, Closed::Stopped));
}

#[test]
fn dropping_an_attached_endpoint_ends_its_threads_and_closes_its_descriptors() {
    let open = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let (ours, far) = seqpackets();
    let endpoint = over(vec![ours], &LinkOptions::new());
    let (dispatcher, events) = recorder(|| {});
    endpoint.attach(dispatcher).unwrap();
    assert!(open() > 1);
    drop(endpoint);
    assert_eq!(next(&events), Event::Closed(0, Closed::Stopped));
    assert!(events.recv().is_err(), "the thread has let go of its dispatcher");
    let error = Peer::on_socket(far, 0).send(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn packets_get_their_link_header_from_their_route() {
    let own: MacAddr = "02:00:00:00:00:01".parse().unwrap();
    let other: MacAddr = "02:00:00:00:00:02".parse().unwrap();
    let third = MacAddr([4; 6]);
    let (ours, far) = seqpackets();
    let endpoint = over(vec![ours], &LinkOptions::new().ethernet(true).address(own));
    assert_eq!((endpoint.link_address(), endpoint.max_header_len()), (Some(own), 14));
    assert_eq!((endpoint.mtu(), endpoint.gso_max_size()), (1500, 0));
    assert!(endpoint.capabilities().resolution_required);
    let body = packet::pattern_packet(100, 1);
    let parts = [IoSlice::new(&body[..20]), IoSlice::new(&body[20..])];
    let routed = TxPacket::new(other, EtherType::IPV4, &parts);
    let from_third = TxPacket { local: Some(third), ..routed };
    assert_eq!(endpoint.write_packets(&[routed, from_third]).unwrap().sent, 2);
    let peer = Peer::on_socket(far, 0);
    for source in [own, third] {
        let expected = packet::ethernet_ip(other.0, source.0, &body);
        assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), expected);
    }
    endpoint.write_raw(b"as it is").unwrap();
    assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), b"as it is");
    let refused = endpoint.write_raw(&[]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn flows_are_spread_over_descriptors_and_keep_their_order() {
    let (ours, far): (Vec<_>, Vec<_>) = (0..4).map(|_| seqpackets()).unzip();
    let peers: Vec<_> = far.into_iter().map(|fd| Peer::on_socket(fd, 0)).collect();
    let endpoint = over(ours, &LinkOptions::new());
    let bodies: Vec<_> = (0..200_u16)
        .map(|i| {
            let source = ([192, 0, 2, 1], i % 20).into();
            packet::udp(source, ([192, 0, 2, 2], 9).into(), &[u8::try_from(i / 20).unwrap()])
        })
        .collect();
    let parts: Vec<_> = bodies.iter().map(|body| [IoSlice::new(body)]).collect();
    let to = MacAddr::BROADCAST;
    let list: Vec<_> = parts.iter().map(|p| TxPacket::new(to, EtherType::IPV4, p)).collect();
    let sent = endpoint.write_packets(&list).unwrap();
    assert_eq!((sent.taken, sent.sent), (200, 200));
    let (mut owner, mut total) = ([None; 20], 0);
    for (index, peer) in peers.iter().enumerate() {
        let mut order = [0; 20];
        while let Some(packet) = peer.recv(Duration::ZERO).unwrap() {
            let flow = usize::from(packet[21]);
            assert_eq!(*owner[flow].get_or_insert(index), index, "flow {flow}");
            assert_eq!(packet[28], order[flow], "order of flow {flow}");
            order[flow] += 1;
            total += 1;
        }
    }
    assert_eq!(total, 200);
    assert!(owner.iter().any(|index| *index != owner[0]), "all on one");
    let stats = endpoint.stats();
    let per_queue: u64 = stats.queues().iter().map(|q| q.tx.frames.value()).sum();
    assert_eq!(per_queue, 200);
    // The list alternates between flows, and is grouped: 32 frames a call, not one.
    for queue in stats.queues() {
        let (frames, calls) = (queue.tx.frames.value(), queue.tx.calls.value());
        assert!(calls <= frames.div_ceil(32), "{frames} frames in {calls} calls");
    }
}

#[test]
fn a_flow_may_be_given_by_number() {
    let (ours, far): (Vec<_>, Vec<_>) = (0..3).map(|_| seqpackets()).unzip();
    let peers: Vec<_> = far.into_iter().map(|fd| Peer::on_socket(fd, 0)).collect();
    let endpoint = over(ours, &LinkOptions::new());
    let body = packet::pattern_packet(100, 1);
    let parts = [IoSlice::new(&body)];
    let packet = TxPacket::new(MacAddr::BROADCAST, EtherType::IPV4, &parts);
    let list: Vec<_> = (0..7).map(|flow| TxPacket { flow: Some(flow), ..packet }).collect();
    assert_eq!(endpoint.write_packets(&list).unwrap().sent, 7);
    let got = peers.iter().map(|peer| {
        std::iter::from_fn(|| peer.recv(Duration::ZERO).unwrap()).filter(|p| *p == body).count()
    });
    assert_eq!(got.collect::<Vec<_>>(), [3, 2, 2]);
}

#[test]
fn the_end_of_one_descriptor_does_not_take_the_others_packets() {
    let ((a, far_a), (b, far_b)) = (seqpackets(), seqpackets());
    let endpoint = over(vec![a, b], &LinkOptions::new());
    drop(far_a);
    let body = packet::pattern_packet(100, 1);
    let parts = [IoSlice::new(&body)];
    let packet = TxPacket::new(MacAddr::BROADCAST, EtherType::IPV4, &parts);
    let list: Vec<_> = (0..10).map(|flow| TxPacket { flow: Some(flow), ..packet }).collect();
    let sent = endpoint.write_packets(&list).unwrap();
    assert_eq!((sent.taken, sent.sent), (10, 5));
    let peer = Peer::on_socket(far_b, 0);
    assert_eq!(std::iter::from_fn(|| peer.recv(Duration::ZERO).unwrap()).count(), 5);
    assert_eq!(endpoint.stats().tx().closed, 5);
    // Where nothing at all can be sent, the reason is told.
    let error = endpoint.write_packets(&list[..1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

/// More packets than a socket's buffer takes.
const MANY: usize = 20_000;

#[test]
fn what_has_no_room_is_dropped_and_counted() {
    let (ours, far) = seqpackets();
    let endpoint = over(vec![ours], &LinkOptions::new());
    let body = packet::pattern_packet(1000, 1);
    let parts = [IoSlice::new(&body)];
    let list = vec![TxPacket::new(MacAddr::BROADCAST, EtherType::IPV4, &parts); MANY];
    let sent = endpoint.write_packets(&list).unwrap();
    assert_eq!(sent.taken, MANY);
    assert!(sent.sent < MANY, "everything had room");
    let tx = endpoint.stats().tx();
    assert_eq!((tx.frames, tx.not_writable), (sent.sent as u64, (MANY - sent.sent) as u64));
    let peer = Peer::on_socket(far, 0);
    assert_eq!(std::iter::from_fn(|| peer.recv(Duration::ZERO).unwrap()).count(), sent.sent);
}

#[test]
fn waiting_for_room_loses_nothing_and_has_a_bound() {
    let (ours, far) = seqpackets();
    let bound = Duration::from_secs(20);
    let endpoint =
        over(vec![ours], &LinkOptions::new()).with_write_policy(WritePolicy::Wait(bound)).unwrap();
    let body = packet::pattern_packet(1000, 1);
    let parts = [IoSlice::new(&body)];
    let list = vec![TxPacket::new(MacAddr::BROADCAST, EtherType::IPV4, &parts); MANY];
    let peer = Peer::on_socket(far, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..MANY {
                assert_eq!(peer.recv(PATIENCE).unwrap().as_ref(), Some(&body));
            }
        });
        let sent = endpoint.write_packets(&list).unwrap();
        assert_eq!((sent.taken, sent.sent), (MANY, MANY));
    });
    assert!(endpoint.stats().tx().would_block > 0, "nothing to wait for");
    assert_eq!(endpoint.stats().tx().not_writable, 0);

    // Nobody reads.
    let bound = Duration::from_millis(50);
    let endpoint = endpoint.with_write_policy(WritePolicy::Wait(bound)).unwrap();
    let begin = Instant::now();
    let sent = endpoint.write_packets(&list).unwrap();
    assert!(begin.elapsed() >= bound && sent.sent < MANY);
    assert_eq!(endpoint.stats().tx().not_writable, (MANY - sent.sent) as u64);
    let refused = endpoint.write_raw(&body).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn mtu_and_link_address_are_changed_while_running() {
    let (ours, far) = seqpackets();
    let endpoint = over(vec![ours], &LinkOptions::new().ethernet(true).mtu(1500));
    let (dispatcher, _events) = recorder(|| {});
    endpoint.attach(dispatcher).unwrap();
    endpoint.set_mtu(1280).unwrap();
    assert_eq!(endpoint.mtu(), 1280);
    for bad in [0, 67, 1501] {
        let text = endpoint.set_mtu(bad).unwrap_err().to_string();
        assert!(text.contains("mtu") && text.contains("1500") && text.contains(&bad.to_string()));
    }
    let new = MacAddr([2, 0, 0, 0, 0, 9]);
    endpoint.set_link_address(new).unwrap();
    assert_eq!(endpoint.link_address(), Some(new));
    assert!(endpoint.set_link_address(MacAddr::BROADCAST).is_err());
    let body = packet::pattern_packet(50, 1);
    let parts = [IoSlice::new(&body)];
    let to = MacAddr([2, 0, 0, 0, 0, 8]);
    endpoint.write_packets(&[TxPacket::new(to, EtherType::IPV4, &parts)]).unwrap();
    let expected = packet::ethernet_ip(to.0, new.0, &body);
    assert_eq!(Peer::on_socket(far, 0).recv(PATIENCE).unwrap().unwrap(), expected);

    let bare = over(vec![seqpackets().0], &LinkOptions::new());
    assert_eq!(bare.link_address(), None);
    assert!(bare.set_link_address(new).is_err());
}

#[test]
fn frames_are_injected_and_sent() {
    let (ours, far) = seqpackets();
    let link = adopt(vec![ours], &LinkOptions::new().ethernet(true)).unwrap();
    let endpoint = Arc::new(InjectableEndpoint::new(link).unwrap());
    let mut frame = packet::pattern_frame(100, 1);
    let meta = RxMeta::default();
    assert_eq!(endpoint.inject(&mut frame, meta), Err(InjectError::NotAttached));
    for _ in 0..2 {
        let weak = Arc::downgrade(&endpoint);
        let (dispatcher, events) = recorder(move || {
            weak.upgrade().unwrap().write_raw(b"from within").unwrap();
        });
        assert!(!endpoint.is_attached());
        endpoint.attach(Arc::clone(&dispatcher)).unwrap();
        assert!(endpoint.is_attached());
        assert!(matches!(endpoint.attach(dispatcher), Err(AttachError::AlreadyAttached)));
        endpoint.inject(&mut frame, meta).unwrap();
        assert_eq!(next(&events), Event::Frame(0, frame.clone()));
        endpoint.stop();
        endpoint.stop();
        assert_eq!(next(&events), Event::Closed(0, Closed::Stopped));
        assert!(events.recv().is_err(), "one notice, and the dispatcher is let go of");
        assert_eq!(endpoint.inject(&mut frame, meta), Err(InjectError::NotAttached));
        endpoint.join().unwrap();
    }
    // The descriptor is not read.
    let peer = Peer::on_socket(far, 0);
    peer.send(b"nobody reads this").unwrap();
    let (dispatcher, events) = recorder(|| {});
    endpoint.attach(dispatcher).unwrap();
    assert!(events.recv_timeout(QUIET).is_err());
    for _ in 0..2 {
        assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), b"from within");
    }
    drop(endpoint);
    assert_eq!(next(&events), Event::Closed(0, Closed::Stopped));
}

#[test]
fn an_injection_that_panics_ends_the_injecting() {
    let endpoint =
        InjectableEndpoint::new(adopt(vec![seqpackets().0], &LinkOptions::new()).unwrap()).unwrap();
    let (dispatcher, events) = recorder(|| panic!("on purpose"));
    endpoint.attach(dispatcher).unwrap();
    let meta = RxMeta::default();
    assert_eq!(endpoint.inject(&mut [0x45; 20], meta), Err(InjectError::Panicked));
    assert_eq!(next(&events), Event::Frame(0, vec![0x45; 20]));
    assert_eq!(next(&events), Event::Closed(0, Closed::Panicked));
    assert_eq!(endpoint.inject(&mut [0x45; 20], meta), Err(InjectError::NotAttached));
}

#[test]
fn descriptors_are_handed_over_where_that_was_declared() {
    testkit::in_namespace(|| {
        for (kind, way) in [Kind::Seqpacket, Kind::Datagram, Kind::Packet]
            .into_iter()
            .flat_map(|kind| kind.ways().iter().map(move |way| (kind, *way)))
        {
            let options = way.options();
            let (link, _peer, _) = common::link(kind, &options).unwrap();
            let mut endpoint = Endpoint::new(link).unwrap();
            let (dispatcher, _events) = recorder(|| {});
            endpoint.attach(dispatcher).unwrap();
            let refused = endpoint.hand_over().unwrap_err();
            assert!(endpoint.is_attached(), "nothing has changed");
            assert!(matches!(refused, HandOverError::NotDeclared), "{refused}");

            let options = options.save_restore(true);
            let (link, peer, _) = common::link(kind, &options).unwrap();
            let mut endpoint = Endpoint::new(link).unwrap();
            let (dispatcher, events) = recorder(|| {});
            endpoint.attach(dispatcher).unwrap();
            peer.send(&kind.frame(100, 1)).unwrap();
            assert_eq!(next(&events), Event::Frame(0, kind.frame(100, 1)));
            let fds = endpoint.hand_over().unwrap();
            drop(endpoint);
            assert_eq!(next(&events), Event::Closed(0, Closed::Stopped));
            // Whoever got them goes on, with what came in between.
            peer.send(&kind.frame(100, 2)).unwrap();
            let heir = over(fds, &options);
            let (dispatcher, events) = recorder(|| {});
            heir.attach(dispatcher).unwrap();
            peer.send(&kind.frame(100, 3)).unwrap();
            let first = next(&events);
            if way.mode != Mode::PacketMmap {
                // Setting up a ring empties the socket's own queue.
                assert_eq!(first, Event::Frame(0, kind.frame(100, 2)), "{kind:?} {way}");
                assert_eq!(next(&events), Event::Frame(0, kind.frame(100, 3)));
            } else {
                assert_eq!(first, Event::Frame(0, kind.frame(100, 3)), "{kind:?} {way}");
            }
        }
    });
}

#[test]
fn full_is_told_from_refused() {
    let (ours, far) = seqpackets();
    let endpoint = over(vec![ours], &LinkOptions::new());
    let frame = [0x45; 1000];
    let mut sent = 0;
    let error = loop {
        match endpoint.write_raw(&frame) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!((endpoint.stats().tx().frames, endpoint.stats().tx().would_block), (sent, 1));
    // With frames unread on the far side its end is a reset, as the kernel sees it.
    drop(far);
    assert_eq!(endpoint.write_raw(&frame).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(endpoint.write_raw(&frame).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn every_kind_and_mode_delivers_and_stops() {
    testkit::in_namespace(|| {
        let tun = testkit::has_tun("every_kind_and_mode_delivers_and_stops, TUN and TAP");
        let mut kinds = vec![
            Kind::Seqpacket,
            Kind::Datagram,
            Kind::Udp,
            Kind::Framed,
            Kind::Packet,
            Kind::Cooked,
        ];
        kinds.extend(tun.then_some([Kind::Tap, Kind::Tun]).into_iter().flatten());
        for (kind, way) in kinds.into_iter().flat_map(|k| k.ways().iter().map(move |w| (k, *w))) {
            let (link, peer, _) = common::link(kind, &way.options()).unwrap();
            let endpoint = Endpoint::new(link).unwrap();
            for round in 0..2 {
                let (dispatcher, events) = recorder(|| {});
                endpoint.attach(dispatcher).unwrap();
                for seed in 0..50 {
                    let frame = kind.frame(500, seed);
                    peer.send(&frame).unwrap();
                    assert_eq!(next(&events), Event::Frame(0, frame), "{kind:?} {way} {round}");
                }
                std::thread::sleep(QUIET);
                let begin = Instant::now();
                endpoint.stop();
                endpoint.join().unwrap();
                assert!(begin.elapsed() < Duration::from_secs(1), "{kind:?} {way}");
                assert_eq!(next(&events), Event::Closed(0, Closed::Stopped));
            }
        }
    });
}

/// What was refused before the descriptor's end showed is not told of twice.
#[test]
fn each_packet_is_counted_once_where_the_descriptor_ends_in_the_middle() {
    let framed = || {
        let (ours, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let link = fdlink::link::adopt_framed(ours.into(), FramePrefix::Be16, &LinkOptions::new());
        (Endpoint::new(link.unwrap()).unwrap(), std::os::fd::OwnedFd::from(far))
    };
    let seqpacket = || {
        let (ours, far) = seqpackets();
        (over(vec![ours], &LinkOptions::new().ethernet(true)), far)
    };
    for (endpoint, far) in [framed(), seqpacket()] {
        drop(far);
        let (long, short) = ([0x45; 65536], [0x45; 100]);
        let [long, short] = [[IoSlice::new(&long)], [IoSlice::new(&short)]];
        let packet = |parts| TxPacket::new(MacAddr::BROADCAST, EtherType::IPV4, parts);
        let list = [packet(&long), packet(&short), packet(&short)];
        let tx = || endpoint.stats().tx();
        let sum = || tx().frames + tx().too_long + tx().closed + tx().not_writable;
        // Whether the end is told now or with the next list, nothing was sent.
        assert!(endpoint.write_packets(&list).is_ok_and(|sent| sent.sent == 0) || tx().closed == 2);
        assert_eq!((sum(), tx().too_long), (3, 1), "{endpoint:?}");
        let error = endpoint.write_packets(&list[1..]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        let error = endpoint.write_raw(&[0x45; 100]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        assert_eq!(sum(), 3 + 2 + 1, "{endpoint:?}");
    }
}

/// More than a clock can say is no bound, not none at all.
#[test]
fn waiting_without_an_end_waits() {
    let (ours, far) = seqpackets();
    let policy = WritePolicy::Wait(Duration::MAX);
    let endpoint = over(vec![ours], &LinkOptions::new()).with_write_policy(policy).unwrap();
    let body = packet::pattern_packet(1000, 1);
    let parts = [IoSlice::new(&body)];
    let list = vec![TxPacket::new(MacAddr::BROADCAST, EtherType::IPV4, &parts); MANY];
    let peer = Peer::on_socket(far, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..MANY).all(|_| peer.recv(PATIENCE).unwrap().is_some()));
        assert_eq!(endpoint.write_packets(&list).unwrap().sent, MANY);
    });
    assert!(endpoint.stats().tx().would_block > 0, "nothing to wait for");
}

/// A link as somebody else may make it: over another one, with a word of its own about waiting.
struct Impatient(FdLink);

impl Link for Impatient {
    fn properties(&self) -> &LinkProperties {
        self.0.properties()
    }

    fn report(&self) -> &Report {
        self.0.report()
    }

    fn stats(&self) -> LinkStats {
        self.0.stats()
    }

    fn into_queues(self: Box<Self>) -> Result<Vec<QueuePair>, SetupError> {
        let pairs = Box::new(self.0).into_queues()?;
        let wrap =
            |QueuePair { rx, tx }: QueuePair| QueuePair { rx, tx: Box::new(ImpatientWayOut(tx)) };
        Ok(pairs.into_iter().map(wrap).collect())
    }
}

struct ImpatientWayOut(Box<dyn Transmit>);

impl Transmit for ImpatientWayOut {
    fn send(&mut self, frames: &[TxFrame<'_>]) -> std::io::Result<Sent> {
        self.0.send(frames)
    }

    fn slot(&mut self, len: usize) -> Option<TxSlot<'_>> {
        self.0.slot(len)
    }

    fn flush(&mut self) -> std::io::Result<Sent> {
        self.0.flush()
    }

    fn queued(&self) -> usize {
        self.0.queued()
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup { after: Some(2 * PATIENCE), ..self.0.wakeup() }
    }
}

#[test]
fn waiting_ends_with_whichever_comes_first() {
    let (ours, far) = seqpackets();
    let link = Impatient(adopt(vec![ours], &LinkOptions::new()).unwrap());
    let policy = WritePolicy::Wait(3 * PATIENCE);
    let endpoint = Endpoint::new(link).unwrap().with_write_policy(policy).unwrap();
    let body = packet::pattern_packet(1000, 1);
    let parts = [IoSlice::new(&body)];
    let list = vec![TxPacket::new(MacAddr::BROADCAST, EtherType::IPV4, &parts); MANY];
    let peer = Peer::on_socket(far, 0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..MANY).all(|_| peer.recv(3 * PATIENCE).unwrap().is_some()));
        assert_eq!(endpoint.write_packets(&list).unwrap().sent, MANY);
    });
    assert!(endpoint.stats().tx().would_block > 0, "nothing to wait for");
    assert!(begin.elapsed() < PATIENCE, "room was not seen: {:?}", begin.elapsed());
}

/// Whoever is told that the injecting has ended is the one whose delivery panicked.
#[test]
fn a_panic_is_not_told_to_the_next_dispatcher() {
    let link = adopt(vec![seqpackets().0], &LinkOptions::new()).unwrap();
    let endpoint = Arc::new(InjectableEndpoint::new(link).unwrap());
    let (new, new_events) = recorder(|| {});
    let weak = Arc::downgrade(&endpoint);
    let (old, old_events) = recorder(move || {
        let endpoint = weak.upgrade().unwrap();
        endpoint.stop();
        endpoint.join().unwrap();
        endpoint.attach(Arc::clone(&new)).unwrap();
        panic!("on purpose");
    });
    endpoint.attach(old).unwrap();
    let (mut frame, meta) = ([0x45; 20], RxMeta::default());
    assert_eq!(endpoint.inject(&mut frame, meta), Err(InjectError::Panicked));
    assert_eq!(next(&old_events), Event::Frame(0, frame.to_vec()));
    assert_eq!(next(&old_events), Event::Closed(0, Closed::Stopped));
    endpoint.inject(&mut frame, meta).unwrap();
    assert_eq!(next(&new_events), Event::Frame(0, frame.to_vec()));
    endpoint.stop();
    assert_eq!(next(&new_events), Event::Closed(0, Closed::Stopped));
}

#[test]
fn an_injectable_endpoint_waits_for_room_if_asked_to() {
    let (ours, far) = seqpackets();
    let link = adopt(vec![ours], &LinkOptions::new()).unwrap();
    let policy = WritePolicy::Wait(3 * PATIENCE);
    let endpoint = InjectableEndpoint::new(link).unwrap().with_write_policy(policy).unwrap();
    assert_eq!(endpoint.report().mode, Mode::Readv);
    let body = packet::pattern_packet(1000, 1);
    let parts = [IoSlice::new(&body)];
    let list = vec![TxPacket::new(MacAddr::BROADCAST, EtherType::IPV4, &parts); MANY];
    let peer = Peer::on_socket(far, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..MANY).all(|_| peer.recv(PATIENCE).unwrap().is_some()));
        assert_eq!(endpoint.write_packets(&list).unwrap().sent, MANY);
    });
}

/// A join that finds nothing to wait for lets go of nothing that is attached meanwhile.
#[test]
fn joining_races_with_attaching() {
    let (ours, _far) = seqpackets();
    let endpoint = over(vec![ours], &LinkOptions::new());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    endpoint.join().unwrap();
                }
            });
        }
        let mut lost = 0;
        for _ in 0..300 {
            let (dispatcher, _events) = recorder(|| {});
            endpoint.attach(dispatcher).unwrap();
            lost += u32::from(!endpoint.is_attached());
            endpoint.stop();
            endpoint.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(lost, 0);
    });
}
