//! The way out: a descriptor that is full in the middle of a frame, order, what is refused.

use std::io::IoSlice;

use fdlink::link::FramePrefix;
use fdlink::offload::vnet::{ChecksumField, Gso, TxOffload, VnetHeader};
use fdlink::{LinkOptions, Sent, TxFrame};

use crate::common::traffic::{MSS, Traffic};
use crate::rig::{PREFIXES, Rig, body, framed};

#[test]
fn a_frame_that_began_is_finished_first() {
    for prefix in PREFIXES {
        let mut rig = Rig::narrow(prefix);
        let frames: Vec<_> = (0..40).map(|i| body(1 + i * 7919 % 65000, i)).collect();
        let (mut done, mut begun, mut cut, mut stream) = (0, 0, 0, Vec::new());
        while done < frames.len() {
            let sent = rig.send(&frames[done..]);
            assert_eq!(sent.taken, sent.sent);
            done += sent.taken;
            cut += u64::from(done < frames.len());
            begun += rig.tx.queued();
            assert!(rig.tx.queued() <= 1 && rig.tx.wakeup().descriptor.is_some());
            // Less than a frame, so that what follows finds the rest still there.
            stream.extend(rig.far_read(3000));
        }
        while rig.tx.queued() > 0 {
            assert_eq!(rig.tx.flush().unwrap(), Sent::default(), "it was counted before");
            stream.extend(rig.far_read(3000));
        }
        let expected: Vec<_> = frames.iter().flat_map(|frame| framed(prefix, frame)).collect();
        while stream.len() < expected.len() {
            stream.extend(rig.far_read(1 << 20));
        }
        assert!(stream == expected, "{prefix:?}");
        assert!(begun > 0, "no frame was cut");
        let tx = rig.stats.tx();
        assert_eq!(tx.frames, 40);
        assert!(tx.would_block >= cut, "{tx:?}");
    }
}

#[test]
fn slots_leave_behind_the_rest_of_a_list_and_in_order() {
    let mut rig = Rig::narrow(FramePrefix::Be32);
    let frames: Vec<_> = (0..300).map(|i| body(1 + i * 977 % 9000, i)).collect();
    let (mut next, mut both, mut stream) = (0, false, Vec::new());
    while next < frames.len() {
        // A list, and slots for as long as there is room: by turns.
        next += rig.send(&frames[next..frames.len().min(next + 5)]).taken;
        both |= rig.tx.queued() > 0;
        while let Some(frame) = frames.get(next)
            && let Some(mut slot) = rig.tx.slot(1514.min(frame.len()))
        {
            if slot.bytes_mut().len() < frame.len() {
                break;
            }
            slot.bytes_mut().copy_from_slice(frame);
            slot.commit(frame.len(), TxOffload::default());
            next += 1;
            if next % 11 == 0 {
                break;
            }
        }
        rig.tx.flush().unwrap();
        stream.extend(rig.far_read(5000));
    }
    while rig.tx.queued() > 0 {
        rig.tx.flush().unwrap();
        stream.extend(rig.far_read(5000));
    }
    let expected: Vec<_> = frames.iter().flat_map(|frame| framed(rig.prefix, frame)).collect();
    while stream.len() < expected.len() {
        stream.extend(rig.far_read(1 << 20));
    }
    assert!(stream == expected);
    assert!(both, "no list was cut");
    assert_eq!(rig.stats.tx().frames, 300);
}

#[test]
fn a_refused_frame_drops_alone() {
    let mut rig = Rig::new(FramePrefix::Be16);
    let (good, long) = (body(100, 1), body(65536, 2));
    let past_end = ChecksumField { start: 99, offset: 0 };
    let checksum = TxOffload { checksum: Some(past_end), gso: None };
    let (good_parts, long_parts) = ([IoSlice::new(&good)], [IoSlice::new(&long)]);
    let plain = TxFrame::new(&good_parts);
    let list = [
        plain,
        TxFrame::new(&long_parts),
        plain,
        TxFrame::new(&[]),
        plain.with_offload(checksum),
        plain,
    ];
    assert_eq!(rig.tx.send(&list).unwrap(), Sent { taken: 6, sent: 3 });
    for offload in [TxOffload::default(), checksum, TxOffload::default()] {
        let mut slot = rig.tx.slot(100).unwrap();
        slot.bytes_mut().copy_from_slice(&good);
        slot.commit(100, offload);
    }
    rig.tx.slot(100).unwrap().commit(0, TxOffload::default());
    assert_eq!(rig.tx.flush().unwrap(), Sent { taken: 4, sent: 2 });
    assert_eq!(rig.tx.flush().unwrap(), Sent::default());
    (0..5).for_each(|_| assert_eq!(rig.far_recv(), good));
    let tx = rig.stats.tx();
    assert_eq!((tx.frames, tx.too_long, tx.invalid), (5, 1, 4));
    assert!(rig.tx.slot(1515).is_none(), "longer than the link's frames");
}

#[test]
fn link_headers_and_any_number_of_parts() {
    let mut rig = Rig::new(FramePrefix::Le16);
    let packet = body(3000, 5);
    let parts: Vec<_> =
        packet.iter().map(|byte| IoSlice::new(std::slice::from_ref(byte))).collect();
    let header = [6; 14];
    let many = TxFrame::new(&parts).with_link_header(header);
    let few = TxFrame::new(&parts[..7]).with_link_header(header);
    let list = [few, many, few, TxFrame::new(&parts[..1020]), few];
    assert_eq!(rig.tx.send(&list).unwrap(), Sent { taken: 5, sent: 5 });
    for frame in list {
        let bytes: Vec<_> = frame.parts().iter().flat_map(|part| part.to_vec()).collect();
        let header = frame.link_header().map_or(&[][..], |header| header);
        assert_eq!(rig.far_recv(), [header, &bytes].concat());
    }
}

/// A stack asks for the longest frame of a link before it writes one: that is not "full" for ever.
#[test]
fn a_slot_may_have_the_length_of_the_links_longest_frame() {
    for ethernet in [false, true] {
        let options = LinkOptions::new().mtu(65536).ethernet(ethernet);
        for options in [options.clone(), options.in_band_vnet_header(12)] {
            let mut rig = Rig::with(FramePrefix::Be32, &options);
            let longest = 65536 + if ethernet { 14 } else { 0 };
            let mut slot = rig.tx.slot(longest).expect("room");
            slot.bytes_mut().fill(7);
            // What no IP header can say is refused nonetheless.
            slot.commit(longest, TxOffload::default());
            assert_eq!(rig.tx.flush().unwrap(), Sent { taken: 1, sent: 0 });
            assert_eq!(rig.stats.tx().too_long, 1);
            assert!(rig.tx.slot(longest + 1).is_none());
        }
    }
}

/// As on every descriptor with a vnet header: the headers' length is the frame's own, whatever its
/// sender or the kernel that it came from said of it.
#[test]
fn vnet_headers_say_what_the_frame_says() {
    let mut rig = Rig::with(FramePrefix::Be32, &LinkOptions::new().in_band_vnet_header(10));
    let traffic = |payload| Traffic { ethernet: true, v6: false, udp: false, payload, mss: MSS };
    let (one, two) = (traffic(1400), traffic(1401));
    let header_len = |header_len| {
        let gso = two.offload().gso.map(|gso| Gso { header_len, ..gso });
        TxOffload { gso, ..two.offload() }
    };
    let cases = [
        (one, TxOffload { gso: None, ..one.offload() }, 0),
        (one, header_len(0), 0),
        (two, header_len(0), 1),
        // A forwarded frame: its kernel had more than the headers in one piece.
        (two, header_len(1000), 1),
    ];
    let mut super_frames = 0;
    for (traffic, offload, gso_type) in cases {
        let frame = traffic.partial();
        let parts = [IoSlice::new(&frame)];
        rig.tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
        let mut slot = rig.tx.slot(frame.len()).unwrap();
        slot.bytes_mut().copy_from_slice(&frame);
        slot.commit(frame.len(), offload);
        rig.tx.flush().unwrap();
        for _ in 0..2 {
            let message = rig.far_recv();
            let header = VnetHeader::parse(&message).unwrap();
            assert_eq!((header.hdr_len, header.gso_type), (66, gso_type), "{offload:?}");
            assert_eq!(message[10..], frame);
            super_frames += u64::from(gso_type);
        }
    }
    assert_eq!((rig.stats.tx().super_frames, rig.stats.tx().frames), (super_frames, 8));
    let past_end = TxOffload { checksum: Some(ChecksumField { start: 99, offset: 0 }), gso: None };
    let short = [IoSlice::new(&[7; 100])];
    let sent = rig.tx.send(&[TxFrame::new(&short).with_offload(past_end)]).unwrap();
    assert_eq!((sent, rig.stats.tx().invalid), (Sent { taken: 1, sent: 0 }, 1));
}

#[test]
fn what_waits_in_a_queue_that_is_dropped_is_counted() {
    let mut rig = Rig::narrow(FramePrefix::Be32);
    // A frame that began, and one behind it.
    assert_eq!(rig.send(&[body(60_000, 1)]).taken, 1);
    rig.tx.slot(100).unwrap().commit(100, TxOffload::default());
    let Rig { tx, stats, .. } = rig;
    assert_eq!((tx.queued(), stats.tx().frames, stats.tx().closed), (2, 1, 0));
    drop(tx);
    assert_eq!((stats.tx().frames, stats.tx().closed), (1, 1));
}
