//! Which kind of descriptor has which mode and which offloads: tried, not known. The table that
//! comes out is docs/matrix.md; where it differs from what this kernel does, the test fails, and
//! FDLINK_WRITE=1 writes it anew.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fmt::Write as _;
use std::io::IoSlice;
use std::path::Path;

use common::{Kind, QUIET, Rig, Way, super_frame};
use fdlink::offload::vnet::{Gso, GsoKind, RxChecksum, TxOffload};
use fdlink::{Fill, Link, Offload, QueuePair, SetupError, TxFrame};

/// What may be left to the other side.
const OFFLOADS: [(&str, Option<GsoKind>); 4] = [
    ("checksum", None),
    ("TSO4", Some(GsoKind::TcpV4)),
    ("TSO6", Some(GsoKind::TcpV6)),
    ("USO", Some(GsoKind::UdpSegments)),
];

#[test]
fn kinds_modes_and_offloads() {
    testkit::in_namespace(|| {
        let mut text = String::from(HEAD);
        let mut kinds = vec![Kind::Packet, Kind::Seqpacket, Kind::Datagram, Kind::Udp];
        let tun = testkit::has_tun("kinds_modes_and_offloads, TUN and TAP");
        kinds.extend(tun.then_some([Kind::Tap, Kind::Tun]).into_iter().flatten());
        for kind in kinds {
            for way in Way::ALL {
                let cells = row(kind, way);
                writeln!(text, "| {} | {way} | {} |", kind.name(), cells.join(" | ")).unwrap();
            }
        }
        println!("{text}");
        if tun {
            compare(&text);
        }
    });
}

const HEAD: &str = "\
# Kinds, modes and offloads

Tried on real descriptors by `./ci.sh matrix` (crates/fdlink/tests/matrix.rs), which fails where this
page is not what it found. *out* is what a frame sent may leave to the other side, *in* what one
received may leave to us; a plain socket has a vnet header in-band, since nobody else could say.
*alone* means that the work is done in software before the frame leaves.

| kind | mode | the mode | out: checksum | TSO4 | TSO6 | USO | in: checksum | TSO4 | TSO6 | USO |
|---|---|---|---|---|---|---|---|---|---|---|
";

/// What there is: the mode, then each offload out, then each in.
fn row(kind: Kind, way: Way) -> Vec<String> {
    let mut rig = match rig(kind, way) {
        Ok(rig) => rig,
        Err(SetupError::Option { option: "mode", expected, .. }) => {
            let mut cells = vec![format!("needs {}", expected.split(" for ").next().unwrap())];
            cells.resize(1 + 2 * OFFLOADS.len(), "-".to_owned());
            return cells;
        }
        Err(error) => panic!("{kind:?} {way}: {error}"),
    };
    let mut cells = vec!["yes".to_owned()];
    cells.extend(OFFLOADS.iter().map(|(_, gso)| out(&mut rig, *gso).to_owned()));
    cells.extend(OFFLOADS.iter().map(|(_, gso)| inwards(&mut rig, *gso).to_owned()));
    cells
}

/// A link that must have offloads.
fn rig(kind: Kind, way: Way) -> Result<Rig, SetupError> {
    let mut options = way.options().offload(Offload::Required);
    if kind.is_socket() {
        options = options.in_band_vnet_header(10);
    }
    let (link, peer, interface) = common::link(kind, &options)?;
    let (stats, properties) = (link.stats(), link.properties().clone());
    let QueuePair { rx, tx } = Box::new(link).into_queues()?.remove(0);
    let rx = rx.unwrap();
    Ok(Rig { kind, way, rx, tx, stats, properties, peer, interface })
}

/// A frame with something left to do: a super-frame of that kind, or one segment.
fn frame(kind: Kind, gso: Option<GsoKind>) -> (Vec<u8>, TxOffload, [u8; 10]) {
    match gso {
        Some(gso) => super_frame(kind, gso, 10),
        None => {
            let (frame, offload, mut vnet) = super_frame(kind, GsoKind::TcpV4, 1);
            vnet[1] = 0;
            vnet[4..6].fill(0);
            (frame, TxOffload { gso: None, ..offload }, vnet)
        }
    }
}

/// Sends it, and looks at what the far end got.
fn out(rig: &mut Rig, gso: Option<GsoKind>) -> &'static str {
    let (frame, offload, vnet) = frame(rig.kind, gso);
    let parts = [IoSlice::new(&frame)];
    let sent = rig.tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
    assert_eq!((sent.taken, sent.sent), (1, 1));
    let (header, first) = rig.peer.recv_with(common::PATIENCE).unwrap().expect("something");
    while rig.peer.recv(QUIET).unwrap().is_some() {}
    if header[0] & 1 == 1 && header[1] == vnet[1] && first == frame { "yes" } else { "alone" }
}

/// Has the far end send it, and looks at what comes.
fn inwards(rig: &mut Rig, gso: Option<GsoKind>) -> &'static str {
    let (frame, offload, vnet) = frame(rig.kind, gso);
    rig.peer.send_with(&vnet, &frame).unwrap();
    while rig.rx.fill().unwrap() == Fill::Empty {
        assert!(common::readable(&*rig.rx, common::PATIENCE));
    }
    let arrived = rig.rx.batch().next().expect("something");
    let whole = arrived.bytes() == frame;
    let meta = *arrived.meta();
    common::recv(&mut *rig.rx, usize::MAX, QUIET);
    let same = |got: Gso, sent: Gso| (got.kind, got.size) == (sent.kind, sent.size);
    let cut_as_sent = match (meta.gso, offload.gso) {
        (Some(got), Some(sent)) => same(got, sent),
        (None, None) => true,
        _ => false,
    };
    let partial = meta.checksum == RxChecksum::Partial(offload.checksum.unwrap());
    if whole && partial && cut_as_sent { "yes" } else { "no" }
}

fn compare(text: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/matrix.md");
    if std::env::var_os("FDLINK_WRITE").is_some_and(|value| value == "1") {
        std::fs::write(&page, text).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(written == text, "docs/matrix.md says otherwise; FDLINK_WRITE=1 writes it anew");
}
