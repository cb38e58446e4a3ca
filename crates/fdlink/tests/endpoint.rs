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
use fdlink::link::adopt;
use fdlink::{
    AttachError, Closed, Endpoint, EtherType, HandOverError, InjectError, InjectableEndpoint,
    JoinError, LinkEndpoint, LinkOptions, MacAddr, Mode, TxPacket,
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
