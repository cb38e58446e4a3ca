use super::*;

const FIELD: ChecksumField = ChecksumField { start: 34, offset: 16 };
const GSO: Gso = Gso { kind: GsoKind::TcpV4, size: 1448, header_len: 66, ecn: false };

#[test]
fn a_frame_with_nothing_left_to_do_has_a_zero_header() {
    let mut out = [0xff; VnetHeader::LEN_MRG];
    VnetHeader::for_tx(TxOffload::default(), 54).write(&mut out);
    assert_eq!(out, [0; 12]);
}

#[test]
fn the_header_is_written_as_the_kernel_lays_it_out() {
    let offload = TxOffload { checksum: Some(FIELD), gso: Some(Gso { ecn: true, ..GSO }) };
    let mut out = [0xff; VnetHeader::LEN_MRG];
    VnetHeader::for_tx(offload, 0).write(&mut out);
    let mut expected = vec![VIRTIO_NET_HDR_F_NEEDS_CSUM, 0x81];
    for field in [66_u16, 1448, 34, 16, 0] {
        expected.extend(field.to_ne_bytes());
    }
    assert_eq!(out.to_vec(), expected);
}

#[test]
fn udp_has_no_ecn_bit() {
    // Linux 6.18 refuses it on AF_PACKET with EINVAL.
    let gso = Gso { kind: GsoKind::UdpSegments, ecn: true, ..GSO };
    let offload = TxOffload { checksum: Some(FIELD), gso: Some(gso) };
    assert_eq!(VnetHeader::for_tx(offload, 0).gso_type, VIRTIO_NET_HDR_GSO_UDP_L4);
}

#[test]
fn only_a_slice_of_the_long_header_gets_the_count_of_buffers() {
    for len in [0, 1, 9, 10, 11, 13] {
        let mut out = vec![0xff; len];
        VnetHeader::default().write(&mut out);
        let written = len.min(VnetHeader::LEN);
        assert!(out[..written].iter().all(|byte| *byte == 0), "{len}");
        assert!(out[written..].iter().all(|byte| *byte == 0xff), "{len}");
    }
}

#[test]
fn a_short_header_is_none() {
    for len in 0..VnetHeader::LEN {
        assert_eq!(VnetHeader::parse(&vec![0; len]), None);
    }
    assert_eq!(VnetHeader::parse(&[0; 10]), Some(VnetHeader::default()));
}

#[test]
fn header_length_comes_from_gso_first() {
    let checksum = Some(FIELD);
    let cases = [
        (TxOffload { checksum, gso: Some(GSO) }, 66),
        (TxOffload { checksum, gso: Some(Gso { header_len: 0, ..GSO }) }, 54),
        (TxOffload { checksum, gso: None }, 54),
        (TxOffload::default(), 0),
    ];
    for (offload, expected) in cases {
        assert_eq!(VnetHeader::for_tx(offload, 54).hdr_len, expected, "{offload:?}");
    }
}

#[test]
fn the_length_of_all_headers_is_read_from_the_frame() {
    let (tcp, udp) = (Some(GsoKind::TcpV4), Some(GsoKind::UdpSegments));
    // The checksum's offset, the kind of super-frame, and byte 46: TCP's data offset.
    let cases = [
        (None, None, 0x80, 0),
        (None, tcp, 0x80, 66),
        (Some(16), None, 0x50, 54),
        (Some(16), None, 0xf0, 94),
        // A hint is one only, and what the header says counts if it can be.
        (Some(16), tcp, 0x50, 54),
        (Some(16), tcp, 0x40, 66),
        (Some(16), None, 0x40, 52),
        (Some(6), None, 0, 42),
        (Some(6), udp, 0, 42),
        (Some(2), None, 0, 38),
        // The kind of super-frame counts for more than a strange offset.
        (Some(2), tcp, 0x80, 66),
        // More than 16 bits hold.
        (Some(u16::MAX), None, 0, 0),
    ];
    for (offset, kind, byte, expected) in cases {
        let checksum = offset.map(|offset| ChecksumField { offset, ..FIELD });
        let gso = kind.map(|kind| Gso { kind, ..GSO });
        let len = TxOffload { checksum, gso }.header_len(1000, |at| (at == 46).then_some(byte));
        assert_eq!(len, expected, "{offset:?} {kind:?} {byte:#x}");
    }
    let offload = TxOffload { checksum: Some(FIELD), gso: None };
    assert_eq!(offload.header_len(93, |_| Some(0xf0)), 52, "past the end of the frame");
    assert_eq!(offload.header_len(93, |_| None), 52);
}

#[test]
fn checksum_states() {
    let header = VnetHeader { csum_start: 34, csum_offset: 16, ..VnetHeader::default() };
    let cases = [
        (0, 0, Ok(RxChecksum::Unverified)),
        (VIRTIO_NET_HDR_F_DATA_VALID, 0, Ok(RxChecksum::Valid)),
        (VIRTIO_NET_HDR_F_NEEDS_CSUM, 52, Ok(RxChecksum::Partial(FIELD))),
        (VIRTIO_NET_HDR_F_NEEDS_CSUM, 51, Err(Malformed::ChecksumPastEnd)),
        // Partial wins: the field does not hold a checksum.
        (0xff, 52, Ok(RxChecksum::Partial(FIELD))),
    ];
    for (flags, len, expected) in cases {
        assert_eq!(VnetHeader { flags, ..header }.checksum(len), expected, "{flags} {len}");
    }
    let far = VnetHeader { flags: 1, csum_start: u16::MAX, csum_offset: u16::MAX, ..header };
    assert_eq!(far.checksum(131_071), Err(Malformed::ChecksumPastEnd));
    assert!(far.checksum(131_072).is_ok());
}

#[test]
fn gso_types() {
    let header = VnetHeader { hdr_len: 66, gso_size: 1448, ..VnetHeader::default() };
    let cases = [
        (0, Ok(None)),
        (1, Ok(Some(GSO))),
        (0x81, Ok(Some(Gso { ecn: true, ..GSO }))),
        (2, Err(Malformed::UnknownGsoType(2))),
        (3, Ok(Some(Gso { kind: GsoKind::UdpFragments, ..GSO }))),
        (4, Ok(Some(Gso { kind: GsoKind::TcpV6, ..GSO }))),
        (5, Ok(Some(Gso { kind: GsoKind::UdpSegments, ..GSO }))),
        (0x85, Err(Malformed::UnknownGsoType(0x85))),
        (0x80, Err(Malformed::UnknownGsoType(0x80))),
        (0x21, Err(Malformed::UnknownGsoType(0x21))),
    ];
    for (gso_type, expected) in cases {
        assert_eq!(VnetHeader { gso_type, ..header }.gso(66), expected, "{gso_type:#x}");
    }
    let tcp = VnetHeader { gso_type: 1, ..header };
    assert_eq!(tcp.gso(65), Err(Malformed::HeaderPastEnd));
    assert_eq!(VnetHeader { gso_size: 0, ..tcp }.gso(66), Err(Malformed::NoGsoSize));
}

#[test]
fn a_frame_of_one_segment_is_not_cut() {
    let offload = TxOffload { checksum: Some(FIELD), gso: Some(GSO) };
    assert_eq!(offload.for_frame_len(66 + 1448).gso, None);
    assert_eq!(offload.for_frame_len(66 + 1448).checksum, Some(FIELD));
    assert_eq!(offload.for_frame_len(66 + 1449), offload);
    let unknown = TxOffload { gso: Some(Gso { header_len: 0, ..GSO }), ..offload };
    assert_eq!(unknown.for_frame_len(60), unknown);
}
