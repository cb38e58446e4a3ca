use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket};
use proptest::prelude::*;

use super::*;
use crate::packet::UDP;
use crate::packet::tests::almost_packets;

pub(crate) fn udp_packet(v4: bool, ident: u16, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = if v4 {
        ([10, 0, 2, 2].into(), [10, 0, 2, 15].into())
    } else {
        ([0xfd; 16].into(), [0xfe; 16].into())
    };
    let mut out = vec![0; packet::header_len(source) + payload.len()];
    let at = packet::write_header(&mut out, source, destination, UDP, payload.len(), ident, 64);
    out[at..].copy_from_slice(payload);
    out
}

pub(crate) fn fragments(packet: &[u8], mtu: usize, ident: u32) -> Vec<Vec<u8>> {
    let (mut scratch, mut out) = (vec![0xee; mtu], Vec::new());
    let count = for_each_fragment(packet, mtu, ident, &mut scratch, |part| out.push(part.to_vec()));
    assert_eq!(count, Ok(out.len()));
    out
}

#[test]
fn fragments_are_what_etherparse_expects() {
    let payload: Vec<u8> = (0..4000_u32).map(|n| n.to_be_bytes()[3]).collect();
    for v4 in [true, false] {
        let packet = udp_packet(v4, 0, &payload);
        let parts = fragments(&packet, 1500, 0xabcd_1234);
        assert_eq!(parts.len(), 3);
        let mut together: Vec<u8> = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let sliced = SlicedPacket::from_ip(part).unwrap();
            match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    assert_eq!((header.dont_fragment, header.identification), (false, 0x1234));
                    assert_eq!(header.more_fragments, n < 2);
                    let offset = usize::from(header.fragment_offset.byte_offset());
                    assert_eq!(offset, together.len());
                    together.extend(ip.payload().payload);
                }
                NetSlice::Ipv6(ip) => {
                    let (fragment, rest) =
                        etherparse::Ipv6FragmentHeader::from_slice(&part[40..]).unwrap();
                    assert_eq!(usize::from(ip.header().payload_length()), part.len() - 40);
                    assert_eq!(ip.header().next_header().0, FRAGMENT);
                    assert_eq!(fragment.identification, 0xabcd_1234);
                    assert_eq!(fragment.more_fragments, n < 2);
                    let offset = usize::from(fragment.fragment_offset.byte_offset());
                    assert_eq!((offset, fragment.next_header.0), (together.len(), UDP));
                    together.extend(rest);
                }
                NetSlice::Arp(_) => panic!("IP"),
            }
        }
        assert_eq!(together, payload);
    }
}

#[test]
fn what_fits_is_left_alone() {
    for v4 in [true, false] {
        let mut packet = udp_packet(v4, 7, &[1; 100]);
        let whole = packet.clone();
        packet.extend([0; 20]);
        assert_eq!(fragments(&packet, whole.len(), 9), [whole]);
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let cut = |packet: &[u8], mtu: usize, scratch: usize| {
        let mut scratch = vec![0; scratch];
        for_each_fragment(packet, mtu, 1, &mut scratch, |_| panic!("nothing is handed out"))
    };
    let (v4, v6) = (udp_packet(true, 0, &[0; 2000]), udp_packet(false, 0, &[0; 2000]));
    assert_eq!(cut(&v4, 27, 1500), Err(CannotFragment::Mtu));
    assert_eq!(cut(&v6, 55, 1500), Err(CannotFragment::Mtu));
    assert_eq!(cut(&v4, 1500, 1499), Err(CannotFragment::Scratch));
    assert_eq!(cut(&v4, 0, 0), Err(CannotFragment::Mtu));
    assert_eq!(cut(&[], 1500, 1500), Err(CannotFragment::Malformed(Malformed::Short)));
    let long = udp_packet(true, 0, &[0; 66_000]);
    assert_eq!(cut(&long, 1500, 1500), Err(CannotFragment::TooLong));
    let long = udp_packet(false, 0, &[0; 66_000]);
    assert_eq!(cut(&long, 1500, 1500), Err(CannotFragment::TooLong));
    let again = fragments(&v6, 1500, 1).remove(0);
    assert_eq!(cut(&again, 1280, 1500), Err(CannotFragment::Headers));
    let mut options = udp_packet(true, 0, &[1; 2000]);
    options[0] = 0x46;
    packet::fill_header_checksum(&mut options[..24]);
    assert_eq!(cut(&options, 1500, 1500), Err(CannotFragment::Headers));
}

#[test]
fn a_fragment_of_ipv4_may_be_cut_again() {
    let packet = udp_packet(true, 0, &[3; 4000]);
    let once = fragments(&packet, 1500, 77);
    let twice: Vec<_> = once.iter().flat_map(|part| fragments(part, 576, 88)).collect();
    let mut offset = 0;
    for (n, part) in twice.iter().enumerate() {
        let view = packet::parse(part).unwrap();
        let fragment = view.fragment.unwrap();
        assert_eq!((fragment.ident, fragment.offset), (77, offset));
        assert_eq!(fragment.more, n + 1 < twice.len());
        offset += view.end - view.transport;
    }
    assert_eq!(offset, 4000);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        bytes in almost_packets(),
        mtu in 0_usize..200,
        room in 0_usize..200,
    ) {
        let mut scratch = vec![0; room];
        let _ = for_each_fragment(&bytes, mtu, 1, &mut scratch, |part| assert!(part.len() <= mtu));
    }
}
