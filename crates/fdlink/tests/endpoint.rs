//! The push shape: threads that deliver, and how they end.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use common::{Kind, PATIENCE, QUIET, seqpackets};
use fdlink::link::adopt;
use fdlink::{
    AttachError, Closed, Endpoint, EtherType, JoinError, LinkEndpoint, LinkOptions, MacAddr, Mode,
    NetworkDispatcher, QueueIndex, RxBatch, TxPacket,
};
use testkit::{Peer, packet};

#[derive(Debug, PartialEq)]
enum Event {
    Frame(usize, Vec<u8>),
    Closed(usize, Closed),
}

/// Passes everything on, after doing what the test wants done during a delivery.
struct Recorder {
    events: Mutex<Sender<Event>>,
    during_delivery: Box<dyn Fn() + Send + Sync>,
}

impl NetworkDispatcher for Recorder {
    fn deliver(&self, queue: QueueIndex, batch: &mut RxBatch<'_>) {
        for frame in batch {
            let event = Event::Frame(queue.0, frame.bytes().to_vec());
            self.events.lock().unwrap().send(event).unwrap();
        }
        (self.during_delivery)();
    }

    fn closed(&self, queue: QueueIndex, why: &Closed) {
        self.events.lock().unwrap().send(Event::Closed(queue.0, why.clone())).unwrap();
    }
}

fn recorder(
    during_delivery: impl Fn() + Send + Sync + 'static,
) -> (Arc<dyn NetworkDispatcher>, Receiver<Event>) {
    let (give, take) = channel();
    let during_delivery = Box::new(during_delivery);
    (Arc::new(Recorder { events: Mutex::new(give), during_delivery }), take)
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(PATIENCE).expect("an event in time")
}

fn over(fds: Vec<OwnedFd>, options: &LinkOptions) -> Endpoint {
    Endpoint::new(adopt(fds, options).unwrap()).unwrap()
}

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
    let per_queue: u64 = endpoint.stats().queues().iter().map(|q| q.tx.frames.value()).sum();
    assert_eq!(per_queue, 200);
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
        let mut kinds = vec![Kind::Seqpacket, Kind::Datagram, Kind::Packet];
        kinds.extend(tun.then_some([Kind::Tap, Kind::Tun]).into_iter().flatten());
        for (kind, mode) in kinds.into_iter().flat_map(|k| k.modes().iter().map(move |m| (k, *m))) {
            let (link, peer, _) = common::link(kind, &LinkOptions::new().mode(mode)).unwrap();
            let endpoint = Endpoint::new(link).unwrap();
            for round in 0..2 {
                let (dispatcher, events) = recorder(|| {});
                endpoint.attach(dispatcher).unwrap();
                for seed in 0..50 {
                    let frame = kind.frame(500, seed);
                    peer.send(&frame).unwrap();
                    assert_eq!(next(&events), Event::Frame(0, frame), "{kind:?} {mode} {round}");
                }
                std::thread::sleep(QUIET);
                let begin = Instant::now();
                endpoint.stop();
                endpoint.join().unwrap();
                assert!(begin.elapsed() < Duration::from_secs(1), "{kind:?} {mode}");
                assert_eq!(next(&events), Event::Closed(0, Closed::Stopped));
            }
        }
    });
}
