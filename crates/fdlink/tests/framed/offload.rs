//! What is left to the other side: done here where there is no vnet header to leave it by, and on a
//! stream that is full time and again in the middle of it.

use std::io::IoSlice;

use fdlink::link::FramePrefix;
use fdlink::offload::checksum::{Verdict, verify_transport};
use fdlink::offload::segment::{SegmentChecksum, SuperFrame};
use fdlink::offload::vnet::{Gso, GsoKind, TxOffload, VnetHeader};
use fdlink::{LinkOptions, Sent, TxFrame};

use crate::common::out::{BOTH, By, NOTHING};
use crate::common::traffic::Traffic;
use crate::rig::{PREFIXES, Rig, body};

/// Payload of the longest IP packet, whatever its headers here.
const LONG: usize = 65400;

fn options(vnet_header: usize) -> LinkOptions {
    // So that a slot may be as long as a super-frame.
    let options = LinkOptions::new().mtu(65500);
    if vnet_header > 0 { options.in_band_vnet_header(vnet_header) } else { options }
}

/// Every kind of frame with something left to do: within a segment, some segments, and as many as
/// there can be.
fn all_traffic() -> impl Iterator<Item = Traffic> {
    let sizes = [(1400, 700), (1400, 1400), (1400, 9 * 1400 + 1), (1400, LONG), (55, LONG)];
    [(false, false), (true, false), (false, true), (true, true)].into_iter().flat_map(
        move |(v6, udp)| {
            sizes.map(|(mss, payload)| Traffic { ethernet: true, v6, udp, payload, mss })
        },
    )
}

/// Sends frames, and has the far end read little at a time, until all of it is there; returns the
/// messages that arrived, and how often the queue kept the rest of a frame.
fn exchange(rig: &mut Rig, by: By, frames: &[(&[u8], TxOffload)]) -> (Vec<Vec<u8>>, usize) {
    let (mut next, mut told, mut kept, mut stream) = (0, Sent::default(), 0, Vec::new());
    let mut add = |sent: Sent| {
        told = Sent { taken: told.taken + sent.taken, sent: told.sent + sent.sent };
        sent.taken
    };
    while next < frames.len() || rig.tx.queued() > 0 {
        if by == By::List {
            next += add(send_list(rig, &frames[next..]));
            assert!(rig.tx.queued() <= 1, "only what has begun");
        } else {
            next += write_slots(rig, &frames[next..]);
            add(rig.tx.flush().unwrap());
        }
        kept += rig.tx.queued();
        stream.extend(rig.far_read(2999));
    }
    // What slots were flushed for room is told of to nobody.
    assert!(by == By::Slots || told == Sent { taken: frames.len(), sent: frames.len() });
    (messages(rig, stream), kept)
}

/// Sends a list of frames in three parts each, the headers in the first two.
fn send_list(rig: &mut Rig, frames: &[(&[u8], TxOffload)]) -> Sent {
    let split = |frame| {
        let (head, payload) = <[u8]>::split_at(frame, 100.min(frame.len()));
        let (start, rest) = head.split_at(20);
        [start, rest, payload].map(IoSlice::new)
    };
    let parts: Vec<_> = frames.iter().map(|(frame, _)| split(frame)).collect();
    let list: Vec<_> = parts
        .iter()
        .zip(frames)
        .map(|(parts, (_, offload))| TxFrame::new(parts).with_offload(*offload))
        .collect();
    rig.tx.send(&list).unwrap()
}

/// Commits frames for as long as there is room; returns how many.
fn write_slots(rig: &mut Rig, frames: &[(&[u8], TxOffload)]) -> usize {
    let mut count = 0;
    for (frame, offload) in frames {
        let Some(mut slot) = rig.tx.slot(frame.len()) else { break };
        slot.bytes_mut().copy_from_slice(frame);
        slot.commit(frame.len(), *offload);
        count += 1;
    }
    count
}

/// Takes a stream apart, of which all is there; it must end with a whole message.
fn messages(rig: &mut Rig, mut stream: Vec<u8>) -> Vec<Vec<u8>> {
    stream.extend(
        std::iter::from_fn(|| Some(rig.far_read(1 << 20)).filter(|more| !more.is_empty()))
            .flatten(),
    );
    let (mut messages, mut rest) = (Vec::new(), &stream[..]);
    while !rest.is_empty() {
        let (prefix, behind) = rest.split_at(if rig.prefix == FramePrefix::Be32 { 4 } else { 2 });
        let mut length = prefix.to_vec();
        if rig.prefix == FramePrefix::Le16 {
            length.reverse();
        }
        let len = length.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        messages.push(behind[..len].to_vec());
        rest = &behind[len..];
    }
    messages
}

/// What becomes of a message: itself, or the segments that its vnet header asks for.
fn segments(message: &[u8], vnet_header: usize) -> Vec<Vec<u8>> {
    let (vnet, frame) = message.split_at(vnet_header);
    let gso = VnetHeader::parse(vnet).and_then(|header| header.gso(frame.len()).unwrap());
    let Some(gso) = gso else { return vec![frame.to_vec()] };
    SuperFrame::parse(frame, 14, gso)
        .unwrap()
        .segments(SegmentChecksum::Complete)
        .map(|segment| {
            let mut out = vec![0; segment.frame_len()];
            segment.write(&mut out).unwrap();
            out
        })
        .collect()
}

#[test]
fn without_a_vnet_header_the_work_is_done_here() {
    for (prefix, by) in PREFIXES.into_iter().flat_map(|prefix| BOTH.map(|by| (prefix, by))) {
        for traffic in all_traffic() {
            let mut rig = Rig::narrow_with(prefix, &options(0));
            let (plain, frame) = (body(500, 1), traffic.partial());
            let given = (&frame[..], traffic.offload());
            let list = [(&plain[..], NOTHING), given, given, (&plain, NOTHING), given];
            let (arrived, kept) = exchange(&mut rig, by, &list);
            let count = traffic.segments();
            assert_eq!(arrived.len(), 2 + 3 * count, "{traffic:?}");
            assert!(arrived[0] == plain && arrived[1 + 2 * count] == plain);
            for from in [1, 1 + count, 2 + 2 * count] {
                let segments = &arrived[from..from + count];
                traffic.check_segments(segments);
                assert!(segments.iter().all(|s| verify_transport(&s[14..]) == Verdict::Correct));
            }
            let tx = rig.stats.tx();
            let bytes = arrived.iter().map(Vec::len).sum::<usize>() as u64;
            let cut = if count > 1 { 3 } else { 0 };
            assert_eq!((tx.frames, tx.bytes, tx.segmented), (arrived.len() as u64, bytes, cut));
            assert_eq!((tx.super_frames, tx.invalid, tx.too_long), (0, 0, 0));
            assert!(traffic.payload < LONG || (kept > 10 && tx.would_block > 10), "{kept}");
        }
    }
}

#[test]
fn with_a_vnet_header_only_udp_of_more_than_128_segments_is_cut() {
    for (vnet_header, by) in [10, 12].into_iter().flat_map(|len| BOTH.map(|by| (len, by))) {
        for traffic in all_traffic() {
            let mut rig = Rig::narrow_with(FramePrefix::Be32, &options(vnet_header));
            let frame = traffic.partial();
            let (plain, given) = (body(500, 1), (&frame[..], traffic.offload()));
            let list = [(&plain[..], NOTHING), given, (&plain, NOTHING), given];
            let (arrived, _) = exchange(&mut rig, by, &list);
            let pieces = if traffic.udp { traffic.segments().div_ceil(128) } else { 1 };
            assert_eq!(arrived.len(), 2 + 2 * pieces, "{traffic:?}");
            for from in [0, 1 + pieces] {
                assert!(arrived[from][..vnet_header] == vec![0; vnet_header]);
                assert!(arrived[from][vnet_header..] == plain);
                let rest = &arrived[from + 1..=from + pieces];
                let gso = u64::from(traffic.segments() > 1);
                assert!(rest.iter().all(|message| message[0] == 1));
                if gso == 1 {
                    let all: Vec<_> =
                        rest.iter().flat_map(|message| segments(message, vnet_header)).collect();
                    traffic.check_segments(&all);
                }
                assert!(pieces > 1 || rest[0][vnet_header..] == frame);
            }
            let tx = rig.stats.tx();
            let super_frames = arrived.iter().filter(|message| message[1] > 0).count();
            assert_eq!((tx.super_frames, tx.segmented), (super_frames as u64, 0));
            assert_eq!((tx.frames, tx.invalid), (arrived.len() as u64, 0));
        }
    }
}

/// Lists and slots by turns, of frames with and without work, on a stream that takes and gives a few
/// bytes at a time: all arrives in order, no piece among those of another frame.
#[test]
fn pieces_keep_their_place_among_lists_and_slots() {
    const COUNT: usize = 120;
    let traffic = |i: usize| {
        let (mss, payload) =
            [(1400, 700), (1400, 20_000), (55, 9000), (1400, LONG), (600, 1201)][i % 5];
        Traffic { ethernet: true, v6: i & 1 > 0, udp: i & 2 > 0, payload, mss }
    };
    for prefix in PREFIXES {
        let mut rig = Rig::narrow_with(prefix, &options(0));
        let bytes: Vec<_> = (0..COUNT)
            .map(|i| match i % 7 {
                0 | 4 => (body(100 + i, i), NOTHING),
                _ => (traffic(i).partial(), traffic(i).offload()),
            })
            .collect();
        let frames: Vec<_> = bytes.iter().map(|(frame, offload)| (&frame[..], *offload)).collect();
        let mut random = 1_u64;
        let mut below = |limit: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            usize::try_from((random >> 33) % limit).unwrap()
        };
        let (mut next, mut behind_a_list, mut stream) = (0, 0, Vec::new());
        while next < COUNT || rig.tx.queued() > 0 {
            let some = &frames[next..COUNT.min(next + 1 + below(4))];
            if below(2) == 0 {
                next += send_list(&mut rig, some).taken;
                behind_a_list += rig.tx.queued();
            } else {
                next += write_slots(&mut rig, some);
                rig.tx.flush().unwrap();
            }
            stream.extend(rig.far_read(1 + below(6000)));
        }
        let arrived = messages(&mut rig, stream);
        let mut rest = &arrived[..];
        for (i, (frame, offload)) in frames.into_iter().enumerate() {
            let (these, others) = rest.split_at(match offload.gso {
                Some(_) => traffic(i).segments(),
                None => 1,
            });
            if offload.gso.is_some() {
                traffic(i).check_segments(these);
            } else {
                assert!(these[0] == frame, "{i}");
            }
            rest = others;
        }
        assert!(rest.is_empty() && behind_a_list > 10);
        assert_eq!(rig.stats.tx().frames, arrived.len() as u64);
    }
}

/// A vnet header cannot say that a super-frame has no checksum to be filled in (virtio 1.2,
/// 5.1.6.2), nor two bytes the length of the longest: these are cut, too.
#[test]
fn what_the_lead_cannot_say_is_cut() {
    for by in BOTH {
        let mut rig = Rig::narrow_with(FramePrefix::Be32, &options(10));
        let traffic =
            Traffic { ethernet: true, v6: false, udp: false, payload: 9 * 1400, mss: 1400 };
        let offload = TxOffload { checksum: None, ..traffic.offload() };
        let (arrived, _) = exchange(&mut rig, by, &[(&traffic.complete(), offload)]);
        let frames: Vec<_> = arrived.iter().map(|message| message[10..].to_vec()).collect();
        traffic.check_segments(&frames);
        assert!(arrived.iter().all(|message| message[..10] == [0; 10]));
        assert_eq!((rig.stats.tx().segmented, rig.stats.tx().frames), (1, 9));
    }
    // The longest packet: 65535 bytes and an Ethernet header.
    for (vnet_header, udp) in [(0, false), (0, true), (12, false)] {
        let headers = if udp { 28 } else { 52 };
        let traffic =
            Traffic { ethernet: true, v6: false, udp, payload: 65535 - headers, mss: 1400 };
        let mut options = LinkOptions::new();
        if vnet_header > 0 {
            options = options.in_band_vnet_header(vnet_header);
        }
        let mut rig = Rig::narrow_with(FramePrefix::Be16, &options);
        let frame = traffic.partial();
        let (arrived, _) = exchange(&mut rig, By::List, &[(&frame, traffic.offload())]);
        let frames: Vec<_> =
            arrived.iter().map(|message| message[vnet_header..].to_vec()).collect();
        traffic.check_segments(&frames);
        assert_eq!(rig.stats.tx().segmented, 1);
    }
}

/// 128 segments behind long extension headers are too long for two bytes; one is not.
#[test]
fn runs_of_segments_that_are_too_long_become_single_ones() {
    const EXTENSION: usize = 64;
    let traffic = Traffic { ethernet: true, v6: true, udp: true, payload: 65410, mss: 511 };
    let mut frame = traffic.partial();
    // Destination options, all of them padding (RFC 8200, 4.2 and 4.6).
    let mut extension = [0; EXTENSION];
    extension[..4].copy_from_slice(&[17, 7, 1, 60]);
    frame[14 + 6] = 60;
    frame.splice(54..54, extension);
    let len = u16::try_from(frame.len() - 54).unwrap();
    frame[14 + 4..14 + 6].copy_from_slice(&len.to_be_bytes());
    let mut offload = traffic.offload();
    offload.checksum.as_mut().unwrap().start += 64;
    let options = LinkOptions::new().in_band_vnet_header(12);
    let mut rig = Rig::narrow_with(FramePrefix::Be16, &options);
    let (arrived, _) = exchange(&mut rig, By::List, &[(&frame, offload)]);
    let payload: Vec<u8> =
        arrived.iter().flat_map(|message| message[12 + 62 + EXTENSION..].to_vec()).collect();
    assert!(payload == frame[62 + EXTENSION..]);
    assert!(arrived.iter().all(|message| verify_transport(&message[26..]) == Verdict::Correct));
    assert_eq!((arrived.len(), rig.stats.tx().segmented), (129, 1));
}

#[test]
fn what_cannot_be_cut_drops_alone() {
    for by in BOTH {
        let mut rig = Rig::with(FramePrefix::Be16, &options(0));
        let traffic = Traffic { ethernet: true, v6: false, udp: true, payload: 4200, mss: 1400 };
        let (plain, frame) = (body(500, 1), traffic.partial());
        let gso = Gso { kind: GsoKind::UdpFragments, size: 1400, header_len: 0, ecn: false };
        let fragments = TxOffload { gso: Some(gso), ..traffic.offload() };
        let (good, bad) = ((&plain[..], NOTHING), (&frame[..], fragments));
        let list = [good, bad, bad, good, (&frame, traffic.offload()), bad, good];
        let sent = if by == By::List {
            send_list(&mut rig, &list)
        } else {
            assert_eq!(write_slots(&mut rig, &list), 7);
            rig.tx.flush().unwrap()
        };
        assert_eq!(sent, Sent { taken: 7, sent: 4 }, "{by:?}");
        let arrived: Vec<_> = (0..6).map(|_| rig.far_recv()).collect();
        traffic.check_segments(&arrived[2..5]);
        assert!(arrived[0] == plain && arrived[1] == plain && arrived[5] == plain);
        assert!(rig.far_read(1).is_empty());
        let tx = rig.stats.tx();
        assert_eq!((tx.invalid, tx.segmented, tx.frames, rig.tx.queued()), (3, 1, 6, 0));
    }
    // A segment of which the prefix cannot say how long it is.
    let mut rig = Rig::with(FramePrefix::Be16, &LinkOptions::new());
    let traffic = Traffic { ethernet: true, v6: false, udp: true, payload: 65507, mss: 65500 };
    let sent = send_list(&mut rig, &[(&traffic.partial(), traffic.offload())]);
    assert_eq!(sent, Sent { taken: 1, sent: 0 });
    assert_eq!((rig.stats.tx().too_long, rig.stats.tx().frames), (1, 0));
}

/// As on the other kinds: a frame that is queued when its queue ends is counted, also where some of
/// its pieces have left.
#[test]
fn the_rest_of_a_frame_that_was_cut_is_counted_when_its_queue_ends() {
    for by in BOTH {
        let mut rig = Rig::narrow_with(FramePrefix::Be32, &options(0));
        let traffic = Traffic { ethernet: true, v6: false, udp: false, payload: LONG, mss: 1400 };
        let frame = traffic.partial();
        let list = [(&frame[..], traffic.offload())];
        if by == By::List {
            assert_eq!(send_list(&mut rig, &list), Sent { taken: 1, sent: 1 });
        } else {
            assert_eq!(write_slots(&mut rig, &list), 1);
            assert_eq!(rig.tx.flush().unwrap(), Sent::default());
        }
        let Rig { tx, stats, .. } = rig;
        assert_eq!((tx.queued(), stats.tx().closed), (1, 0));
        assert!(stats.tx().frames > 0 && stats.tx().segmented == 1);
        drop(tx);
        assert_eq!(stats.tx().closed, 1);
    }
}
