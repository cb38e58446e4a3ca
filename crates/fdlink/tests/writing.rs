//! What an endpoint sends: link headers, flows over several descriptors, and what becomes of packets
//! without room.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::IoSlice;
use std::time::{Duration, Instant};

use common::recorder::over;
use common::{PATIENCE, seqpackets};
use fdlink::link::{FramePrefix, adopt};
use fdlink::queue::Wakeup;
use fdlink::stats::LinkStats;
use fdlink::{
    Endpoint, EtherType, FdLink, InjectableEndpoint, Link, LinkEndpoint, LinkOptions,
    LinkProperties, MacAddr, Mode, QueuePair, Report, Sent, SetupError, Transmit, TxFrame,
    TxPacket, TxSlot, WritePolicy,
};
use testkit::{Peer, packet};

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
