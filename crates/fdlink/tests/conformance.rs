//! Every kind of descriptor × every mode it has runs the same checks, and the outcome is printed
//! as one table. What belongs to one kind only is in `kinds.rs`, the threads in `endpoint.rs`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which prints its table")]

mod common;

use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use common::{Kind, QUIET, Rig, Way, closed, readable, super_frame};
use fdlink::batch::PacketType;
use fdlink::offload::vnet::{GsoKind, RxChecksum, TxOffload};
use fdlink::{Closed, Fill, Link, Sent, TxFrame};
use testkit::packet;

/// A check, and for which kinds it has a meaning.
struct Check {
    name: &'static str,
    applies: fn(Kind) -> bool,
    run: fn(&mut Rig),
}

const ALL: fn(Kind) -> bool = |_| true;
const SOCKETS: fn(Kind) -> bool = Kind::is_socket;
/// A UDP socket drops what the far end has no room for, and has no longer messages than a frame.
const UNIX: fn(Kind) -> bool = |kind| matches!(kind, Kind::Seqpacket | Kind::Datagram);
/// A cooked socket is told neither of every destination nor how a super-frame is cut (`cooked.rs`),
/// and a macvtap is given only what is its own or everybody's.
const ETHERNET: fn(Kind) -> bool = |kind| matches!(kind, Kind::Packet | Kind::Tap);
const SUPER: fn(Kind) -> bool = |kind| !kind.is_socket() && kind != Kind::Cooked;
/// To a macvtap the kernel gives fragments only put together (macvlan_handle_frame).
const UNJUDGED: fn(Kind) -> bool = |kind| kind != Kind::Macvtap;
/// A macvtap that is down goes on, for it is the interface below that sends (`kinds.rs`).
const INTERFACES: fn(Kind) -> bool = |kind| !kind.is_socket() && kind != Kind::Macvtap;
const CLOSING: fn(Kind) -> bool = |kind| matches!(kind, Kind::Seqpacket | Kind::Framed);
const PACKET: fn(Kind) -> bool = |kind| matches!(kind, Kind::Packet | Kind::Cooked);

const CHECKS: &[Check] = &[
    Check { name: "order and boundaries", applies: ALL, run: order_and_boundaries },
    Check { name: "shortest and MTU-sized frames", applies: ALL, run: shortest_and_longest },
    Check { name: "64 KiB frames", applies: SOCKETS, run: large_frames },
    Check { name: "strange IP is not judged", applies: UNJUDGED, run: strange_ip },
    Check { name: "everybody's addresses", applies: ETHERNET, run: everybodys_addresses },
    Check { name: "runts", applies: |k| !matches!(k, Kind::Tun | Kind::Cooked), run: runts },
    Check { name: "a burst beyond the buffers", applies: UNIX, run: burst },
    Check { name: "super-frames in", applies: SUPER, run: super_frames_in },
    Check { name: "super-frames out", applies: SUPER, run: super_frames_out },
    Check { name: "gathered lists", applies: ALL, run: gathered_lists },
    Check { name: "slots and flush", applies: ALL, run: slots_and_flush },
    Check { name: "a refused frame drops alone", applies: ALL, run: a_refused_frame_drops_alone },
    Check { name: "batches given back, left, read", applies: ALL, run: batches_are_given_back },
    Check { name: "readable only with frames", applies: ALL, run: readable_only_with_frames },
    Check { name: "would block, in order", applies: UNIX, run: would_block },
    Check { name: "slots that would block", applies: UNIX, run: slots_that_would_block },
    Check { name: "truncation is counted", applies: UNIX, run: truncation },
    Check { name: "empty messages", applies: SOCKETS, run: empty_messages },
    Check { name: "peer closes", applies: CLOSING, run: peer_closes },
    Check { name: "peer is gone", applies: |k| k == Kind::Datagram, run: peer_is_gone },
    Check { name: "peer's port is closed", applies: |k| k == Kind::Udp, run: port_is_closed },
    Check { name: "own host's frames", applies: PACKET, run: own_host },
    Check { name: "link down and up", applies: INTERFACES, run: link_flaps },
    Check { name: "down, then removed", applies: INTERFACES, run: removed },
    Check { name: "kernel drops add up", applies: PACKET, run: kernel_drops },
];

#[test]
fn sockets() {
    table(&[Kind::Seqpacket, Kind::Datagram, Kind::Udp, Kind::Framed]);
}

#[test]
fn packet_sockets() {
    testkit::in_namespace(|| table(&[Kind::Packet, Kind::Cooked]));
}

#[test]
fn tun_and_tap() {
    testkit::in_namespace(|| {
        if testkit::has_tun("tun_and_tap") {
            table(&[Kind::Tap, Kind::Tun]);
        }
        if common::has_macvtap("tun_and_tap, macvtap") {
            table(&[Kind::Macvtap]);
        }
    });
}

/// Runs every check on every mode of these kinds; fails at the end if any failed.
fn table(kinds: &[Kind]) {
    let columns: Vec<(Kind, Way)> =
        kinds.iter().flat_map(|kind| kind.ways().iter().map(|way| (*kind, *way))).collect();
    let titles: Vec<String> =
        columns.iter().map(|(kind, way)| format!("{} {way}", kind.name())).collect();
    let mut text = format!("\n{:32}  {}\n", "", titles.join("  "));
    let mut failed = Vec::new();
    let some = |check: &&Check| kinds.iter().any(|kind| (check.applies)(*kind));
    for check in CHECKS.iter().filter(some) {
        text += &format!("{:32}", check.name);
        for ((kind, way), title) in columns.iter().zip(&titles) {
            let cell = if !(check.applies)(*kind) {
                "-"
            } else if passes(check, *kind, *way) {
                "ok"
            } else {
                failed.push(format!("{title}: {}", check.name));
                "FAILED"
            };
            text += &format!("  {cell:width$}", width = title.len());
        }
        text.push('\n');
    }
    println!("{text}");
    assert!(failed.is_empty(), "{failed:#?}");
}

fn passes(check: &Check, kind: Kind, way: Way) -> bool {
    catch_unwind(AssertUnwindSafe(|| (check.run)(&mut Rig::new(kind, way)))).is_ok()
}

fn order_and_boundaries(rig: &mut Rig) {
    let shortest = rig.kind.shortest();
    let mut bytes = 0;
    for burst in 0..40_usize {
        // A unix datagram socket queues no more than eleven.
        let lens = (0..8).map(|i| shortest + (burst * 8 + i) * 37 % (1500 - shortest));
        let frames: Vec<_> =
            lens.enumerate().map(|(i, len)| rig.kind.frame(len, i.try_into().unwrap())).collect();
        frames.iter().for_each(|frame| rig.peer.send(frame).unwrap());
        assert_eq!(rig.recv(8), frames, "burst {burst}");
        bytes += frames.iter().map(Vec::len).sum::<usize>();
    }
    rig.recv_nothing();
    let rx = rig.stats.rx();
    assert_eq!((rx.frames, rx.bytes), (320, bytes as u64));
    assert_eq!((rx.truncated, rx.malformed, rx.kernel_drops, rx.super_frames), (0, 0, 0, 0));
}

fn shortest_and_longest(rig: &mut Rig) {
    for len in [rig.kind.shortest(), 60, rig.properties.max_frame_len] {
        let frame = rig.kind.frame(len, 9);
        rig.peer.send(&frame).unwrap();
        assert_eq!(rig.recv(1), std::slice::from_ref(&frame));
        let sent = rig.tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
        assert_eq!(sent, Sent { taken: 1, sent: 1 });
        assert_eq!(rig.peer_recv(1), [frame]);
    }
}

fn large_frames(rig: &mut Rig) {
    // A UDP datagram over IPv4 holds 65,507 bytes.
    let longest = if rig.kind == Kind::Udp { 65_507 } else { 65_535 };
    for len in [16_384, 65_000, longest] {
        let frame = rig.kind.frame(len, 5);
        rig.peer.send(&frame).unwrap();
        assert_eq!(rig.recv(1), std::slice::from_ref(&frame));
        rig.tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
        assert_eq!(rig.peer_recv(1), [frame]);
    }
}

/// What the frame of this kind around an IP packet is.
fn around(kind: Kind, packet: &[u8], protocol: u16) -> Vec<u8> {
    let mut header = kind.frame(kind.header().max(20), 0);
    header.truncate(kind.header());
    if let [.., high, low] = &mut header[..] {
        [*high, *low] = protocol.to_be_bytes();
    }
    [&header, packet].concat()
}

fn strange_ip(rig: &mut Rig) {
    let (from, to) = (std::net::Ipv4Addr::new(192, 0, 2, 1), std::net::Ipv4Addr::new(192, 0, 2, 2));
    let good = packet::ipv4(from, to, 17, &[7; 60]);
    let with = |changes: &[(usize, u8)]| {
        let mut packet = good.clone();
        changes.iter().for_each(|(at, value)| packet[*at] = *value);
        packet
    };
    let (from, to) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
    let v4 = [
        with(&[(0, 0x40)]),                        // a header of no length
        with(&[(0, 0x4f)]),                        // options to the end
        with(&[(2, 0xff), (3, 0xff)]),             // longer than it is
        with(&[(2, 0), (3, 0)]),                   // of no length
        with(&[(6, 0x20)]),                        // the first of several fragments
        with(&[(6, 0x1f), (7, 0xff)]),             // a fragment past the end
        with(&[(9, 255), (10, 0xde), (11, 0xad)]), // no such protocol, and a wrong checksum
    ];
    let chain =
        |protocol, header: &[u8]| packet::ipv6(from, to, protocol, &[header, &[0; 40]].concat());
    let v6 = [
        chain(0, &[0, 255]),                 // hop-by-hop options longer than the packet
        chain(0, &[0, 0, 1, 4, 0, 0, 0, 0]), // hop-by-hop options twice
        chain(43, &[44, 0, 0, 255]),         // routed, with segments that are not there
        chain(44, &[6, 0, 0xff, 0xf9]),      // a fragment at the end of the world
        chain(60, &[60, 0]),                 // destination options without end
        chain(59, &[]),                      // no next header, and there it is
    ];
    let frames: Vec<_> = (v4.iter().map(|packet| around(rig.kind, packet, packet::ETH_IPV4)))
        .chain(v6.iter().map(|packet| around(rig.kind, packet, packet::ETH_IPV6)))
        .collect();
    for group in frames.chunks(8) {
        group.iter().for_each(|frame| rig.peer.send(frame).unwrap());
        assert_eq!(rig.recv(group.len()), group);
    }
    assert_eq!(rig.stats.rx().malformed, 0);
    // Outwards too: what a frame means is the other side's to judge.
    for frame in &frames {
        rig.tx.send(&[TxFrame::new(&[IoSlice::new(frame)])]).unwrap();
        assert_eq!(rig.peer_recv(1), std::slice::from_ref(frame));
    }
}

fn everybodys_addresses(rig: &mut Rig) {
    let all = [0xff; 6];
    let cases = [
        ([2, 0x99, 0, 0, 0, 1], PacketType::OtherHost),
        ([1, 0, 0x5e, 0, 0, 1], PacketType::Multicast),
        ([0x33, 0x33, 0, 0, 0, 1], PacketType::Multicast),
        (all, PacketType::Broadcast),
        (testkit::interface::address(&rig.interface).unwrap(), PacketType::Host),
    ];
    for (destination, packet_type) in cases {
        let source = [2, 0, 0, 0, 0, 8];
        let frame = packet::ethernet(destination, source, packet::ETH_EXPERIMENT, &[1; 50]);
        rig.peer.send(&frame).unwrap();
        while rig.rx.fill().unwrap() == Fill::Empty {
            assert!(readable(&*rig.rx, common::PATIENCE));
        }
        let arrived = rig.rx.batch().next().expect("the frame");
        assert_eq!(arrived.bytes(), frame);
        assert_eq!(arrived.destination().map(|mac| mac.0), Some(destination));
        assert_eq!(arrived.source().map(|mac| mac.0), Some(source));
        if rig.kind == Kind::Packet {
            assert_eq!(arrived.meta().packet_type, packet_type, "{destination:x?}");
        }
    }
}

/// Frames of less than a link header, and of nothing but one.
fn runts(rig: &mut Rig) {
    if rig.kind.is_socket() {
        let options = rig.way.options().ethernet(true);
        let (link, peer, _) = common::link(rig.kind, &options).unwrap();
        let mut queues = Box::new(link).into_queues().unwrap();
        let rx = queues[0].rx.as_mut().unwrap();
        for len in [1, 13] {
            peer.send(&vec![0xff; len]).unwrap();
            while rx.fill().unwrap() == Fill::Empty {
                assert!(readable(&**rx, common::PATIENCE));
            }
            let runt = rx.batch().next().expect("the runt");
            assert_eq!((runt.bytes().len(), runt.packet().len()), (len, 0));
            assert_eq!((runt.source(), runt.protocol()), (None, None));
        }
        return;
    }
    let header = rig.kind.frame(15, 1)[..14].to_vec();
    // Some devices refuse it, and a good frame shows that nothing came of it.
    let sent = rig.peer.send(&header).is_ok();
    let good = rig.kind.frame(100, 1);
    rig.peer.send(&good).unwrap();
    let expected = if sent { vec![header, good] } else { vec![good] };
    assert_eq!(rig.recv(expected.len()), expected);
}

/// More than the socket queues: the sender sees it, and everything that it could send arrives.
fn burst(rig: &mut Rig) {
    rustix::io::ioctl_fionbio(&rig.peer, true).unwrap();
    let (mut sent, mut got, mut full) = (0_u32, 0_u32, 0);
    while sent < 20_000 {
        let frame = [&sent.to_ne_bytes()[..], &[0x45; 996]].concat();
        match rig.peer.send(&frame) {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                full += 1;
                for frame in rig.recv((sent - got).try_into().unwrap()) {
                    assert_eq!(frame[..4], got.to_ne_bytes());
                    got += 1;
                }
            }
        }
    }
    let rest = rig.recv((sent - got).try_into().unwrap());
    assert_eq!(got + u32::try_from(rest.len()).unwrap(), sent);
    assert!(full > 0, "everything fitted");
}

fn super_frames_in(rig: &mut Rig) {
    for segments in [2, 45] {
        let (frame, offload, vnet) = super_frame(rig.kind, GsoKind::TcpV4, segments);
        rig.peer.send_with(&vnet, &frame).unwrap();
        while rig.rx.fill().unwrap() == Fill::Empty {
            assert!(readable(&*rig.rx, common::PATIENCE));
        }
        let arrived = rig.rx.batch().next().expect("the super-frame");
        assert!(arrived.bytes() == frame, "{} bytes of {}", arrived.bytes().len(), frame.len());
        let gso = arrived.meta().gso.expect("a super-frame");
        assert_eq!((gso.kind, gso.size), (GsoKind::TcpV4, 1400));
        assert_eq!(arrived.meta().checksum, RxChecksum::Partial(offload.checksum.unwrap()));
    }
    assert_eq!(rig.stats.rx().super_frames, 2);
}

fn super_frames_out(rig: &mut Rig) {
    let (frame, offload, _) = super_frame(rig.kind, GsoKind::TcpV4, 44);
    let (head, tail) = frame.split_at(60);
    let parts = [IoSlice::new(head), IoSlice::new(tail)];
    rig.tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
    let mut slot = rig.tx.slot(frame.len()).unwrap();
    slot.bytes_mut().copy_from_slice(&frame);
    slot.commit(frame.len(), offload);
    rig.tx.flush().unwrap();
    for _ in 0..2 {
        let (vnet, arrived) = rig.peer.recv_with(common::PATIENCE).unwrap().unwrap();
        assert!(arrived == frame, "{} bytes of {}", arrived.len(), frame.len());
        // NEEDS_CSUM, TCPV4, and the segments' size.
        assert_eq!((vnet[0] & 1, vnet[1]), (1, 1));
        assert_eq!(u16::from_ne_bytes([vnet[4], vnet[5]]), 1400);
    }
    assert_eq!(rig.stats.tx().super_frames, 2);
}

/// 150 frames of several lengths, short enough for all to fit in a buffer of default size.
fn frames(kind: Kind) -> Vec<Vec<u8>> {
    let len = |i: usize| kind.shortest() + i * 53 % 200;
    (0..150).map(|i| kind.frame(len(i), i.try_into().unwrap())).collect()
}

fn gathered_lists(rig: &mut Rig) {
    let frames = frames(rig.kind);
    let parts: Vec<[IoSlice<'_>; 3]> = frames
        .iter()
        .map(|frame| {
            let (head, tail) = frame.split_at(frame.len() / 3);
            [IoSlice::new(head), IoSlice::new(&[]), IoSlice::new(tail)]
        })
        .collect();
    let list: Vec<_> = parts.iter().map(|parts| TxFrame::new(parts)).collect();
    let mut done = 0;
    while done < list.len() {
        let sent = rig.tx.send(&list[done..]).unwrap();
        assert_eq!(sent.taken, sent.sent);
        assert_eq!(rig.peer_recv(sent.taken), frames[done..done + sent.taken]);
        done += sent.taken;
    }
    let tx = rig.stats.tx();
    assert_eq!(tx.frames, 150);
    assert_eq!(tx.bytes, frames.iter().map(|frame| frame.len() as u64).sum::<u64>());
    assert!(rig.peer.recv(QUIET).unwrap().is_none());
}

fn slots_and_flush(rig: &mut Rig) {
    let frames = frames(rig.kind);
    // Some through slots and some by lists: the order is that of the calls.
    for group in frames.chunks(5) {
        let (by_list, by_slot) = group.split_last().unwrap();
        for frame in by_slot {
            let mut slot = rig.tx.slot(frame.len() + 7).unwrap();
            slot.bytes_mut()[..frame.len()].copy_from_slice(frame);
            slot.commit(frame.len(), TxOffload::default());
        }
        // A slot that is not committed is nothing.
        assert!(rig.tx.slot(100).is_some());
        assert_eq!(rig.tx.queued(), 4);
        let sent = rig.tx.send(&[TxFrame::new(&[IoSlice::new(by_list)])]).unwrap();
        assert_eq!((sent, rig.tx.queued()), (Sent { taken: 1, sent: 1 }, 0));
        assert_eq!(rig.peer_recv(5), group);
    }
    assert_eq!(rig.stats.tx().frames, 150);
    let too_long = rig.properties.max_frame_len.max(rig.properties.gso_max_size) + 1;
    assert!(rig.tx.slot(too_long).is_none());
}

fn a_refused_frame_drops_alone(rig: &mut Rig) {
    let (good, long) = (rig.kind.frame(100, 1), vec![0x45; 65_550]);
    let (good, long) = ([IoSlice::new(&good)], [IoSlice::new(&long)]);
    let list = [&good[..], &long, &good, &[], &good].map(TxFrame::new);
    assert_eq!(rig.tx.send(&list).unwrap(), Sent { taken: 5, sent: 3 });
    assert_eq!(rig.peer_recv(3), [good[0].to_vec(), good[0].to_vec(), good[0].to_vec()]);
    let tx = rig.stats.tx();
    assert_eq!((tx.frames, tx.too_long, tx.invalid), (3, 1, 1));
}

fn batches_are_given_back(rig: &mut Rig) {
    let frame = rig.kind.frame(200, 1);
    for round in 0..600 {
        rig.peer.send(&frame).unwrap();
        while rig.rx.fill().unwrap() == Fill::Empty {
            assert!(readable(&*rig.rx, common::PATIENCE));
        }
        match round % 3 {
            0 => rig.rx.release(),
            1 => {}
            _ => assert_eq!(rig.rx.batch().next().unwrap().bytes(), frame),
        }
        if round % 3 == 0 {
            assert!(rig.rx.batch().next().is_none());
        }
        // A ring has fewer blocks than this has rounds.
    }
    assert_eq!(rig.stats.rx().frames, 600);
}

fn readable_only_with_frames(rig: &mut Rig) {
    assert!(!readable(&*rig.rx, QUIET));
    rig.peer.send(&rig.kind.frame(100, 1)).unwrap();
    assert!(readable(&*rig.rx, common::PATIENCE));
    assert_eq!(rig.recv(1).len(), 1);
    rig.rx.release();
    assert!(!readable(&*rig.rx, QUIET));
}

fn would_block(rig: &mut Rig) {
    let frames: Vec<_> = (0..=255).map(|i| rig.kind.frame(1000, i)).collect();
    let parts: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
    let list: Vec<_> = (0..40).flat_map(|_| parts.iter().map(|p| TxFrame::new(p))).collect();
    let (mut done, mut cut) = (0, 0);
    while done < list.len() {
        let sent = rig.tx.send(&list[done..]).unwrap();
        assert_eq!(sent.taken, sent.sent);
        for i in done..done + sent.taken {
            assert_eq!(rig.peer.recv(QUIET).unwrap().as_ref(), Some(&frames[i % 256]));
        }
        done += sent.taken;
        cut += u64::from(done < list.len());
    }
    assert!(cut > 0, "nothing would block");
    assert_eq!((rig.stats.tx().frames, rig.stats.tx().would_block), (list.len() as u64, cut));
}

fn slots_that_would_block(rig: &mut Rig) {
    // Until neither the socket nor the arena takes more; then everything arrives, in order.
    let mut committed = 0_usize;
    while let Some(mut slot) = rig.tx.slot(1000) {
        slot.bytes_mut()
            .copy_from_slice(&rig.kind.frame(1000, (committed % 256).try_into().unwrap()));
        slot.commit(1000, TxOffload::default());
        committed += 1;
    }
    assert!(rig.tx.queued() > 0);
    assert!(rig.tx.wakeup().descriptor.is_some());
    for i in 0..committed {
        let expected = rig.kind.frame(1000, (i % 256).try_into().unwrap());
        assert_eq!(rig.peer.recv(QUIET).unwrap(), Some(expected), "{i} of {committed}");
        rig.tx.flush().unwrap();
    }
    assert_eq!((rig.tx.queued(), rig.stats.tx().frames), (0, committed as u64));
}

fn truncation(rig: &mut Rig) {
    let good = rig.kind.frame(1000, 1);
    rig.peer.send(&good).unwrap();
    rig.peer.send(&vec![1; 100_000]).unwrap();
    rig.peer.send(&good).unwrap();
    assert_eq!(rig.recv(2), [good.clone(), good]);
    let rx = rig.stats.rx();
    assert_eq!((rx.frames, rx.truncated), (2, 1));
}

fn empty_messages(rig: &mut Rig) {
    let good = rig.kind.frame(1000, 1);
    for frame in [&[][..], &good, &[], &[], &good] {
        rig.peer.send(frame).unwrap();
    }
    assert_eq!(rig.recv(5), [vec![], good.clone(), vec![], vec![], good]);
    assert_eq!((rig.stats.rx().frames, rig.stats.rx().malformed), (5, 0));
}

/// Replaces the far end by nothing.
fn hang_up(rig: &mut Rig) {
    rig.peer = testkit::Peer::on_socket(common::datagrams().0, 0);
}

fn peer_closes(rig: &mut Rig) {
    let good = rig.kind.frame(1000, 1);
    // The last two look like the end that follows them.
    let frames = [good.clone(), vec![], good.clone(), vec![], vec![]];
    frames.iter().for_each(|frame| rig.peer.send(frame).unwrap());
    hang_up(rig);
    assert_eq!(rig.recv(5), frames);
    assert_eq!(closed(&mut *rig.rx), Closed::PeerClosed);
    assert_eq!(closed(&mut *rig.rx), Closed::PeerClosed);
    let error = rig.tx.send(&[TxFrame::new(&[IoSlice::new(&good)])]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

fn peer_is_gone(rig: &mut Rig) {
    hang_up(rig);
    let good = rig.kind.frame(1000, 1);
    let parts = [IoSlice::new(&good)];
    for _ in 0..2 {
        let sent = rig.tx.send(&[TxFrame::new(&parts), TxFrame::new(&parts)]).unwrap();
        assert_eq!(sent, Sent { taken: 2, sent: 0 });
    }
    assert_eq!(rig.stats.tx().peer_gone, 4);
    rig.recv_nothing();
}

fn port_is_closed(rig: &mut Rig) {
    hang_up(rig);
    let good = rig.kind.frame(1000, 1);
    let parts = [IoSlice::new(&good)];
    // The answer to the first, an ICMP message, is told with the second; then it is forgotten.
    for sent in [1, 0, 1, 0] {
        let list = [TxFrame::new(&parts)];
        assert_eq!(rig.tx.send(&list).unwrap(), Sent { taken: 1, sent });
    }
    assert_eq!(rig.stats.tx().peer_gone, 2);
    rig.recv_nothing();
}

fn own_host(rig: &mut Rig) {
    let neighbour = testkit::Peer::on_interface(&rig.interface).unwrap();
    neighbour.send(&rig.kind.frame(100, 1)).unwrap();
    rig.tx.send(&[TxFrame::new(&[IoSlice::new(&rig.kind.frame(100, 2))])]).unwrap();
    assert_eq!(rig.peer_recv(2).len(), 2);
    rig.recv_nothing();
    assert_eq!(rig.stats.rx().frames, 0);
}

fn link_flaps(rig: &mut Rig) {
    let frame = rig.kind.frame(100, 1);
    testkit::interface::down(&rig.interface).unwrap();
    let parts = [IoSlice::new(&frame)];
    let list = [TxFrame::new(&parts)];
    assert_eq!(rig.tx.send(&list).unwrap(), Sent { taken: 1, sent: 0 });
    rig.recv_nothing();
    // A device that is down says nothing to who reads it.
    let told = u64::from(PACKET(rig.kind));
    assert_eq!((rig.stats.rx().link_down, rig.stats.tx().link_down), (told, 1));
    testkit::interface::up(&rig.interface).unwrap();
    // Either end swallows frames until its link watch has seen the carrier again.
    while common::recv(&mut *rig.rx, 1, QUIET).is_empty() {
        // The peer's socket has been told of the same, once.
        drop(rig.peer.send(&frame));
    }
    while !matches!(rig.peer.recv(QUIET), Ok(Some(_))) {
        rig.tx.send(&list).unwrap();
    }
    assert_eq!(rig.stats.tx().link_down, 1);
}

fn removed(rig: &mut Rig) {
    testkit::interface::down(&rig.interface).unwrap();
    rig.recv_nothing();
    testkit::interface::remove(&rig.interface).unwrap();
    assert_eq!(closed(&mut *rig.rx), Closed::Removed);
    let frame = rig.kind.frame(100, 1);
    assert!(rig.tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).is_err());
}

fn kernel_drops(rig: &mut Rig) {
    const SENT: u64 = 30_000;
    let frame = rig.kind.frame(1500, 1);
    (0..SENT).for_each(|_| rig.peer.send(&frame).unwrap());
    // Until everything is accounted for: how long reading takes is up to the machine.
    let (begin, mut received) = (Instant::now(), 0);
    let mut rx = rig.stats.rx();
    while rx.frames + rx.kernel_drops < SENT && begin.elapsed() < common::PATIENCE {
        received += common::recv(&mut *rig.rx, usize::MAX, QUIET).len() as u64;
        rx = rig.stats.rx();
    }
    assert_eq!((rx.frames, rx.frames + rx.kernel_drops), (received, SENT));
    assert!(rx.kernel_drops > 0, "the flood fitted");
}
