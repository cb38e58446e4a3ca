//! What holds of the flow hash for any packet: one value for a flow, whichever way it goes, whatever
//! extension headers it has and however it is cut into fragments.

use super::packets::{any_packet, packet_of, udp};
use fdlink::offload::flow_hash::{flow_hash, pick};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Extension headers with a length in units of eight bytes behind the first eight: hop-by-hop,
/// routing, destination options, mobility, HIP, shim6 (IANA's registry).
const OF_EIGHT: [u8; 6] = [0, 43, 60, 135, 139, 140];
/// The authentication header: units of four bytes, minus two.
const AUTHENTICATION: u8 = 51;
const FRAGMENT: u8 = 44;
/// Most that are walked.
const MAX_EXTENSIONS: usize = 15;

/// An IPv6 packet of `next` and what follows the header.
fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    let header = [&[0x60, 0, 0, 0, len[0], len[1], next, 64][..], &[1; 16], &[2; 16]].concat();
    [&header, rest].concat()
}

/// One extension header of a chain, as it should be.
fn extension() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let of_eight = (prop::sample::select(&OF_EIGHT[..]), 0_u8..4)
        .prop_map(|(kind, units)| (kind, units, 8 * (usize::from(units) + 1)));
    let authentication =
        (1_u8..6).prop_map(|words| (AUTHENTICATION, words, 4 * (usize::from(words) + 2)));
    prop_oneof![of_eight, authentication].prop_map(|(kind, len, bytes)| {
        let mut header = vec![0; bytes];
        header[1] = len;
        (kind, header)
    })
}

/// The chain linked up: the first kind, and the bytes that lead to `last`.
fn linked(chain: &[(u8, Vec<u8>)], last: u8) -> (u8, Vec<u8>) {
    let kinds: Vec<u8> = chain.iter().map(|(kind, _)| *kind).chain([last]).collect();
    let mut bytes = Vec::new();
    for ((_, header), next) in chain.iter().zip(&kinds[1..]) {
        bytes.extend([&[*next], &header[1..]].concat());
    }
    (kinds[0], bytes)
}

/// The protocol behind a chain and what follows it, or nothing where the chain is cut short or too
/// long; a fragment ends it, and has no ports.
fn walk(mut next: u8, mut rest: &[u8]) -> Option<(u8, &[u8])> {
    for _ in 0..=MAX_EXTENSIONS {
        let len = match next {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(*rest.get(1)?) + 2) * 4,
            kind if OF_EIGHT.contains(&kind) => (usize::from(*rest.get(1)?) + 1) * 8,
            _ => return Some((next, rest)),
        };
        let header = rest.get(..len)?;
        if next == FRAGMENT && (header[2] != 0 || header[3] & 0xf9 != 0) {
            return Some((header[0], &[]));
        }
        (next, rest) = (header[0], &rest[len..]);
    }
    None
}

proptest! {
    #[test]
    fn both_directions_have_one_hash(packet in any_packet(), seed: u64, queues in 1_usize..64) {
        let (there, back) = (packet.bytes(), packet.reversed().bytes());
        let hash = flow_hash(&there, seed);
        prop_assert_eq!(hash, flow_hash(&back, seed));
        prop_assert_eq!(hash, flow_hash(&there[..there.len() - packet.payload.len()], seed));
        prop_assert!(pick(hash, queues) < queues);
    }

    #[test]
    fn extension_headers_do_not_count(
        chain in vec(extension(), 0..20),
        protocol in prop::sample::select(&[6_u8, 17, 58, 132][..]),
        payload in vec(any::<u8>(), 4..40),
        seed: u64,
    ) {
        let (first, chain_bytes) = linked(&chain, protocol);
        let hash = flow_hash(&v6(first, &[&chain_bytes[..], &payload].concat()), seed);
        let plain = flow_hash(&v6(protocol, &payload), seed);
        prop_assert_eq!(hash, if chain.len() <= MAX_EXTENSIONS { plain } else { 0 });
        if let Some(short) = chain_bytes.len().checked_sub(1) {
            prop_assert_eq!(flow_hash(&v6(first, &chain_bytes[..short]), seed), 0);
        }
    }

    /// Lengths and kinds that say anything, and a packet that ends anywhere.
    #[test]
    fn a_chain_that_makes_no_sense_is_walked_within_bounds(
        chain in vec(extension(), 1..20),
        changes in vec(any::<(Index, u8)>(), 0..4),
        fragment_at: Option<Index>,
        end: Index,
        seed: u64,
    ) {
        let (mut first, mut rest) = linked(&chain, 17);
        rest.extend(0..40);
        for (at, value) in changes {
            rest[at.index(chain.len() * 8)] = value;
        }
        if let Some(at) = fragment_at {
            match at.index(chain.len()) {
                0 => first = FRAGMENT,
                _ => rest[0] = FRAGMENT,
            }
        }
        rest.truncate(end.index(rest.len()) + 1);
        let hash = flow_hash(&v6(first, &rest), seed);
        let expected = walk(first, &rest).map_or(0, |(protocol, rest)| {
            // A protocol that would be walked on is one behind a fragment: no ports either way.
            let is_extension = protocol == FRAGMENT || protocol == AUTHENTICATION
                || OF_EIGHT.contains(&protocol);
            if is_extension {
                flow_hash(&v6(FRAGMENT, &[protocol, 0, 0, 1, 0, 0, 0, 0]), seed)
            } else {
                flow_hash(&v6(protocol, rest), seed)
            }
        });
        prop_assert_eq!(hash, expected);
    }

    #[test]
    fn all_fragments_of_a_datagram_go_one_way(
        packet in packet_of(udp(), 24..3000),
        units in 1_usize..100,
        id: u32,
        seed: u64,
    ) {
        let whole = packet.bytes();
        let headers_len = whole.len() - packet.payload.len() - 8;
        let (headers, rest) = whole.split_at(headers_len);
        let size = (units * 8).min(rest.len() / 2 / 8 * 8);
        let pieces = rest.chunks(size).count();
        let mut hashes = rest.chunks(size).enumerate().map(|(index, piece)| {
            let more = u16::from(index + 1 < pieces);
            let offset = u16::try_from(index * size / 8).unwrap();
            let mut headers = headers.to_vec();
            if headers[0] >> 4 == 4 {
                headers[6..8].copy_from_slice(&(more << 13 | offset).to_be_bytes());
            } else {
                let protocol = std::mem::replace(
                    if headers.len() > 40 { &mut headers[40] } else { &mut headers[6] },
                    FRAGMENT,
                );
                headers.extend([protocol, 0]);
                headers.extend((offset << 3 | more).to_be_bytes());
                headers.extend(id.to_be_bytes());
            }
            flow_hash(&[&headers, piece].concat(), seed)
        });
        let first = hashes.next().unwrap();
        prop_assert_ne!(first, 0);
        prop_assert!(hashes.len() > 0);
        prop_assert!(hashes.all(|hash| hash == first));
    }
}
