//! What no descriptor that a link is made of does: take a part of a frame. A pipe does.

use std::io::{IoSlice, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::*;
use crate::batch::LinkHeader;
use crate::offload::vnet::{ChecksumField, Gso, GsoKind};
use crate::stats::QueueStats;

/// Pipes take bytes by pages, 16 of them by default (pipe(7)).
const PAGE: usize = 4096;

/// A sender on a pipe that has room for one page only.
fn almost_full() -> (Sender, PipeReader, Arc<QueueStats>) {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(&[0; 15 * PAGE]).unwrap();
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    let stats = Arc::<QueueStats>::default();
    let port = Port {
        fd: Arc::new(OwnedFd::from(writer).into()),
        stats: Arc::clone(&stats),
        channel: Channel::Device,
        cooked: None,
        vnet_header: 0,
        link_header: LinkHeader::None,
        max_len: 65535,
        batch: 1,
        drops_before: 0,
        timestamps: false,
    };
    (Sender::new(port), reader, stats)
}

#[test]
fn a_frame_that_was_taken_in_part_is_counted_and_the_rest_goes_on() {
    let (long, short) = ([1; 2 * PAGE], [2; 100]);
    let parts = [IoSlice::new(&long)];
    let rest = [IoSlice::new(&short)];
    let (mut sender, mut reader, stats) = almost_full();
    let list = [TxFrame::new(&parts), TxFrame::new(&rest)];
    assert_eq!(sender.send(&list).unwrap(), Sent { taken: 1, sent: 0 });
    let tx = stats.tx.snapshot();
    assert_eq!((tx.frames, tx.short_write, tx.would_block), (0, 1, 1));
    reader.read_exact(&mut [0; 16 * PAGE]).unwrap();
    assert_eq!(sender.send(&list[1..]).unwrap(), Sent { taken: 1, sent: 1 });
    let mut arrived = [0; 100];
    reader.read_exact(&mut arrived).unwrap();
    assert_eq!(arrived, short);

    let (mut sender, mut reader, stats) = almost_full();
    for bytes in [&long[..], &short] {
        let mut slot = sender.slot(bytes.len()).unwrap();
        slot.bytes_mut().copy_from_slice(bytes);
        slot.commit(bytes.len(), TxOffload::default());
    }
    assert_eq!(sender.flush().unwrap(), Sent { taken: 1, sent: 0 });
    assert_eq!((sender.queued(), stats.tx.snapshot().short_write), (1, 1));
    reader.read_exact(&mut [0; 16 * PAGE]).unwrap();
    assert_eq!(sender.flush().unwrap(), Sent { taken: 1, sent: 1 });
}

#[test]
fn a_segment_that_was_taken_in_part_does_not_take_the_others_with_it() {
    const SIZE: u16 = 6000;
    let (mut sender, mut reader, stats) = almost_full();
    // An IPv4 header of 20 bytes, a UDP header, three segments.
    let payload = 3 * SIZE;
    let mut frame = vec![0; 28 + usize::from(payload)];
    (frame[0], frame[9]) = (0x45, 17);
    frame[2..4].copy_from_slice(&(28 + payload).to_be_bytes());
    frame[24..26].copy_from_slice(&(8 + payload).to_be_bytes());
    let gso = Gso { kind: GsoKind::UdpSegments, size: SIZE, header_len: 0, ecn: false };
    let checksum = Some(ChecksumField { start: 20, offset: 6 });
    let parts = [IoSlice::new(&frame)];
    let list = [TxFrame::new(&parts).with_offload(TxOffload { checksum, gso: Some(gso) })];
    // The first is lost, and that is said; the pipe is full for the second.
    assert_eq!(sender.send(&list).unwrap(), Sent { taken: 1, sent: 0 });
    assert_eq!((sender.queued(), stats.tx.snapshot().segmented), (1, 0));
    reader.read_exact(&mut [0; 16 * PAGE]).unwrap();
    assert_eq!(sender.flush().unwrap(), Sent::default());
    let tx = stats.tx.snapshot();
    assert_eq!((sender.queued(), tx.frames, tx.short_write, tx.segmented), (0, 2, 1, 1));
    let mut segment = vec![0; 28 + usize::from(SIZE)];
    for id in [1, 2] {
        reader.read_exact(&mut segment).unwrap();
        assert_eq!(segment[2..6], [(28 + SIZE).to_be_bytes(), u16::to_be_bytes(id)].concat());
    }
}
