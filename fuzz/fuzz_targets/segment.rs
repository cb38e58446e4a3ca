//! Any bytes as a super-frame, cut into its segments.
//!
//! Input: kind (modulo 4); size; length of a link header (modulo 24); whether lengths are mended;
//! the frame.
#![no_main]

use fdlink::offload::checksum::{Verdict, complete, verify_transport};
use fdlink::offload::segment::{Segment, SegmentChecksum, SuperFrame};
use fdlink::offload::vnet::{Gso, GsoKind};
use fdlink_fuzz::{Input, mend_lengths, naive_checksum};
use libfuzzer_sys::fuzz_target;

const KINDS: [GsoKind; 4] =
    [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::UdpSegments, GsoKind::UdpFragments];

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let kind = KINDS[usize::from(input.byte() % 4)];
    let gso = Gso { kind, size: input.word(), header_len: 0, ecn: false };
    let link_header_len = usize::from(input.byte() % 24);
    let mend = input.byte() & 1 != 0;
    let mut bytes = input.0.to_vec();
    if let Some(packet) = bytes.get_mut(link_header_len..).filter(|_| mend) {
        mend_lengths(packet);
    }
    let Ok(frame) = SuperFrame::parse(&bytes, link_header_len, gso) else {
        return;
    };
    let (headers, payload) = bytes.split_at(frame.headers_len());
    let mut joined = Vec::new();
    let complete = frame.segments(SegmentChecksum::Complete);
    assert_eq!(complete.len(), payload.len().div_ceil(usize::from(gso.size)).max(1));
    for (whole, partial) in complete.zip(frame.segments(SegmentChecksum::Partial)) {
        let segment = written(&frame, &whole);
        check(&segment, headers, link_header_len);
        same_when_completed(&segment, &written(&frame, &partial), &frame);
        assert_eq!(segment[headers.len()..], *whole.payload());
        joined.extend_from_slice(whole.payload());
    }
    assert_eq!(joined, payload);
});

/// The segment's bytes; gathered from headers and payload they are the same.
fn written(frame: &SuperFrame<'_>, segment: &Segment<'_>) -> Vec<u8> {
    let mut buffer = vec![0xaa; frame.max_segment_len()];
    let len = segment.write(&mut buffer).expect("the buffer holds the longest");
    assert_eq!(len, segment.frame_len());
    buffer.truncate(len);
    let mut headers = vec![0x55; frame.headers_len()];
    assert_eq!(segment.write_headers(&mut headers), Ok(headers.len()));
    assert_eq!([&headers, segment.payload()].concat(), buffer);
    assert!(segment.write(&mut vec![0; len - 1]).is_err());
    buffer
}

/// Whole by its own headers, and otherwise like the super-frame.
fn check(segment: &[u8], headers: &[u8], link_header_len: usize) {
    assert_eq!(segment[..link_header_len], headers[..link_header_len]);
    let packet = &segment[link_header_len..];
    assert_eq!(verify_transport(packet), Verdict::Correct);
    let word = |at: usize| usize::from(packet[at]) << 8 | usize::from(packet[at + 1]);
    if packet[0] >> 4 == 4 {
        assert_eq!(word(2), packet.len());
        assert_eq!(naive_checksum(&[&packet[..usize::from(packet[0] & 15) * 4]]), 0);
    } else {
        assert_eq!(word(4) + 40, packet.len());
    }
}

fn same_when_completed(whole: &[u8], partial: &[u8], frame: &SuperFrame<'_>) {
    let mut completed = partial.to_vec();
    assert_eq!(complete(&mut completed, frame.checksum_field()), Ok(()));
    // 0 and 0xffff are two forms of one checksum.
    let range = frame.checksum_field().range();
    if completed[range.clone()] == [0xff, 0xff] && whole[range.clone()] == [0, 0] {
        completed[range].fill(0);
    }
    assert_eq!(completed, whole);
}
