//! Any bytes as a packet: its headers, its checksum, its flow.
//!
//! Input: length of a link header (modulo 24); whether lengths are mended; start and offset of a
//! checksum field; the frame.
#![no_main]

use fdlink::offload::checksum::{
    Verdict, complete, ipv4_header_checksum, seed, sum, verify_transport,
};
use fdlink::offload::flow_hash::{flow_hash, pick};
use fdlink::offload::vnet::ChecksumField;
use fdlink_fuzz::{Input, mend_lengths, naive_checksum};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let link_header_len = usize::from(input.byte() % 24);
    let mend = input.byte() & 1 != 0;
    let field = ChecksumField { start: input.word(), offset: input.word() };
    let mut frame = input.0.to_vec();
    if let Some(packet) = frame.get_mut(link_header_len..).filter(|_| mend) {
        mend_lengths(packet);
    }
    assert_eq!(sum(&frame).finish(), naive_checksum(&[&frame]));
    let packet = frame.get(link_header_len..).unwrap_or(&[]);
    let _ = ipv4_header_checksum(packet);
    assert!(pick(flow_hash(packet, 1), 3) < 3);

    completed_anywhere(&frame, field);
    seeded(&mut frame, link_header_len);
});

/// A checksum is completed where its field lies within the frame, and nothing changes elsewhere.
fn completed_anywhere(frame: &[u8], field: ChecksumField) {
    let mut completed = frame.to_vec();
    let done = complete(&mut completed, field).is_ok();
    assert_eq!(done, field.fits(frame.len()));
    let field = if done { field.range() } else { 0..0 };
    assert_eq!(completed[..field.start], frame[..field.start]);
    assert_eq!(completed[field.end..], frame[field.end..]);
}

/// A packet whose checksum is made anew is right, and has the one that it had if that was right.
fn seeded(frame: &mut [u8], link_header_len: usize) {
    let before = frame.to_vec();
    let verdict = verify_transport(before.get(link_header_len..).unwrap_or(&[]));
    let Some(field) = seed(frame, link_header_len) else {
        assert_eq!(frame, before);
        return;
    };
    assert_eq!(complete(frame, field), Ok(()));
    if frame.len() - link_header_len <= 0xffff {
        assert_eq!(verify_transport(&frame[link_header_len..]), Verdict::Correct);
    }
    let value = |frame: &[u8]| frame[field.range()].iter().fold(0, |v, b| v << 8 | u32::from(*b));
    // 0 is no checksum in UDP, and 0xffff is another form of it elsewhere.
    if verdict == Verdict::Correct && value(&before) != 0 {
        assert_eq!(value(frame) % 0xffff, value(&before) % 0xffff);
    }
}
