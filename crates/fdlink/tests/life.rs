//! The life of an attached endpoint on every kind and mode: how it ends, and what it survives. What
//! one kind is enough for is in `endpoint.rs`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::recorder::{Event, next, over, recorder, recorder_by_queue};
use common::{Kind, PATIENCE, QUIET, Way, datagrams, seqpackets};
use fdlink::link::{open_packet, open_tun};
use fdlink::{AttachError, Closed, Endpoint, LinkEndpoint, LinkOptions, Mode};
use testkit::process::{self, Footprint};
use testkit::{Peer, interface};

/// Every kind that can be had here, in every way it has.
fn kinds_and_ways(test: &str) -> Vec<(Kind, Way)> {
    let mut kinds =
        vec![Kind::Seqpacket, Kind::Datagram, Kind::Udp, Kind::Framed, Kind::Packet, Kind::Cooked];
    if testkit::has_tun(&format!("{test}, TUN and TAP")) {
        kinds.extend([Kind::Tap, Kind::Tun]);
    }
    kinds.into_iter().flat_map(|kind| kind.ways().iter().map(move |way| (kind, *way))).collect()
}

/// An endpoint, its far end, and its interface.
fn endpoint(kind: Kind, way: Way) -> (Endpoint, Peer, String) {
    let (link, peer, interface) = common::link(kind, &way.options()).unwrap();
    (Endpoint::new(link).unwrap(), peer, interface)
}

/// That there is nothing more, now that nobody is left who could say it.
fn assert_ended(events: &Receiver<Event>) {
    assert!(events.recv_timeout(PATIENCE).is_err(), "more than one notice");
    assert_eq!(events.try_recv(), Err(TryRecvError::Disconnected));
}

#[test]
fn stopped_and_dropped_from_within_a_delivery() {
    testkit::in_namespace(|| {
        for (kind, way) in kinds_and_ways("stopped_and_dropped_from_within_a_delivery") {
            for last_owner in [false, true] {
                let (endpoint, peer, _) = endpoint(kind, way);
                let endpoint = Arc::new(endpoint);
                let shared = Arc::new(Mutex::new(Some(Arc::clone(&endpoint))));
                let inside = Arc::clone(&shared);
                let (dispatcher, events) = recorder(move || {
                    let endpoint = inside.lock().unwrap().take();
                    endpoint.inspect(|endpoint| endpoint.stop());
                });
                endpoint.attach(dispatcher).unwrap();
                let held = (!last_owner).then_some(endpoint);
                let frame = kind.frame(100, 1);
                peer.send(&frame).unwrap();
                assert_eq!(next(&events), Event::Frame(0, frame), "{kind:?} {way}");
                assert_eq!(next(&events), Event::Closed(0, Closed::Stopped), "{kind:?} {way}");
                if let Some(endpoint) = held {
                    endpoint.join().unwrap();
                    assert!(!endpoint.is_attached());
                }
                assert_ended(&events);
            }
        }
    });
}

#[test]
fn one_notice_for_each_descriptor_with_its_reason() {
    // An error that nothing mends: a VSOCK that was never connected, where the kernel has them.
    let lone = rustix::net::socket(
        rustix::net::AddressFamily::VSOCK,
        rustix::net::SocketType::SEQPACKET,
        None,
    );
    let fails = lone.is_ok();
    let ((a, far_a), (b, far_b), (c, _far_c)) = (seqpackets(), seqpackets(), seqpackets());
    let peer = Peer::on_socket(far_b, 0);
    let endpoint = over([a, b, c].into_iter().chain(lone).collect(), &LinkOptions::new());
    let (dispatcher, events) = recorder_by_queue(|queue| assert_ne!(queue, 1, "on purpose"));
    endpoint.attach(dispatcher).unwrap();
    let failed = Closed::Failed { call: "recv", errno: libc::ENOTCONN };
    if fails {
        assert_eq!(next(&events), Event::Closed(3, failed.clone()));
    }
    drop(far_a);
    assert_eq!(next(&events), Event::Closed(0, Closed::PeerClosed));
    peer.send(b"x").unwrap();
    assert_eq!(next(&events), Event::Frame(1, b"x".to_vec()));
    assert_eq!(next(&events), Event::Closed(1, Closed::Panicked));
    endpoint.stop();
    assert_eq!(next(&events), Event::Closed(2, Closed::Stopped));
    endpoint.join().unwrap();
    assert_ended(&events);
    // What has ended ends again, for the same reason; what was only stopped goes on.
    let (dispatcher, events) = recorder(|| {});
    endpoint.attach(dispatcher).unwrap();
    peer.send(b"y").unwrap();
    let mut again: Vec<_> = (0..2 + usize::from(fails)).map(|_| next(&events)).collect();
    again.sort_by_key(|event| match event {
        Event::Frame(queue, _) | Event::Closed(queue, _) => *queue,
    });
    assert_eq!(again[0], Event::Closed(0, Closed::PeerClosed));
    assert_eq!(again[1], Event::Frame(1, b"y".to_vec()));
    assert_eq!(again.get(2), fails.then_some(&Event::Closed(3, failed)));
    drop(endpoint);
}

/// The only thread that reads. It gives itself its name, so it may take a moment.
fn reader() -> i32 {
    let begin = Instant::now();
    loop {
        if let [reader] = process::threads_named("fdlink-rx0").unwrap()[..] {
            return reader;
        }
        assert!(begin.elapsed() < PATIENCE, "no such thread");
        std::thread::yield_now();
    }
}

/// How long frames flow under a storm of signals, for each kind and mode.
const STORM: Duration = Duration::from_millis(300);

#[test]
fn a_storm_of_signals_loses_nothing() {
    testkit::in_namespace(|| {
        process::interrupt_on_usr1().unwrap();
        for (kind, way) in kinds_and_ways("a_storm_of_signals_loses_nothing") {
            let (endpoint, peer, _) = endpoint(kind, way);
            let (dispatcher, events) = recorder(|| {});
            endpoint.attach(dispatcher).unwrap();
            let (over, before) = (AtomicBool::new(false), process::interruptions());
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let reader = reader();
                    while !over.load(Ordering::Relaxed) {
                        process::send_usr1(reader).unwrap();
                        std::thread::sleep(Duration::from_micros(20));
                    }
                });
                let begin = Instant::now();
                while begin.elapsed() < STORM {
                    // Now the reader waits, now it is busy; never more than any queue takes.
                    let burst = 0..8;
                    burst.clone().for_each(|i| peer.send(&kind.frame(500, i)).unwrap());
                    burst.for_each(|i| {
                        let sent = Event::Frame(0, kind.frame(500, i));
                        assert_eq!(next(&events), sent, "{kind:?} {way}");
                    });
                }
                over.store(true, Ordering::Relaxed);
            });
            assert!(process::interruptions() - before > 100, "that was no storm: {kind:?} {way}");
            endpoint.stop();
            endpoint.join().unwrap();
            assert_eq!(next(&events), Event::Closed(0, Closed::Stopped), "{kind:?} {way}");
        }
    });
}

/// Takes every descriptor that the limit leaves, but for some.
fn take_all_descriptors_but(left: usize) -> Vec<OwnedFd> {
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut taken = vec![OwnedFd::from(null)];
    while let Ok(fd) = taken[0].try_clone() {
        taken.push(fd);
    }
    taken.truncate(taken.len() - left);
    taken
}

fn cause(error: &dyn Error) -> Option<i32> {
    error.source()?.downcast_ref::<std::io::Error>()?.raw_os_error()
}

#[test]
fn at_the_limit_of_descriptors_errors_name_the_call() {
    testkit::in_namespace(|| {
        interface::veth("limit0", "limit1", 1500).unwrap();
        let (ours, far) = seqpackets();
        let peer = Peer::on_socket(far, 0);
        let endpoint = over(vec![ours], &LinkOptions::new());
        let before = Footprint::now().unwrap();
        let few = rustix::process::Rlimit { current: Some(100), maximum: Some(100) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();

        // The second of two sockets has no descriptor, the first is closed again.
        for left in [0, 1] {
            let taken = take_all_descriptors_but(left);
            let error = open_packet("limit0", 2, &LinkOptions::new()).unwrap_err();
            assert_eq!(error.to_string(), "socket failed on limit0");
            assert_eq!(cause(&error), Some(libc::EMFILE));
            drop(taken);
            assert_eq!(Footprint::now().unwrap(), before);
        }
        if testkit::has_tun("at_the_limit_of_descriptors_errors_name_the_call, TUN") {
            let taken = take_all_descriptors_but(0);
            let error = open_tun("limit2", 1, &LinkOptions::new()).unwrap_err();
            assert_eq!(error.to_string(), "open failed on /dev/net/tun");
            assert_eq!(cause(&error), Some(libc::EMFILE));
            drop(taken);
        }
        let taken = take_all_descriptors_but(0);
        let (dispatcher, events) = recorder(|| {});
        let error = endpoint.attach(Arc::clone(&dispatcher)).unwrap_err();
        assert!(matches!(&error, AttachError::Thread(_)));
        assert_eq!(cause(&error), Some(libc::EMFILE));
        assert!(!endpoint.is_attached());
        drop(taken);
        assert_eq!(Footprint::now().unwrap(), before);

        // With descriptors to be had, everything works as if nothing had been.
        endpoint.attach(dispatcher).unwrap();
        peer.send(b"x").unwrap();
        assert_eq!(next(&events), Event::Frame(0, b"x".to_vec()));
        open_packet("limit0", 2, &LinkOptions::new()).unwrap();
    });
}

#[test]
fn a_slow_dispatcher_holds_up_its_own_descriptor_only() {
    for mode in [Mode::Readv, Mode::RecvMmsg] {
        let ((a, far_a), (b, far_b)) = (datagrams(), datagrams());
        let [slow, quick] = [far_a, far_b].map(|fd| Peer::on_socket(fd, 0));
        let endpoint = over(vec![a, b], &LinkOptions::new().mode(mode));
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let inside = Arc::clone(&gate);
        let (dispatcher, events) = recorder_by_queue(move |queue| {
            if queue == 0 {
                drop(inside.lock());
                panic!("on purpose");
            }
        });
        endpoint.attach(dispatcher).unwrap();
        slow.send(b"slow").unwrap();
        assert_eq!(next(&events), Event::Frame(0, b"slow".to_vec()));
        let exchange = || {
            for i in 0..100 {
                quick.send(&[i]).unwrap();
                assert_eq!(next(&events), Event::Frame(1, vec![i]));
            }
        };
        // While the other one is stuck, and after it has panicked.
        exchange();
        drop(closed);
        assert_eq!(next(&events), Event::Closed(0, Closed::Panicked));
        exchange();
        endpoint.stop();
        endpoint.join().unwrap();
        assert_eq!(next(&events), Event::Closed(1, Closed::Stopped));
        assert_ended(&events);
    }
}

#[test]
fn two_endpoints_on_one_interface_do_not_hear_each_other() {
    testkit::in_namespace(|| {
        for way in Kind::Packet.ways() {
            for queues in [1, 2] {
                interface::veth("both0", "both1", 1500).unwrap();
                let far = Peer::on_interface("both1").unwrap();
                let attached = [0, 1].map(|_| {
                    let link = open_packet("both0", queues, &way.options());
                    let endpoint = Endpoint::new(link.unwrap()).unwrap();
                    let (dispatcher, events) = recorder(|| {});
                    endpoint.attach(dispatcher).unwrap();
                    (endpoint, events)
                });
                for (seed, (endpoint, _)) in (1..).zip(&attached) {
                    let frame = Kind::Packet.frame(100, seed);
                    endpoint.write_raw(&frame).unwrap();
                    assert_eq!(far.recv(PATIENCE).unwrap(), Some(frame));
                }
                let frame = Kind::Packet.frame(100, 9);
                far.send(&frame).unwrap();
                for (endpoint, events) in &attached {
                    // The first that comes is the far end's, and nothing follows it.
                    let Event::Frame(_, first) = next(events) else { panic!("closed") };
                    assert_eq!(first, frame, "{way} × {queues}");
                    assert!(events.recv_timeout(QUIET).is_err(), "{way} × {queues}");
                    assert_eq!(endpoint.stats().rx().frames, 1);
                }
                interface::remove("both0").unwrap();
            }
        }
    });
}

/// Sends until one comes through: until its link watch has seen the carrier, an interface that was
/// taken up swallows frames, and a socket on it may still have to tell that it was down.
fn until_it_comes(mut send: impl FnMut(), mut came: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !came() {
        assert!(begin.elapsed() < PATIENCE, "the link stayed down");
        send();
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn links_go_down_and_up_and_away_under_an_attached_endpoint() {
    testkit::in_namespace(|| {
        let test = "links_go_down_and_up_and_away_under_an_attached_endpoint";
        for (kind, way) in kinds_and_ways(test).into_iter().filter(|(kind, _)| !kind.is_socket()) {
            let (endpoint, peer, name) = endpoint(kind, way);
            let (dispatcher, events) = recorder(|| {});
            endpoint.attach(dispatcher).unwrap();
            let frame = kind.frame(100, 1);
            for flap in 1..=2 {
                interface::down(&name).unwrap();
                // Refused and counted, and no reason to end: ENETDOWN, or EIO from a device.
                let refused = endpoint.write_raw(&frame).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::NetworkDown, "{kind:?} {way}");
                assert_eq!(endpoint.stats().tx().link_down, flap);
                assert!(events.recv_timeout(QUIET).is_err(), "{kind:?} {way}");
                interface::up(&name).unwrap();
                until_it_comes(|| drop(peer.send(&frame)), || events.try_recv().is_ok());
                until_it_comes(
                    || drop(endpoint.write_raw(&frame)),
                    || peer.recv(Duration::ZERO).is_ok_and(|frame| frame.is_some()),
                );
                while events.recv_timeout(QUIET).is_ok() {}
            }
            if kind == Kind::Packet && way.mode != Mode::Readv {
                // Then the socket gives no second sign when the interface goes.
                interface::down(&name).unwrap();
                assert!(events.recv_timeout(QUIET).is_err(), "{kind:?} {way}");
            }
            interface::remove(&name).unwrap();
            assert_eq!(next(&events), Event::Closed(0, Closed::Removed), "{kind:?} {way}");
            endpoint.join().unwrap();
            assert_ended(&events);
            let gone = endpoint.write_raw(&frame).unwrap_err();
            assert!(
                [Some(libc::ENXIO), Some(libc::EBADFD), Some(libc::ENODEV)]
                    .contains(&gone.raw_os_error()),
                "{kind:?} {way}: {gone}"
            );
        }
    });
}
