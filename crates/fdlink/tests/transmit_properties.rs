//! What holds of sending for any frame and anything said of it.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::Kind;
use common::out::{By, NOTHING, Out};
use common::traffic::{MSS, Traffic};
use fdlink::Sent;
use fdlink::offload::vnet::{ChecksumField, Gso, GsoKind, TxOffload};
use proptest::prelude::*;

/// Packets, some with a byte changed or cut short, and what is said of them, true or not.
fn any_frame(ethernet: bool) -> impl Strategy<Value = (Vec<u8>, TxOffload)> {
    let mss = prop::sample::select(&[0, 7, 100, MSS][..]);
    let traffic = (any::<(bool, bool)>(), 0..3000_usize, mss)
        .prop_map(move |((v6, udp), payload, mss)| Traffic { ethernet, v6, udp, payload, mss });
    let said = prop_oneof![2 => Just(None), 1 => any_offload().prop_map(Some)];
    let change = prop::option::of((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()));
    (traffic, said, change).prop_map(|(traffic, said, change)| {
        let mut frame = traffic.partial();
        if let Some((at, byte, cut)) = change {
            let at = at.index(frame.len().min(100));
            frame[at] = byte;
            frame.truncate(if cut { at } else { frame.len() });
        }
        (frame, said.unwrap_or_else(|| traffic.offload()))
    })
}

/// A kind of socket, bytes of its buffer, and a frame for it. The far end of a stream reads a frame in
/// one go, so the whole of it must go in.
fn any_link() -> impl Strategy<Value = (Kind, usize, (Vec<u8>, TxOffload))> {
    const LINKS: [(Kind, usize); 3] =
        [(Kind::Seqpacket, 4 << 10), (Kind::Seqpacket, 1 << 20), (Kind::Framed, 1 << 20)];
    prop::sample::select(&LINKS[..])
        .prop_flat_map(|(kind, buffer)| (Just(kind), Just(buffer), any_frame(kind.header() > 0)))
}

fn any_offload() -> impl Strategy<Value = TxOffload> {
    let start = prop_oneof![Just(20), Just(34), Just(40), Just(54), any::<u16>()];
    let offset = prop_oneof![Just(6), Just(16), any::<u16>()];
    let checksum = (start, offset).prop_map(|(start, offset)| ChecksumField { start, offset });
    use GsoKind::{TcpV4, TcpV6, UdpFragments, UdpSegments};
    let kind = prop::sample::select(&[TcpV4, TcpV6, UdpFragments, UdpSegments][..]);
    let size = prop_oneof![Just(0), Just(7), Just(100), Just(MSS), any::<u16>()];
    let header_len = prop_oneof![Just(0), any::<u16>()];
    let gso = (kind, size, header_len, any::<bool>())
        .prop_map(|(kind, size, header_len, ecn)| Gso { kind, size, header_len, ecn });
    (prop::option::of(checksum), prop::option::of(gso))
        .prop_map(|(checksum, gso)| TxOffload { checksum, gso })
}

proptest! {
    /// Whatever is sent with whatever said of it: what is counted as sent arrives, what is not is
    /// counted as dropped, and the frame behind it arrives.
    #[test]
    fn nothing_is_lost_uncounted(
        (kind, buffer, (frame, offload)) in any_link(),
        vnet_header in prop::sample::select(&[0_usize, 10, 12][..]),
        slots in any::<bool>(),
    ) {
        let mut out = Out::on_socket(kind, buffer, vnet_header);
        let slots = slots && out.tx.slot(frame.len()).is_some();
        let by = if slots { By::Slots } else { By::List };
        let last: &[u8] = b"the last";
        let mut sent = out.send(by, &[(&frame, offload)]);
        let (mut messages, mut bytes, mut end) = (0, 0, Vec::new());
        let mut waits = true;
        while waits || out.tx.queued() > 0 {
            let flushed = out.tx.flush().unwrap();
            sent = Sent { taken: sent.taken + flushed.taken, sent: sent.sent + flushed.sent };
            waits = waits && out.send(By::List, &[(last, NOTHING)]).taken == 0;
            while let Some(message) = out.peer.recv(Duration::ZERO).unwrap() {
                (messages, bytes) = (messages + 1, bytes + message.len() as u64);
                end = message;
            }
        }
        prop_assert_eq!(end, last);
        let tx = out.tx();
        prop_assert_eq!((messages, bytes), (tx.frames, tx.bytes));
        prop_assert_eq!(sent.taken, 1);
        prop_assert_eq!(tx.invalid + tx.too_long > 0, sent.sent == 0);
        prop_assert_eq!(tx.frames > 1, sent.sent == 1);
    }
}
