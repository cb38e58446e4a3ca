use proptest::prelude::*;

use super::*;
use crate::fragment::tests::{fragments, udp_packet};
use crate::packet::tests::almost_packets;
use crate::packet::{fill_header_checksum, parse};

fn push(table: &mut Reassembly, now: Instant, packet: &[u8]) -> Outcome {
    let outcome = table.push(now, packet, &parse(packet).unwrap());
    check(table);
    outcome
}

/// Asserts what always holds.
fn check(table: &Reassembly) {
    assert!(table.partials.len() <= PACKETS && table.bytes <= BYTES, "{}", table.bytes);
    assert_eq!(table.bytes, table.partials.iter().map(Partial::cost).sum::<usize>());
    for partial in &table.partials {
        let received: usize = partial.pieces.iter().map(|piece| piece.data.len()).sum();
        assert_eq!(partial.received, received);
        assert!(partial.pieces.windows(2).all(|pair| pair[0].end() <= pair[1].offset));
    }
}

/// What a packet looks like when it was cut and put together.
fn put_together(packet: &[u8], ident: u16) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].copy_from_slice(&ident.to_be_bytes());
        packet[6..8].fill(0);
        fill_header_checksum(&mut packet[..20]);
    }
    packet
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

/// A fragment of IPv4 with that data.
fn piece(ident: u16, offset: u16, more: bool, data: &[u8]) -> Vec<u8> {
    let mut packet = udp_packet(true, ident, data);
    let field = (offset / 8) | if more { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    fill_header_checksum(&mut packet[..20]);
    packet
}

#[test]
fn fragments_in_any_order_give_the_packet_back() {
    let now = Instant::now();
    for v4 in [true, false] {
        for len in [1481, 4000, 65_515] {
            let packet = udp_packet(v4, 0, &payload(len));
            let mut parts = fragments(&packet, 1500, 5);
            for _ in 0..2 {
                parts.reverse();
                let mut table = Reassembly::default();
                let (last, others) = parts.split_last().unwrap();
                for part in others {
                    assert_eq!(push(&mut table, now, part), Outcome::Waiting);
                }
                let whole = push(&mut table, now, last);
                assert_eq!(whole, Outcome::Complete(put_together(&packet, 5)), "{v4} {len}");
                assert_eq!((table.bytes, table.partials.len()), (0, 0));
                assert_eq!(table.counts().completed, 1);
            }
        }
    }
}

#[test]
fn headers_in_front_of_the_fragment_header_stay() {
    const OPTIONS: [u8; 8] = [60, 0, 1, 4, 0, 0, 0, 0];
    let (now, mut table) = (Instant::now(), Reassembly::default());
    let packet = udp_packet(false, 0, &payload(2000));
    // Hop-by-hop options, which name the fragment header behind them.
    let with_options = |part: &[u8]| {
        let mut options = OPTIONS;
        options[0] = part[6];
        let mut out = [&part[..40], &options, &part[40..]].concat();
        out[6] = 0;
        let length = u16::try_from(out.len() - 40).unwrap();
        out[4..6].copy_from_slice(&length.to_be_bytes());
        out
    };
    let parts: Vec<_> = fragments(&packet, 1280, 5).iter().map(|part| with_options(part)).collect();
    assert_eq!(push(&mut table, now, &parts[1]), Outcome::Waiting);
    assert_eq!(push(&mut table, now, &parts[0]), Outcome::Complete(with_options(&packet)));
}

#[test]
fn flows_are_told_apart() {
    let (now, mut table) = (Instant::now(), Reassembly::default());
    let first = piece(1, 0, true, &[1; 8]);
    let mut other_protocol = piece(1, 8, false, &[2; 8]);
    other_protocol[9] = 6;
    fill_header_checksum(&mut other_protocol[..20]);
    let mut other_source = piece(1, 8, false, &[2; 8]);
    other_source[15] = 99;
    fill_header_checksum(&mut other_source[..20]);
    assert_eq!(push(&mut table, now, &first), Outcome::Waiting);
    for other in [other_protocol, other_source, piece(2, 8, false, &[2; 8])] {
        assert_eq!(push(&mut table, now, &other), Outcome::Waiting);
    }
    assert!(matches!(push(&mut table, now, &piece(1, 8, false, &[2; 8])), Outcome::Complete(_)));
    assert_eq!(table.partials.len(), 3);

    // IPv6: the first fragment's next header counts.
    let packet = udp_packet(false, 0, &payload(2000));
    let mut parts = fragments(&packet, 1280, 5);
    parts[1][40] = 6;
    assert_eq!(push(&mut table, now, &parts[1]), Outcome::Waiting);
    assert_eq!(push(&mut table, now, &parts[0]), Outcome::Complete(packet));
}

#[test]
fn a_packet_whose_fragments_disagree_is_given_up() {
    let good = [(0, true, 16), (16, true, 16)];
    let table = [
        ("inside", (8, true, 8), Reason::Overlap),
        ("across", (8, true, 16), Reason::Overlap),
        ("around", (0, true, 40), Reason::Overlap),
        ("same place, shorter", (0, true, 8), Reason::Overlap),
        ("last, inside", (24, false, 4), Reason::End),
        ("last, where more follow", (16, false, 16), Reason::End),
        ("too long", (65_528, false, 8), Reason::TooLong),
    ];
    let now = Instant::now();
    for (name, (offset, more, len), reason) in table {
        let mut table = Reassembly::default();
        for (offset, more, len) in good {
            push(&mut table, now, &piece(1, offset, more, &vec![1; len]));
        }
        let bad = piece(1, offset, more, &vec![1; len]);
        assert_eq!(push(&mut table, now, &bad), Outcome::Dropped(reason), "{name}");
        // The rest comes to nothing.
        let rest = piece(1, 32, false, &[1; 3]);
        assert_eq!(push(&mut table, now, &rest), Outcome::Dropped(Reason::GivenUp), "{name}");
        let counts = table.counts();
        assert_eq!((counts.given_up, counts.dropped), (1, 2));
        assert_eq!(table.bytes, PIECE_COST);
        // Until its time is over, which is nobody's timeout.
        assert_eq!(table.expire(now + TIMEOUT_V4).count(), 0);
        assert_eq!((table.counts().timed_out, table.bytes), (0, 0));
        assert_eq!(push(&mut table, now, &rest), Outcome::Waiting);
    }
}

#[test]
fn two_ends_are_one_too_many() {
    let (now, mut table) = (Instant::now(), Reassembly::default());
    for (offset, more, expected) in
        [(16, false, Outcome::Waiting), (24, true, Outcome::Dropped(Reason::End))]
    {
        assert_eq!(push(&mut table, now, &piece(1, offset, more, &[1; 8])), expected);
    }
    push(&mut table, now, &piece(2, 16, false, &[1; 8]));
    let other = push(&mut table, now, &piece(2, 8, false, &[1; 8]));
    assert_eq!(other, Outcome::Dropped(Reason::End));
}

#[test]
fn the_same_fragment_twice_is_tolerated() {
    let (now, mut table) = (Instant::now(), Reassembly::default());
    let parts = [piece(1, 0, true, &[1; 16]), piece(1, 24, false, &[3; 5])];
    for part in parts.iter().chain(&parts) {
        assert_eq!(push(&mut table, now, part), Outcome::Waiting);
    }
    assert_eq!(table.counts().duplicates, 2);
    assert!(matches!(push(&mut table, now, &piece(1, 16, true, &[2; 8])), Outcome::Complete(_)));
    let mut table = Reassembly::default();
    push(&mut table, now, &parts[0]);
    let altered = push(&mut table, now, &piece(1, 0, true, &[9; 16]));
    assert_eq!(altered, Outcome::Dropped(Reason::Overlap));
}

#[test]
fn odd_fragments_are_dropped_alone() {
    let (now, mut table) = (Instant::now(), Reassembly::default());
    let empty = push(&mut table, now, &piece(1, 8, true, &[]));
    assert_eq!(empty, Outcome::Dropped(Reason::Malformed));
    let odd = push(&mut table, now, &piece(1, 8, true, &[1; 9]));
    assert_eq!(odd, Outcome::Dropped(Reason::Malformed));
    let whole = push(&mut table, now, &piece(1, 0, false, &[1; 9]));
    assert_eq!(whole, Outcome::Dropped(Reason::Whole));
    assert_eq!((table.partials.len(), table.counts().dropped), (0, 3));
}

#[test]
fn tiny_fragments_are_bounded() {
    let (now, mut table) = (Instant::now(), Reassembly::default());
    let mut outcome = Outcome::Waiting;
    for n in 0..=PIECES {
        assert_eq!(outcome, Outcome::Waiting);
        outcome = push(&mut table, now, &piece(1, u16::try_from(n * 8).unwrap(), true, &[1; 8]));
    }
    assert_eq!(outcome, Outcome::Dropped(Reason::TooManyPieces));
}

#[test]
fn congestion_marks_survive() {
    let now = Instant::now();
    let cut = |v4: bool, marks: [u8; 2]| {
        let mut table = Reassembly::default();
        let packet = udp_packet(v4, 0, &payload(2000));
        let mut outcome = Outcome::Waiting;
        for (mut part, mark) in fragments(&packet, 1500, 1).into_iter().zip(marks) {
            if v4 {
                part[1] |= mark;
                fill_header_checksum(&mut part[..20]);
            } else {
                part[1] |= mark << 4;
            }
            outcome = push(&mut table, now, &part);
        }
        match outcome {
            Outcome::Complete(packet) => Ok(parse(&packet).unwrap().dscp_ecn & 3),
            other => Err(other),
        }
    };
    for v4 in [true, false] {
        assert_eq!(cut(v4, [0, 0]), Ok(0));
        assert_eq!(cut(v4, [2, 2]), Ok(2));
        assert_eq!(cut(v4, [2, 3]), Ok(3));
        assert_eq!(cut(v4, [3, 1]), Ok(3));
        assert_eq!(cut(v4, [0, 3]), Err(Outcome::Dropped(Reason::Congestion)));
    }
}

#[test]
fn what_does_not_come_in_time_is_forgotten() {
    let (start, mut table) = (Instant::now(), Reassembly::default());
    let v4 = fragments(&udp_packet(true, 0, &payload(4000)), 1500, 1);
    let v6 = fragments(&udp_packet(false, 0, &payload(4000)), 1500, 1);
    assert_eq!(table.next_deadline(), None);
    push(&mut table, start, &v6[0]);
    push(&mut table, start, &v4[0]);
    push(&mut table, start, &piece(9, 8, false, &[1; 8]));
    // A later fragment buys no time.
    push(&mut table, start + Duration::from_secs(29), &v4[1]);
    assert_eq!(table.next_deadline(), Some(start + TIMEOUT_V4));
    assert_eq!(table.expire(start + Duration::from_secs(29)).count(), 0);
    let expired: Vec<_> = table.expire(start + TIMEOUT_V4).collect();
    assert_eq!(expired, [&v4[0][..1280]], "the other one's first fragment never came");
    assert_eq!(table.next_deadline(), Some(start + TIMEOUT_V6));
    let expired: Vec<_> = table.expire(start + TIMEOUT_V6).collect();
    assert_eq!(expired, [&v6[0][..1280]]);
    check(&table);
    assert_eq!((table.counts().timed_out, table.bytes, table.next_deadline()), (3, 0, None));
    // What was cut short is enough for an error.
    let mut out = [0; 1280];
    let source = parse(&v6[0]).unwrap().destination;
    let len = crate::icmp::reassembly_time_exceeded(&mut out, &expired[0], source).unwrap();
    assert_eq!((len, &out[48..len]), (1280, &v6[0][..1232]));
}

#[test]
fn a_full_table_forgets_the_oldest() {
    let (now, mut table) = (Instant::now(), Reassembly::default());
    for ident in 0..64 {
        push(&mut table, now, &piece(ident, 0, true, &[1; 8]));
    }
    // Given up: goes first though it is the youngest.
    push(&mut table, now, &piece(63, 0, true, &[2; 8]));
    push(&mut table, now, &piece(64, 0, true, &[1; 8]));
    assert_eq!(table.counts().evicted, 0);
    push(&mut table, now, &piece(65, 0, true, &[1; 8]));
    assert_eq!((table.counts().evicted, table.partials[0].key.ident), (1, 1));
    // More of one that is there displaces nothing.
    push(&mut table, now, &piece(1, 16, true, &[1; 8]));
    assert_eq!(table.counts().evicted, 1);
}

#[test]
fn a_table_full_of_bytes_forgets_the_oldest() {
    let (now, mut table) = (Instant::now(), Reassembly::default());
    // The longest first fragment that is not the whole packet.
    let packet = udp_packet(false, 0, &payload(65_535));
    for ident in 0..64 {
        let parts = fragments(&packet, packet.len() - 1, ident);
        assert_eq!((parts.len(), push(&mut table, now, &parts[0])), (2, Outcome::Waiting));
    }
    assert_eq!((table.counts().evicted, table.partials[0].key.ident), (1, 1));
    let last = &fragments(&packet, packet.len() - 1, 63)[1];
    assert_eq!(push(&mut table, now, last), Outcome::Complete(packet));
}

proptest! {
    #[test]
    fn any_cut_in_any_order_gives_the_packet_back(
        v4: bool,
        len in 1600_usize..9000,
        mtu in 90_usize..1600,
        order in proptest::collection::vec(any::<u64>(), 256),
        ident: u16,
        twice: bool,
    ) {
        let packet = udp_packet(v4, 0, &payload(len));
        let parts = fragments(&packet, mtu, ident.into());
        let mut parts: Vec<_> = parts.into_iter().zip(order).collect();
        parts.sort_by_key(|(_, order)| *order);
        let (now, mut table) = (Instant::now(), Reassembly::default());
        let (last, others) = parts.split_last().unwrap();
        for (part, _) in others {
            prop_assert_eq!(push(&mut table, now, part), Outcome::Waiting);
            if twice {
                prop_assert_eq!(push(&mut table, now, part), Outcome::Waiting);
            }
        }
        let whole = push(&mut table, now, &last.0);
        prop_assert_eq!(whole, Outcome::Complete(put_together(&packet, ident)));
        prop_assert_eq!(table.bytes, 0);
    }

    #[test]
    fn no_fragments_break_its_bounds(
        parts in proptest::collection::vec(
            (0_u16..3, 0_u16..20, any::<bool>(), 0_usize..64),
            0..200,
        ),
        v6: bool,
    ) {
        let (mut now, mut table) = (Instant::now(), Reassembly::default());
        for (ident, offset, more, len) in parts {
            now += Duration::from_millis(300);
            let part = if v6 {
                let mut data = vec![17, 0, 0, 0, 0, 0, 0, 0];
                data[2..4].copy_from_slice(&(offset * 8 + u16::from(more)).to_be_bytes());
                data[6..].copy_from_slice(&ident.to_be_bytes());
                data.extend(vec![1; len]);
                let mut part = udp_packet(false, 0, &data);
                part[6] = 44;
                part
            } else {
                piece(ident, offset * 8, more, &vec![1; len])
            };
            if let Outcome::Complete(packet) = push(&mut table, now, &part) {
                let view = parse(&packet).unwrap();
                prop_assert_eq!((view.end, view.fragment), (packet.len(), None));
            }
            let _ = table.expire(now);
            check(&table);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(packets in proptest::collection::vec(almost_packets(), 0..20)) {
        let (now, mut table) = (Instant::now(), Reassembly::default());
        for packet in packets {
            if let Ok(view) = parse(&packet) {
                table.push(now, &packet, &view);
                check(&table);
            }
        }
    }
}
