//! The way in: frames wherever the stream is cut, hostile lengths, ends.

use std::io::{IoSlice, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fdlink::link::{FramePrefix, adopt_framed};
use fdlink::{Closed, Fill, Link, LinkOptions, Sent, TxFrame};
use proptest::prelude::*;

use crate::common::closed;
use crate::rig::{LONGEST, PREFIXES, Rig, body, framed, tcp_pair};

#[test]
fn more_small_frames_than_a_batch_holds_come_in_several() {
    let mut rig = Rig::new(FramePrefix::Le16);
    let stream: Vec<_> = (0..600).flat_map(|i| framed(rig.prefix, &body(1, i))).collect();
    rig.arrive(&stream);
    let expected: Vec<_> = (0..600).map(|i| body(1, i)).collect();
    assert_eq!(rig.recv(600), expected);
    let rx = rig.stats.rx();
    assert_eq!((rx.frames, rx.batches, rx.calls), (600, 3, 1));
}

#[test]
fn frames_of_every_length() {
    for prefix in PREFIXES {
        let mut rig = Rig::new(prefix);
        let frames = [&[][..], &[7], &[], &[], &[8, 9]];
        frames.iter().for_each(|frame| rig.arrive(&framed(prefix, frame)));
        assert_eq!(rig.recv(5), frames);
        assert_eq!((rig.stats.rx().frames, rig.stats.rx().malformed), (5, 0));
        let most = if prefix == FramePrefix::Be32 { LONGEST } else { 65535 };
        for len in [1, 60, 1514, 9014, 65535, most] {
            let frame = body(len, len);
            rig.arrive(&framed(prefix, &frame));
            assert_eq!(rig.recv(1), [frame]);
        }
        for len in [1, 60, 1514, 9014, 65535] {
            let frame = body(len, len);
            assert_eq!(rig.send(std::slice::from_ref(&frame)), Sent { taken: 1, sent: 1 });
            assert_eq!(rig.far_recv(), frame);
        }
    }
}

#[test]
fn byte_by_byte() {
    for prefix in PREFIXES {
        let mut rig = Rig::new(prefix);
        let frames = [body(300, 1), body(1, 2), body(70, 3)];
        let mut arrived = Vec::new();
        for byte in frames.iter().flat_map(|frame| framed(prefix, frame)) {
            rig.arrive(&[byte]);
            let fill = rig.rx.fill().unwrap();
            assert_eq!(fill, Fill::Frames(rig.rx.batch().len()));
            arrived.extend(rig.rx.batch().map(|frame| frame.bytes().to_vec()));
            assert_eq!(rig.rx.fill().unwrap(), Fill::Empty);
        }
        assert_eq!(arrived, frames);
    }
}

#[test]
fn a_length_that_no_frame_has_closes_with_the_reason() {
    for len in [LONGEST + 1, 0x7fff_ffff, 0xffff_ffff] {
        let mut rig = Rig::new(FramePrefix::Be32);
        rig.arrive(&framed(rig.prefix, b"before"));
        rig.arrive(&u32::try_from(len).unwrap().to_be_bytes());
        rig.arrive(&framed(rig.prefix, b"behind"));
        assert_eq!(rig.recv(1), [b"before"]);
        for _ in 0..3 {
            assert_eq!(closed(&mut *rig.rx), Closed::OutOfStep { len });
        }
        let text = Closed::OutOfStep { len }.to_string();
        assert!(text.contains(&len.to_string()), "{text}");
        assert_eq!((rig.stats.rx().frames, rig.stats.rx().malformed), (1, 1));
        // The other direction is not touched.
        assert_eq!(rig.send(&[body(9, 9)]).sent, 1);
    }
}

#[test]
fn the_peer_closes_at_every_offset() {
    for prefix in PREFIXES {
        let frames = [body(40, 1), body(25, 2)];
        let stream: Vec<_> = frames.iter().flat_map(|frame| framed(prefix, frame)).collect();
        let first = stream.len() - framed(prefix, &frames[1]).len();
        for cut in 0..=stream.len() {
            let mut rig = Rig::new(prefix);
            rig.arrive(&stream[..cut]);
            drop(std::mem::replace(&mut rig.far, UnixStream::pair().unwrap().0));
            let whole = usize::from(cut >= first) + usize::from(cut == stream.len());
            assert_eq!(rig.recv(whole), frames[..whole]);
            assert_eq!(closed(&mut *rig.rx), Closed::PeerClosed);
            assert_eq!(closed(&mut *rig.rx), Closed::PeerClosed);
            let in_a_frame = ![0, first, stream.len()].contains(&cut);
            let rx = rig.stats.rx();
            assert_eq!((rx.frames, rx.malformed), (whole as u64, in_a_frame.into()), "{cut}");
            let parts = [IoSlice::new(b"x")];
            let error = rig.tx.send(&[TxFrame::new(&parts)]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        }
    }
}

#[test]
fn a_reset_connection_is_the_peers_end() {
    let (ours, far) = tcp_pair();
    let link = adopt_framed(ours.into(), FramePrefix::Be16, &LinkOptions::new()).unwrap();
    let stats = link.stats();
    let mut pair = Box::new(link).into_queues().unwrap().pop().unwrap();
    let rx = &mut **pair.rx.as_mut().unwrap();
    (&far).write_all(&[0, 9, 1]).unwrap();
    while rx.fill().unwrap() == Fill::Empty {}
    rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
    drop(far);
    assert_eq!(closed(rx), Closed::PeerClosed);
    assert_eq!((stats.rx().frames, stats.rx().malformed), (0, 1));
    let parts = [IoSlice::new(b"x")];
    assert!(pair.tx.send(&[TxFrame::new(&parts)]).is_err());
}

/// What a parser without any cleverness makes of a whole stream: frames, strange ones, and how it
/// ends.
fn parse(prefix: FramePrefix, mut stream: &[u8]) -> (Vec<Vec<u8>>, u64, Closed) {
    let mut frames = Vec::new();
    loop {
        let (header, len) = match (prefix, stream) {
            (_, []) => return (frames, 0, Closed::PeerClosed),
            (FramePrefix::Be16, [a, b, ..]) => (2, usize::from(*a) << 8 | usize::from(*b)),
            (FramePrefix::Le16, [a, b, ..]) => (2, usize::from(*b) << 8 | usize::from(*a)),
            (FramePrefix::Be32, [a, b, c, d, ..]) => {
                (4, u32::from_be_bytes([*a, *b, *c, *d]) as usize)
            }
            _ => return (frames, 1, Closed::PeerClosed),
        };
        if len > LONGEST {
            return (frames, 1, Closed::OutOfStep { len });
        }
        let Some(frame) = stream.get(header..header + len) else {
            return (frames, 1, Closed::PeerClosed);
        };
        frames.push(frame.to_vec());
        stream = &stream[header + len..];
    }
}

/// Feeds the stream in those chunks, and compares with [`parse`].
fn check(prefix: FramePrefix, stream: &[u8], chunks: &[usize]) {
    let mut rig = Rig::new(prefix);
    let (mut arrived, mut rest, mut chunks) = (Vec::new(), stream, chunks.iter().cycle());
    let mut ended = None;
    while !rest.is_empty() && ended.is_none() {
        let (now, later) = rest.split_at(rest.len().min(*chunks.next().unwrap()));
        rig.arrive(now);
        rest = later;
        loop {
            match rig.rx.fill().unwrap() {
                Fill::Frames(_) => {
                    arrived.extend(rig.rx.batch().map(|frame| frame.bytes().to_vec()));
                }
                Fill::Empty => break,
                Fill::Closed(why) => {
                    ended = Some(why);
                    break;
                }
            }
        }
    }
    drop(std::mem::replace(&mut rig.far, UnixStream::pair().unwrap().0));
    let ended = ended.unwrap_or_else(|| closed(&mut *rig.rx));
    let (frames, malformed, why) = parse(prefix, stream);
    assert!(arrived == frames, "{} frames of {}", arrived.len(), frames.len());
    assert_eq!((rig.stats.rx().malformed, ended), (malformed, why));
}

fn prefixes() -> impl Strategy<Value = FramePrefix> {
    proptest::sample::select(&PREFIXES[..])
}

/// Lengths of all orders, none among them.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![0..4_usize, 0..100_usize, 1400..1600_usize, 0..65536_usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_chunking_gives_the_same_frames(
        prefix in prefixes(),
        lengths in prop::collection::vec(lengths(), 0..40),
        chunks in prop::collection::vec(prop_oneof![1..20_usize, 1..3000_usize, 1..60_000_usize], 1..50),
        cut in any::<prop::sample::Index>(),
    ) {
        let stream: Vec<_> = lengths
            .iter()
            .enumerate()
            .flat_map(|(i, len)| framed(prefix, &body(*len, i)))
            .collect();
        check(prefix, &stream, &chunks);
        check(prefix, &stream[..cut.index(stream.len() + 1)], &chunks);
    }

    #[test]
    fn any_bytes_end_or_become_frames(
        prefix in prefixes(),
        stream in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..4000),
        chunks in prop::collection::vec(1..900_usize, 1..20),
    ) {
        check(prefix, &stream, &chunks);
    }
}
