//! Packet-mmap rings of both versions on real interfaces: layout and budgets, order, super-frames,
//! truncation, a sleeping reader, floods, links that go down, own transmissions.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::error::Error;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use common::{Kind, PATIENCE, QUIET, Rig, Way, closed, readable, recv};
use fdlink::batch::VlanTag;
use fdlink::link::{adopt, open_packet};
use fdlink::offload::vnet::{ChecksumField, GsoKind, RxChecksum};
use fdlink::report::RingLayout;
use fdlink::{Closed, FdLink, Fill, Link, LinkOptions, Mode, QueuePair, RingVersion, TxFrame};
use rustix::fs::OFlags;
use testkit::packet::{self, Tcp, flag};
use testkit::{Peer, interface};

const VERSIONS: [RingVersion; 2] = [RingVersion::V2, RingVersion::V3];

fn options(version: RingVersion) -> LinkOptions {
    LinkOptions::new().mode(Mode::PacketMmap).ring_version(version)
}

/// A ring of that version, and its far end.
fn rig(version: RingVersion) -> Rig {
    let (link, peer, interface) = common::link(Kind::Packet, &options(version)).unwrap();
    rig_of(link, peer, interface)
}

fn rig_of(link: FdLink, peer: Peer, interface: String) -> Rig {
    let (stats, properties) = (link.stats(), link.properties().clone());
    let QueuePair { rx, tx } = Box::new(link).into_queues().unwrap().pop().unwrap();
    // The version plays no part once a link is there.
    let (kind, way, rx) = (Kind::Packet, Way::RING_V3, rx.unwrap());
    Rig { kind, way, rx, tx, stats, properties, peer, interface }
}

fn refusal(link: Result<FdLink, fdlink::SetupError>) -> String {
    let error = link.expect_err("a refusal");
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Waits for a batch that has something in it.
fn fill(rig: &mut Rig) {
    while !matches!(rig.rx.fill().unwrap(), Fill::Frames(1..)) {
        assert!(readable(&*rig.rx, PATIENCE));
    }
}

#[test]
fn the_layout_is_computed_and_reported() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let cases = [
            (options(RingVersion::V3), RingVersion::V3, 256),
            (LinkOptions::new().mode(Mode::PacketMmap), RingVersion::V3, 256),
            (options(RingVersion::V2), RingVersion::V2, 256),
            (options(RingVersion::V2).ring_bytes(8 << 20), RingVersion::V2, 64),
            (options(RingVersion::V3).ring_bytes((16 << 20) + 1), RingVersion::V3, 128),
        ];
        for (options, version, slots) in cases {
            let link = open_packet("a", 2, &options).unwrap();
            let report = link.report();
            let layout = RingLayout { version, slots, slot_len: 128 << 10 };
            for descriptor in &report.descriptors {
                assert_eq!(descriptor.ring_layout, Some(layout));
                assert_eq!(descriptor.ring, slots << 17);
            }
            assert!(report.to_string().contains(&format!(", {layout}")), "{report}");
            // A slot of V2 holds one frame, however short.
            let bytes = if version == RingVersion::V2 { slots * 1514 } else { slots << 17 };
            assert_eq!(link.properties().rx_queue_bytes, bytes);
        }
        // Without a ring it says nothing, and is not looked at.
        let link = open_packet("a", 1, &LinkOptions::new().ring_bytes(1)).unwrap();
        assert_eq!(link.report().descriptors[0].ring_layout, None);
    });
}

#[test]
fn a_budget_that_is_too_small_is_refused_before_anything_is_changed() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let fd = open_packet("a", 1, &LinkOptions::new()).unwrap().into_fds().pop().unwrap();
        rustix::fs::fcntl_setfl(&fd, OFlags::empty()).unwrap();
        for (version, bytes) in VERSIONS.iter().flat_map(|v| [(*v, (8 << 20) - 1), (*v, 2 << 30)]) {
            // A smaller or larger ring is nothing to fall back to.
            let options = options(version).ring_bytes(bytes).fallback(true);
            let text = refusal(adopt(vec![fd.try_clone().unwrap()], &options));
            let expected = "ring_bytes: expected 8388608 to 1073741824 bytes, found ";
            assert_eq!(text, format!("{expected}{bytes}"));
            assert!(!rustix::fs::fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK));
        }
        adopt(vec![fd], &options(RingVersion::V2)).unwrap();
    });
}

#[test]
fn a_ring_that_is_there_already_is_refused_by_every_mode() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        for version in VERSIONS {
            let fds = open_packet("a", 1, &LinkOptions::new()).unwrap().into_fds();
            let shared = fds[0].try_clone().unwrap();
            let owner = adopt(fds, &options(version)).unwrap();
            // No mode would see a frame, so there is nothing to fall back to.
            for mode in Mode::NAMED {
                for fallback in [false, true] {
                    let options = LinkOptions::new().mode(mode).fallback(fallback);
                    let text = refusal(adopt(vec![shared.try_clone().unwrap()], &options));
                    let expected = "descriptor 0 is an AF_PACKET socket that has a ring ";
                    assert!(text.starts_with(expected), "{text}");
                }
            }
            // The owner is not disturbed, and takes its ring with it when it gives back the socket.
            let fds = owner.into_fds();
            for again in VERSIONS {
                adopt(vec![fds[0].try_clone().unwrap()], &options(again)).unwrap().into_fds();
            }
            let readv = adopt(vec![shared], &LinkOptions::new()).unwrap();
            let mut rig = rig_of(readv, Peer::on_interface("b").unwrap(), "a".to_owned());
            let frame = rig.kind.frame(100, 1);
            rig.peer.send(&frame).unwrap();
            assert_eq!(rig.recv(1), [frame]);
        }
    });
}

#[test]
fn frames_come_in_order_and_may_be_changed_in_place() {
    testkit::in_namespace(|| {
        for version in VERSIONS {
            let mut rig = rig(version);
            // Several times round a ring of 256 slots, in batches across its end.
            for burst in 0..20_usize {
                let len = |i: usize| 15 + (burst * 100 + i) * 37 % 1499;
                let frames: Vec<_> =
                    (0..100).map(|i| rig.kind.frame(len(i), i.try_into().unwrap())).collect();
                frames.iter().for_each(|frame| rig.peer.send(frame).unwrap());
                let mut expected = frames.iter();
                while expected.len() > 0 {
                    fill(&mut rig);
                    for mut frame in rig.rx.batch() {
                        let sent = expected.next().unwrap();
                        assert_eq!(frame.bytes(), sent, "{version:?}, burst {burst}");
                        frame.bytes_mut().iter_mut().for_each(|byte| *byte ^= 0xff);
                        assert!(frame.bytes().iter().zip(sent).all(|(a, b)| *a == b ^ 0xff));
                    }
                }
            }
            rig.recv_nothing();
            drop(rig.rx);
            let rx = rig.stats.rx();
            assert_eq!((rx.frames, rx.kernel_drops, rx.malformed), (2000, 0, 0));
        }
    });
}

#[test]
fn a_batch_that_is_left_is_given_back_by_the_next_visit() {
    testkit::in_namespace(|| {
        for version in VERSIONS {
            let mut rig = rig(version);
            for round in 0..600_usize {
                let frame = rig.kind.frame(200, (round % 256).try_into().unwrap());
                rig.peer.send(&frame).unwrap();
                fill(&mut rig);
                match round % 3 {
                    0 => rig.rx.release(),
                    1 => {}
                    _ => assert_eq!(rig.rx.batch().next().unwrap().bytes(), frame),
                }
                assert_eq!(rig.rx.batch().next().is_some(), round % 3 != 0);
            }
            assert_eq!(rig.stats.rx().frames, 600);
        }
    });
}

#[test]
fn super_frames_come_whole() {
    testkit::in_namespace(|| {
        for version in VERSIONS {
            let mut rig = rig(version);
            let payload = vec![7; 45 * 1448];
            let (source, destination) = (([192, 0, 2, 1], 5).into(), ([192, 0, 2, 2], 6).into());
            let (seq, ack, window, flags) = (1, 1, 1000, flag::ACK);
            let (options, payload) = (&[1; 12][..], &payload[..]);
            let tcp = Tcp { source, destination, seq, ack, window, flags, options, payload };
            let frame = packet::ethernet_ip([2; 6], [4; 6], &packet::tcp(tcp));
            assert_eq!(frame.len(), 65_226);
            // NEEDS_CSUM, TCPV4; headers of 66 bytes, segments of 1448, start 34, offset 16.
            let words = [66_u16, 1448, 34, 16].map(u16::to_ne_bytes);
            let vnet = [&[1, 1][..], words.as_flattened()].concat();
            let short = rig.kind.frame(60, 1);
            // More of them than a run of slots or a block holds.
            for _ in 0..100 {
                rig.peer.send_with(vnet[..].try_into().unwrap(), &frame).unwrap();
                rig.peer.send(&short).unwrap();
            }
            let mut count = 0;
            while count < 200 {
                fill(&mut rig);
                for arrived in rig.rx.batch() {
                    let meta = arrived.meta();
                    if count % 2 == 1 {
                        assert_eq!((arrived.bytes(), meta.gso), (&short[..], None));
                    } else {
                        assert!(arrived.bytes() == frame, "{} bytes", arrived.bytes().len());
                        let gso = meta.gso.expect("a super-frame");
                        assert_eq!((gso.kind, gso.size), (GsoKind::TcpV4, 1448));
                        let field = ChecksumField { start: 34, offset: 16 };
                        assert_eq!(meta.checksum, RxChecksum::Partial(field));
                    }
                    count += 1;
                }
            }
            let rx = rig.stats.rx();
            assert_eq!((rx.super_frames, rx.truncated, rx.malformed), (100, 0, 0));
        }
    });
}

#[test]
fn tags_and_times_are_told() {
    testkit::in_namespace(|| {
        for version in VERSIONS {
            let mut rig = rig(version);
            let plain = rig.kind.frame(100, 1);
            let mut tagged = plain.clone();
            tagged.splice(12..12, [0x81, 0, 0x20, 7]);
            let before = SystemTime::now();
            rig.peer.send(&tagged).unwrap();
            rig.peer.send(&plain).unwrap();
            let mut tags = Vec::new();
            let mut times = vec![before];
            while tags.len() < 2 {
                fill(&mut rig);
                for frame in rig.rx.batch() {
                    assert_eq!(frame.bytes(), plain, "{version:?}");
                    tags.push(frame.meta().vlan);
                    times.push(frame.meta().timestamp.expect("a time"));
                    assert_eq!(frame.meta().original_len, 100);
                }
            }
            times.push(SystemTime::now());
            assert_eq!(tags, [Some(VlanTag { tpid: 0x8100, tci: 0x2007 }), None], "{version:?}");
            assert!(times.is_sorted(), "{times:?}");
        }
    });
}

#[test]
fn a_frame_that_was_cut_off_is_counted_and_not_delivered() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        for version in VERSIONS {
            let fds = open_packet("a", 1, &LinkOptions::new()).unwrap().into_fds();
            testkit::cut_frames(fds[0].as_fd(), 80).unwrap();
            let link = adopt(fds, &options(version)).unwrap();
            let mut rig = rig_of(link, Peer::on_interface("b").unwrap(), "a".to_owned());
            let frames: Vec<_> =
                [60, 81, 80, 1514, 70].into_iter().map(|len| rig.kind.frame(len, 1)).collect();
            frames.iter().for_each(|frame| rig.peer.send(frame).unwrap());
            assert_eq!(rig.recv(3), [&frames[0][..], &frames[2], &frames[4]], "{version:?}");
            rig.recv_nothing();
            let rx = rig.stats.rx();
            assert_eq!((rx.frames, rx.truncated, rx.malformed), (3, 2, 0), "{version:?}");
        }
    });
}

/// docs/rings.md: V3 tolerates blocks × timeout (256 ms), V2 as many frames as there are slots.
#[test]
fn a_sleeping_reader_loses_nothing_of_a_trickle() {
    testkit::in_namespace(|| {
        for version in VERSIONS {
            let mut rig = rig(version);
            let mut sent = 0_u8;
            for _ in 0..3 {
                // 200 ms, a frame every 1.2 ms or so: each goes to a block of its own.
                let end = Instant::now() + Duration::from_millis(200);
                let mut frames = Vec::new();
                while Instant::now() < end {
                    let frame = rig.kind.frame(100, sent);
                    rig.peer.send(&frame).unwrap();
                    frames.push(frame);
                    sent = sent.wrapping_add(1);
                    std::thread::sleep(Duration::from_micros(1100));
                }
                assert_eq!(rig.recv(frames.len()), frames, "{version:?}");
            }
            drop(rig.rx);
            assert_eq!(rig.stats.rx().kernel_drops, 0, "{version:?}");
        }
    });
}

#[test]
fn a_ring_is_readable_until_its_frames_are_given_back() {
    testkit::in_namespace(|| {
        for version in VERSIONS {
            let mut rig = rig(version);
            assert!(!readable(&*rig.rx, QUIET), "{version:?}");
            rig.peer.send(&rig.kind.frame(100, 1)).unwrap();
            assert!(readable(&*rig.rx, PATIENCE), "{version:?}");
            fill(&mut rig);
            assert!(readable(&*rig.rx, QUIET), "{version:?}");
            rig.rx.release();
            assert!(!readable(&*rig.rx, QUIET), "{version:?}");
        }
    });
}

#[test]
fn a_flood_that_overruns_the_ring_adds_up() {
    testkit::in_namespace(|| {
        const SENT: u64 = 30_000;
        for version in VERSIONS {
            let options = options(version).ring_bytes(8 << 20);
            let (link, peer, interface) = common::link(Kind::Packet, &options).unwrap();
            let mut rig = rig_of(link, peer, interface);
            let frame = rig.kind.frame(1500, 1);
            let mut received = 0;
            for round in 0..SENT {
                rig.peer.send(&frame).unwrap();
                if round % 1000 == 0
                    && let Fill::Frames(count) = rig.rx.fill().unwrap()
                {
                    received += count as u64;
                }
            }
            if version == RingVersion::V2 {
                // The kernel's mark in a slot has made us ask, while the ring was never empty.
                assert!(rig.stats.rx().kernel_drops > 0, "{version:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
            received += recv(&mut *rig.rx, usize::MAX, Duration::from_millis(100)).len() as u64;
            let rx = rig.stats.rx();
            assert_eq!((rx.frames, rx.frames + rx.kernel_drops), (received, SENT), "{version:?}");
            assert!(rx.kernel_drops > 0, "the flood fitted: {version:?}");
        }
    });
}

#[test]
fn a_link_that_goes_down_comes_back_and_one_that_is_removed_closes() {
    testkit::in_namespace(|| {
        for version in VERSIONS {
            let mut rig = rig(version);
            let frame = rig.kind.frame(100, 1);
            for flap in 1..=2 {
                interface::down(&rig.interface).unwrap();
                rig.recv_nothing();
                assert_eq!(rig.stats.rx().link_down, flap, "{version:?}");
                interface::up(&rig.interface).unwrap();
                // Either end swallows frames until its link watch has seen the carrier again.
                while recv(&mut *rig.rx, 1, QUIET).is_empty() {
                    rig.peer.send(&frame).unwrap();
                }
                recv(&mut *rig.rx, usize::MAX, QUIET);
            }
            interface::down(&rig.interface).unwrap();
            rig.recv_nothing();
            interface::remove(&rig.interface).unwrap();
            assert_eq!(closed(&mut *rig.rx), Closed::Removed, "{version:?}");
        }
    });
}

#[test]
fn what_this_host_sends_does_not_come_back() {
    testkit::in_namespace(|| {
        for version in VERSIONS {
            let mut first = rig(version);
            let link = open_packet(&first.interface, 1, &options(version)).unwrap();
            let neighbour = Peer::on_interface(&first.interface).unwrap();
            let mut second = rig_of(link, neighbour, first.interface.clone());
            let frames: Vec<_> = (0..3).map(|seed| first.kind.frame(100, seed)).collect();
            let send = |rig: &mut Rig, frame: &[u8]| {
                let parts = [IoSlice::new(frame)];
                assert_eq!(rig.tx.send(&[TxFrame::new(&parts)]).unwrap().sent, 1);
            };
            send(&mut first, &frames[0]);
            send(&mut second, &frames[1]);
            second.peer.send(&frames[2]).unwrap();
            assert_eq!(first.peer_recv(3), frames);
            first.recv_nothing();
            second.recv_nothing();
            // What the far end sends comes to both.
            first.peer.send(&frames[0]).unwrap();
            for rig in [&mut first, &mut second] {
                assert_eq!(rig.recv(1), frames[..1], "{version:?}");
                assert_eq!((rig.stats.rx().frames, rig.stats.rx().malformed), (1, 0));
            }
        }
    });
}
