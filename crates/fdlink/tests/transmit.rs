//! Sending what the kernel or the descriptor does not take as it is: super-frames that are refused,
//! that are too much at once, that have nobody to cut them; and frames that fail alone. What a
//! header says on the wire is in `rows.rs`, the rest of sending in `conformance.rs`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::IoSlice;

use common::out::{BOTH, By, NOTHING, Out};
use common::traffic::Traffic;
use common::{Kind, PATIENCE, QUIET};
use fdlink::offload::segment::{SegmentChecksum, SuperFrame};
use fdlink::offload::vnet::{ChecksumField, Gso, GsoKind, TxOffload, VnetHeader};
use fdlink::{LinkOptions, Offload, Sent, TxFrame};
use testkit::{interface, packet};

const ALL_SENT: Sent = Sent { taken: 3, sent: 3 };

/// Kinds that can be made here.
fn interfaces(test: &str) -> &'static [Kind] {
    if testkit::has_tun(test) { &[Kind::Packet, Kind::Tap, Kind::Tun] } else { &[Kind::Packet] }
}

/// The kernel wants a super-frame's checksum where its protocol has it, and says EINVAL to any
/// other place. The segments know the right one.
#[test]
fn a_super_frame_that_the_kernel_refuses_is_cut_here() {
    testkit::in_namespace(|| {
        for kind in interfaces("a_super_frame_that_the_kernel_refuses_is_cut_here") {
            for v6 in [false, true] {
                for by in BOTH {
                    let mut out = Out::new(*kind, &LinkOptions::new());
                    let traffic = Traffic { v6, ..out.tcp(40) };
                    let checksum = Some(ChecksumField { start: traffic.start(), offset: 2 });
                    let refused = TxOffload { checksum, ..traffic.offload() };
                    let good = out.kind.frame(100, 1);
                    let frame = traffic.partial();
                    let list = [(&good[..], NOTHING), (&frame, refused), (&good, NOTHING)];
                    assert_eq!(out.send(by, &list), ALL_SENT, "{kind:?} {by:?}");
                    assert_eq!(out.recv(), good);
                    traffic.check_segments(&out.recv_many(40));
                    assert_eq!(out.recv(), good);
                    let tx = out.tx();
                    assert_eq!((tx.frames, tx.segmented, tx.super_frames), (42, 1, 0));
                    assert_eq!((tx.invalid, tx.too_long), (0, 0));
                    // It was given to the kernel first, which a device shows call by call.
                    assert!(*kind == Kind::Packet || tx.calls == 43, "{}", tx.calls);
                }
            }
        }
    });
}

#[test]
fn a_super_frame_that_nobody_can_cut_drops_alone() {
    testkit::in_namespace(|| {
        for kind in interfaces("a_super_frame_that_nobody_can_cut_drops_alone") {
            for (by, offload) in [(By::List, Offload::Off), (By::Slots, Offload::Auto)] {
                let mut out = Out::new(*kind, &LinkOptions::new().offload(offload));
                // IP fragments are not made here, and the kernel makes none of size 0.
                let gso = Gso { kind: GsoKind::UdpFragments, size: 0, header_len: 0, ecn: false };
                let traffic = Traffic { udp: true, ..out.tcp(3) };
                let fragments = TxOffload { gso: Some(gso), ..traffic.offload() };
                let (good, frame) = (out.kind.frame(100, 1), traffic.partial());
                let list = [(&good[..], NOTHING), (&frame, fragments), (&good, NOTHING)];
                assert_eq!(out.send(by, &list), Sent { taken: 3, sent: 2 }, "{kind:?} {by:?}");
                assert_eq!(out.recv_many(2), [good.clone(), good]);
                out.recv_nothing();
                assert_eq!((out.tx().invalid, out.tx().segmented, out.tx().frames), (1, 0, 2));
            }
        }
    });
}

#[test]
fn what_is_to_be_cut_without_a_checksum_is_cut_here() {
    testkit::in_namespace(|| {
        let check = |mut out: Out| {
            for (by, udp) in [(By::List, true), (By::List, false), (By::Slots, true)] {
                let traffic = Traffic { udp, ..out.tcp(3) };
                let offload = TxOffload { checksum: None, ..traffic.offload() };
                let sent = out.send(by, &[(&traffic.complete(), offload)]);
                assert_eq!(sent, Sent { taken: 1, sent: 1 });
                traffic.check_segments(&out.recv_many(3));
            }
            assert_eq!((out.tx().segmented, out.tx().frames, out.tx().super_frames), (3, 9, 0));
        };
        check(Out::in_band());
        check(Out::on_socket(Kind::Framed, 1 << 20, 10));
        for kind in interfaces("what_is_to_be_cut_without_a_checksum_is_cut_here") {
            check(Out::new(*kind, &LinkOptions::new()));
        }
    });
}

#[test]
fn udp_super_frames_leave_by_128_segments() {
    testkit::in_namespace(|| {
        udp_by_128(Out::in_band());
        udp_by_128(Out::on_socket(Kind::Framed, 1 << 20, 10));
        for kind in interfaces("udp_super_frames_leave_by_128_segments") {
            udp_by_128(Out::new(*kind, &LinkOptions::new()));
        }
    });
}

fn udp_by_128(mut out: Out) {
    let mut super_frames = 0;
    for by in BOTH {
        for (segments, v6) in [(128, false), (129, true), (300, false), (300, true), (600, false)] {
            let traffic =
                Traffic { v6, udp: true, payload: segments * 100, mss: 100, ..out.tcp(0) };
            let sent = out.send(by, &[(&traffic.partial(), traffic.offload())]);
            assert_eq!(sent, Sent { taken: 1, sent: 1 }, "{segments} {by:?}");
            let mut arrived = Vec::new();
            while arrived.len() < segments {
                let (vnet, frame) = out.peer.recv_with(PATIENCE).unwrap().expect("a frame");
                let expected = (segments - arrived.len()).min(128);
                let header = VnetHeader::parse(&vnet).unwrap();
                assert_eq!((header.flags, header.csum_start), (1, traffic.start()));
                let gso = traffic.offload().gso.unwrap();
                let said = (header.gso_type, header.gso_size);
                assert_eq!(said, if expected > 1 { (5, 100) } else { (0, 0) });
                super_frames += u64::from(expected > 1);
                let link_header_len = out.kind.header();
                let cut = SuperFrame::parse(&frame, link_header_len, gso).unwrap();
                // A partial checksum, ready to be completed.
                let mut completed = frame.clone();
                let field = traffic.offload().checksum.unwrap();
                fdlink::offload::checksum::complete(&mut completed, field).unwrap();
                let verdict =
                    fdlink::offload::checksum::verify_transport(&completed[link_header_len..]);
                assert_eq!(verdict, fdlink::offload::checksum::Verdict::Correct);
                let pieces = cut.segments(SegmentChecksum::Complete).map(|segment| {
                    let mut bytes = vec![0; segment.frame_len()];
                    segment.write(&mut bytes).unwrap();
                    bytes
                });
                assert_eq!(pieces.len(), expected);
                arrived.extend(pieces);
            }
            traffic.check_segments(&arrived);
        }
    }
    assert_eq!((out.tx().segmented, out.tx().super_frames), (0, super_frames));
    out.recv_nothing();
}

#[test]
fn a_device_that_is_down_is_no_refusal() {
    testkit::in_namespace(|| {
        for kind in interfaces("a_device_that_is_down_is_no_refusal") {
            for by in BOTH {
                let mut out = Out::new(*kind, &LinkOptions::new());
                let traffic = out.tcp(40);
                let frame = traffic.partial();
                interface::down(&out.interface).unwrap();
                let sent = out.send(by, &[(&frame, traffic.offload())]);
                assert_eq!(sent, Sent { taken: 1, sent: 0 }, "{kind:?} {by:?}");
                let tx = out.tx();
                assert_eq!((tx.link_down, tx.segmented, tx.frames, tx.invalid), (1, 0, 0, 0));
                interface::up(&out.interface).unwrap();
                if *kind == Kind::Packet {
                    interface::wait_running(&out.interface).unwrap();
                }
                // As long as ever. What arrives first may be lost on an interface just up.
                let arrived = loop {
                    out.send(by, &[(&frame, traffic.offload())]);
                    // The far end hears once that its interface was down.
                    if let Ok(Some(arrived)) = out.peer.recv(QUIET) {
                        break arrived;
                    }
                };
                assert!(arrived == frame, "{} bytes of {}", arrived.len(), frame.len());
                assert_eq!(out.tx().segmented, 0);
            }
        }
    });
}

#[test]
fn one_failing_frame_is_counted_by_its_reason() {
    testkit::in_namespace(|| {
        for kind in interfaces("one_failing_frame_is_counted_by_its_reason") {
            for by in BOTH {
                let mut out = Out::new(*kind, &LinkOptions::new());
                let (good, mut bad) = (out.kind.frame(100, 1), out.kind.frame(1600, 2));
                let too_long = match kind {
                    // EMSGSIZE; a device would take it.
                    Kind::Packet => 1,
                    // EINVAL: neither IPv4 nor IPv6.
                    Kind::Tun => {
                        bad[0] = 0x50;
                        0
                    }
                    // EINVAL: shorter than a link header.
                    _ => {
                        bad.truncate(13);
                        0
                    }
                };
                let list = [(&good[..], NOTHING), (&bad, NOTHING), (&good, NOTHING)];
                assert_eq!(out.send(by, &list), Sent { taken: 3, sent: 2 }, "{kind:?} {by:?}");
                assert_eq!(out.recv_many(2), [good.clone(), good]);
                let tx = out.tx();
                assert_eq!((tx.frames, tx.too_long, tx.invalid), (2, too_long, 1 - too_long));
            }
        }
    });
}

/// AF_PACKET would take it and let the length wrap.
#[test]
fn an_ip_packet_above_65535_bytes_is_refused_here() {
    testkit::in_namespace(|| {
        for kind in interfaces("an_ip_packet_above_65535_bytes_is_refused_here") {
            let link_header = kind.header();
            let options = LinkOptions::new().gso_max_size(link_header + 65535);
            let mut out = Out::new(*kind, &options);
            let traffic = Traffic { payload: 65535 - 52, ..out.tcp(0) };
            let longest = traffic.partial();
            assert_eq!(longest.len(), link_header + 65535);
            let longer = [&longest[..], &[0]].concat();
            let offload = traffic.offload();
            let list = [(&longest[..], offload), (&longer, offload), (&longest, offload)];
            assert_eq!(out.send(By::List, &list), Sent { taken: 3, sent: 2 });
            let tx = out.tx();
            assert_eq!((tx.super_frames, tx.too_long, tx.segmented), (2, 1, 0));
            assert!(out.tx.slot(longer.len()).is_none());
            // A kernel that forwards as much as that cuts it itself (GSO_LEGACY_MAX_SIZE).
            if *kind != Kind::Packet {
                assert!(out.recv_many(2) == [longest.clone(), longest]);
                out.recv_nothing();
            }
        }
    });
}

/// EMSGSIZE, from a socket that may only hold less; for UDP, to 128 segments at a time as well.
#[test]
fn a_socket_that_cannot_hold_a_super_frame_gets_segments() {
    for (by, udp) in [(By::List, false), (By::Slots, false), (By::List, true), (By::Slots, true)] {
        let mut out = Out::on_socket(Kind::Seqpacket, 4 << 10, 10);
        let mut traffic = out.tcp(40);
        if udp {
            traffic = Traffic { udp, payload: 300 * 100, mss: 100, ..traffic };
        }
        let frame = traffic.partial();
        let sent = out.send(by, &[(&frame, traffic.offload())]);
        let begun = usize::from(by == By::List);
        assert_eq!((sent.taken, sent.sent, out.tx.queued()), (begun, begun, 1), "{by:?}");
        let mut arrived = Vec::new();
        while arrived.len() < traffic.segments() {
            let (vnet, segment) = out.peer.recv_with(PATIENCE).unwrap().expect("a segment");
            assert_eq!(vnet, [0; 10]);
            arrived.push(segment);
            out.tx.flush().unwrap();
        }
        traffic.check_segments(&arrived);
        assert_eq!((out.tx.queued(), out.tx().segmented, out.tx().too_long), (0, 1, 0));
    }
}

#[test]
fn what_is_left_of_a_super_frame_waits_and_leaves_first() {
    for kind in [Kind::Seqpacket, Kind::Datagram] {
        let mut out = Out::on_socket(kind, 16 << 10, 0);
        let traffic = out.tcp(40);
        let (frame, good) = (traffic.partial(), kind.frame(100, 1));
        let list = [(&good[..], NOTHING), (&frame, traffic.offload()), (&good, NOTHING)];
        // Two were taken, and the second left only in part.
        assert_eq!(out.send(By::List, &list), Sent { taken: 2, sent: 2 }, "{kind:?}");
        assert_eq!(out.tx.queued(), 1);
        let left = usize::try_from(out.tx().frames).unwrap();
        assert!((2..41).contains(&left), "{left}");
        // Nothing overtakes it, by whichever way; in a slot there may be a super-frame, too.
        assert_eq!(out.send(By::List, &list[2..]), Sent::default());
        let small = Traffic { payload: 1200, mss: 400, ..traffic };
        let small_frame = small.partial();
        let slots = [(&small_frame[..], small.offload()), (&good, NOTHING)];
        assert_eq!(out.send(By::Slots, &slots), Sent::default());
        assert_eq!(out.tx.queued(), 3);
        let mut sent = Sent::default();
        let mut arrived = Vec::new();
        while arrived.len() < 1 + 40 + 3 + 1 {
            arrived.push(out.recv());
            let flushed = out.tx.flush().unwrap();
            sent = Sent { taken: sent.taken + flushed.taken, sent: sent.sent + flushed.sent };
        }
        assert_eq!((arrived[0].as_slice(), arrived[44].as_slice()), (&good[..], &good[..]));
        traffic.check_segments(&arrived[1..41]);
        small.check_segments(&arrived[41..44]);
        // The first super-frame was told of before.
        assert_eq!((sent, out.tx.queued()), (Sent { taken: 2, sent: 2 }, 0));
        let tx = out.tx();
        assert_eq!((tx.frames, tx.segmented, tx.super_frames), (45, 2, 0));
        out.recv_nothing();
    }
}

#[test]
fn a_super_frame_that_has_not_begun_to_leave_is_the_callers_still() {
    for kind in [Kind::Seqpacket, Kind::Datagram] {
        let mut out = Out::on_socket(kind, 16 << 10, 0);
        let traffic = out.tcp(3);
        let (frame, filler) = (traffic.partial(), kind.frame(100, 1));
        let mut fillers = 0;
        while out.send(By::List, &[(&filler, NOTHING)]).taken == 1 {
            fillers += 1;
        }
        let list = [(&frame[..], traffic.offload()), (&filler, NOTHING)];
        assert_eq!((out.send(By::List, &list), out.tx.queued()), (Sent::default(), 0));
        assert_eq!(out.recv_many(fillers), vec![filler.clone(); fillers]);
        assert_eq!(out.send(By::List, &list).taken, 2);
        traffic.check_segments(&out.recv_many(3));
        assert_eq!(out.tx().segmented, 1);
    }
}

#[test]
fn checksums_without_a_header_are_completed_many_at_a_time() {
    for by in BOTH {
        let mut out = Out::new(Kind::Seqpacket, &LinkOptions::new());
        let traffic = Traffic { udp: true, payload: 50, ..out.tcp(0) };
        let frame = traffic.partial();
        let offload = TxOffload { gso: None, ..traffic.offload() };
        assert_eq!(out.send(by, &[(&frame[..], offload); 60]), Sent { taken: 60, sent: 60 });
        assert_eq!(out.recv_many(60), vec![traffic.complete(); 60]);
        assert_eq!((out.tx().calls, out.tx().segmented), (1, 0));
    }
}

#[test]
fn header_lengths_are_the_frames_own() {
    let mut out = Out::in_band();
    let tcp = out.tcp(2);
    let gso = |header_len| tcp.offload().gso.map(|gso| Gso { header_len, ..gso });
    let ping = packet::echo_request(
        "fd00::1".parse().unwrap(),
        "fd00::2".parse().unwrap(),
        (1, 1),
        &[0; 100],
    );
    let icmp = TxOffload { checksum: Some(ChecksumField { start: 40, offset: 2 }), gso: None };
    let one = Traffic { payload: 1400, ..tcp };
    let two = Traffic { payload: 1401, ..tcp };
    let cases = [
        // Only a checksum is left.
        (one.partial(), TxOffload { gso: None, ..one.offload() }, (52, 0)),
        // A protocol whose header is not known: up to the checksum's end.
        (ping, icmp, (44, 0)),
        // A forwarded frame: its kernel had more than the headers in one piece.
        (two.partial(), TxOffload { gso: gso(1000), ..two.offload() }, (52, 1)),
        (one.partial(), TxOffload { gso: gso(52), ..one.offload() }, (52, 0)),
        (one.partial(), TxOffload { gso: gso(1), ..one.offload() }, (52, 0)),
    ];
    for (frame, offload, expected) in cases {
        for by in BOTH {
            out.send(by, &[(&frame, offload)]);
            let (vnet, arrived) = out.peer.recv_with(PATIENCE).unwrap().unwrap();
            let header = VnetHeader::parse(&vnet).unwrap();
            assert_eq!((header.hdr_len, header.gso_type), expected, "{offload:?}");
            assert_eq!((header.flags, arrived), (1, frame.clone()));
        }
    }
    // Cut in the middle of the headers: what the kernel would look at is not lost.
    let frame = tcp.partial();
    let parts: Vec<_> = frame.chunks(7).map(IoSlice::new).collect();
    out.tx.send(&[TxFrame::new(&parts).with_offload(tcp.offload())]).unwrap();
    let (vnet, arrived) = out.peer.recv_with(PATIENCE).unwrap().unwrap();
    assert_eq!((VnetHeader::parse(&vnet).unwrap().hdr_len, arrived), (52, frame));
}

/// No segment ever finds a buffer: the frame is the caller's for some tries, and dropped then.
#[test]
fn a_super_frame_that_never_finds_a_buffer_is_dropped_in_the_end() {
    testkit::in_namespace(|| {
        const NAME: &str = "a_super_frame_that_never_finds_a_buffer_is_dropped_in_the_end";
        let mut out = Out::new(Kind::Packet, &LinkOptions::new());
        let mut tc = std::process::Command::new("tc");
        tc.args(["qdisc", "add", "dev", &out.interface, "root", "bfifo", "limit", "1"]);
        match tc.output() {
            Ok(output) if output.status.success() => {}
            other => return testkit::skip(NAME, &format!("tc: {other:?}")),
        }
        let traffic = out.tcp(3);
        let frame = traffic.complete();
        let offload = TxOffload { checksum: None, ..traffic.offload() };
        let mut tries = 0;
        while out.tx().no_buffers == 0 {
            tries += 1;
            assert!(tries < 1000, "for ever");
            let sent = out.send(By::List, &[(&frame, offload)]);
            assert_eq!(sent.sent, 0);
        }
        assert!(tries > 10, "{tries}");
    });
}

#[test]
fn what_waits_in_a_queue_that_is_dropped_is_counted() {
    let mut out = Out::on_socket(Kind::Seqpacket, 16 << 10, 0);
    let traffic = out.tcp(40);
    let frame = traffic.partial();
    // One that left in part, and two behind it.
    assert_eq!(out.send(By::List, &[(&frame, traffic.offload())]).taken, 1);
    let good = out.kind.frame(100, 1);
    out.send(By::Slots, &[(&good, NOTHING), (&good, NOTHING)]);
    let (queued, Out { tx, stats, .. }) = (out.tx.queued(), out);
    assert_eq!((queued, stats.tx().closed), (3, 0));
    drop(tx);
    assert_eq!(stats.tx().closed, 3);
}

#[test]
fn a_super_frame_with_vlan_tags_is_cut_behind_them() {
    testkit::in_namespace(|| {
        for kind in interfaces("a_super_frame_with_vlan_tags_is_cut_behind_them") {
            if kind.header() == 0 {
                continue;
            }
            let mut out = Out::new(*kind, &LinkOptions::new());
            for (by, v6) in [(By::List, false), (By::Slots, true)] {
                let traffic = Traffic { v6, udp: true, payload: 3000, mss: 1000, ..out.tcp(0) };
                let offload = TxOffload { checksum: None, ..traffic.offload() };
                let mut tagged = traffic.complete();
                // Priority 2: the tag begins as an IPv4 header does.
                tagged.splice(12..12, [0x81, 0x00, 0x45, 0x05]);
                assert_eq!(out.send(by, &[(&tagged, offload)]), Sent { taken: 1, sent: 1 });
                // The kernel takes the tag out of what it delivers.
                traffic.check_segments(&out.recv_many(3));
            }
            assert_eq!((out.tx().segmented, out.tx().invalid), (2, 0));
        }
    });
}
