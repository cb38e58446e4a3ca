//! Which kind of descriptor has which mode and which offloads: tried, not known. The table that
//! comes out is docs/matrix.md; where it differs from what this kernel does, the test fails, and
//! FDLINK_WRITE=1 writes it anew.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fmt::Write as _;
use std::io::IoSlice;
use std::path::Path;

use common::{Kind, PATIENCE, QUIET, Way, readable, super_frame};
use fdlink::offload::checksum::{Verdict, verify_transport};
use fdlink::offload::vnet::{GsoKind, RxChecksum, TxOffload};
use fdlink::{Fill, Link, Offload, QueuePair, Receive, SetupError, Transmit, TxFrame};
use testkit::Peer;

/// What may be left to the other side.
const OFFLOADS: [Option<GsoKind>; 4] =
    [None, Some(GsoKind::TcpV4), Some(GsoKind::TcpV6), Some(GsoKind::UdpSegments)];

const HEAD: &str = "\
# Kinds, modes and offloads

Tried on real descriptors by `./ci.sh matrix` (crates/fdlink/tests/matrix.rs), which fails where this
page is not what it found; `FDLINK_WRITE=1 cargo test -p fdlink --test matrix` writes it anew.

*Out* is what a frame sent leaves to the other side: `left` as it is, or `done` here in software
before the frame goes, because nobody behind the descriptor would. *In* is what a received frame
leaves to us and says so: `left`; `done` before it came; `unsaid` where it came whole, and nothing
tells how it is to be cut. A plain socket has a vnet header only in-band, where both ends agreed on it
(`LinkOptions::in_band_vnet_header`): nobody else could say.

| kind | vnet header | mode | out: checksum | TSO4 | TSO6 | USO | in: checksum | TSO4 | TSO6 | USO |
|---|---|---|---|---|---|---|---|---|---|---|
";

const TAIL: &str = "
A macvtap is a TAP (test: a_macvtap_is_a_tap). A VSOCK seqpacket socket is a seqpacket socket without
credentials (test: a_vsock_socket_is_a_seqpacket_socket); without a VSOCK loopback no frame crosses
it here. A framed stream is read many frames at a time in the mode readv.
";

#[test]
fn kinds_modes_and_offloads() {
    testkit::in_namespace(|| {
        let mut text = String::from(HEAD);
        let mut kinds = vec![
            Kind::Packet,
            Kind::Cooked,
            Kind::Seqpacket,
            Kind::Datagram,
            Kind::Udp,
            Kind::Framed,
        ];
        let tun = testkit::has_tun("kinds_modes_and_offloads, TUN and TAP");
        kinds.extend(tun.then_some([Kind::Tap, Kind::Tun]).into_iter().flatten());
        for kind in kinds {
            for header in [true, false] {
                for way in Way::ALL {
                    if let Some(cells) = row(kind, header, way) {
                        let (name, header) = (kind.name(), if header { "yes" } else { "no" });
                        let cells = cells.join(" | ");
                        writeln!(text, "| {name} | {header} | {way} | {cells} |").unwrap();
                    }
                }
            }
        }
        text += TAIL;
        println!("{text}");
        if tun {
            compare(&text);
        }
    });
}

/// A link, and who is at its far end.
struct Pair {
    kind: Kind,
    rx: Box<dyn Receive>,
    tx: Box<dyn Transmit>,
    peer: Peer,
}

/// What there is: each offload out, then each in; `None` for what is not another row.
fn row(kind: Kind, header: bool, way: Way) -> Option<Vec<String>> {
    let mut pair = match pair(kind, header, way) {
        Ok(pair) => pair,
        // Said once for a kind.
        Err(SetupError::Option { option: "mode", .. }) if !header => return None,
        Err(SetupError::Option { option: "mode", expected, .. }) => {
            let mut cells = vec!["-".to_owned(); 2 * OFFLOADS.len()];
            cells[0] = format!("needs {}", expected.split(" for ").next().unwrap());
            return Some(cells);
        }
        Err(SetupError::Option { option: "offload", .. }) => return None,
        Err(error) => panic!("{kind:?} {way}: {error}"),
    };
    let mut cells: Vec<_> = OFFLOADS.iter().map(|gso| out(&mut pair, *gso).to_owned()).collect();
    // Without a header a program at the far end of a socket has no way to say anything.
    let mute = kind.is_socket() && !header;
    cells.extend(OFFLOADS.iter().map(|gso| {
        let came = if mute { "-" } else { inwards(&mut pair, *gso) };
        came.to_owned()
    }));
    Some(cells)
}

/// A link that must have a vnet header, or must not.
fn pair(kind: Kind, header: bool, way: Way) -> Result<Pair, SetupError> {
    let mut options = way.options();
    options = options.offload(if header { Offload::Required } else { Offload::Off });
    if kind.is_socket() && header {
        options = options.in_band_vnet_header(10);
    }
    let (link, peer, _) = common::link(kind, &options)?;
    let QueuePair { rx, tx } = Box::new(link).into_queues()?.remove(0);
    Ok(Pair { kind, rx: rx.unwrap(), tx, peer })
}

/// A frame with something left to do: a super-frame of that kind, or one segment.
fn frame(kind: Kind, gso: Option<GsoKind>) -> (Vec<u8>, TxOffload, [u8; 10]) {
    let (frame, offload, mut vnet) = match gso {
        Some(gso) => super_frame(kind, gso, 10),
        None => super_frame(kind, GsoKind::TcpV4, 1),
    };
    if gso.is_none() {
        vnet[1] = 0;
        vnet[4..6].fill(0);
        return (frame, TxOffload { gso: None, ..offload }, vnet);
    }
    (frame, offload, vnet)
}

/// Sends it, and looks at what the far end got.
fn out(pair: &mut Pair, gso: Option<GsoKind>) -> &'static str {
    let (frame, offload, vnet) = frame(pair.kind, gso);
    send(&mut *pair.tx, &frame, offload);
    let (header, first) = pair.peer.recv_with(PATIENCE).unwrap().expect("something");
    let mut others = 0;
    while pair.peer.recv(QUIET).unwrap().is_some() {
        others += 1;
    }
    // Whose own address it is, is the kernel's to say on a cooked socket.
    let behind = if pair.kind == Kind::Cooked { 14 } else { 0 };
    match header.first_chunk::<2>() {
        Some([flags, kind]) if flags & 1 == 1 && *kind == vnet[1] => {
            assert!(first[behind..] == frame[behind..] && others == 0);
            "left"
        }
        _ => {
            assert_eq!(verify_transport(&first[pair.kind.header()..]), Verdict::Correct);
            assert_eq!(others, if gso.is_some() { 9 } else { 0 });
            "done"
        }
    }
}

fn send(tx: &mut dyn Transmit, frame: &[u8], offload: TxOffload) {
    let parts = [IoSlice::new(frame)];
    let sent = tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
    assert_eq!((sent.taken, sent.sent, tx.queued()), (1, 1, 0));
}

/// Has the far end send it, and looks at what comes.
fn inwards(pair: &mut Pair, gso: Option<GsoKind>) -> &'static str {
    let (frame, offload, vnet) = frame(pair.kind, gso);
    pair.peer.send_with(&vnet, &frame).unwrap();
    arrived(&mut *pair.rx, pair.kind.header(), &frame, offload)
}

fn arrived(
    rx: &mut dyn Receive,
    link_header: usize,
    frame: &[u8],
    offload: TxOffload,
) -> &'static str {
    while matches!(rx.fill().unwrap(), Fill::Empty | Fill::Frames(0)) {
        assert!(readable(rx, PATIENCE));
    }
    let first = rx.batch().next().expect("something");
    let (whole, meta) = (first.bytes().len() == frame.len(), *first.meta());
    let verdict = verify_transport(&first.bytes()[link_header..]);
    common::recv(rx, usize::MAX, QUIET);
    let partial = meta.checksum == RxChecksum::Partial(offload.checksum.unwrap());
    match (whole, meta.gso.zip(offload.gso), offload.gso) {
        (true, Some((got, sent)), _) => {
            assert!(partial && (got.kind, got.size) == (sent.kind, sent.size));
            "left"
        }
        (true, None, None) if partial => "left",
        (true, None, Some(_)) => "unsaid",
        _ => {
            assert_eq!(verdict, Verdict::Correct);
            "done"
        }
    }
}

fn compare(text: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/matrix.md");
    if std::env::var_os("FDLINK_WRITE").is_some_and(|value| value == "1") {
        std::fs::write(&page, text).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(written == text, "docs/matrix.md says otherwise; FDLINK_WRITE=1 writes it anew");
}
