//! Rings that no kernel wrote: for tests, and for fuzz targets.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::walk;
use crate::batch::{LinkHeader, RxBatch, RxDescriptor};
use crate::io::{Channel, Inlet, Port};
use crate::options::RingVersion;
use crate::stats::RxStats;

/// Bytes of vnet header before each frame.
pub(crate) const VNET: usize = 10;

/// A port over a descriptor that says nothing.
pub(crate) fn port() -> Port {
    Port {
        fd: Arc::new(OwnedFd::from(File::open("/dev/null").expect("/dev/null")).into()),
        stats: Arc::default(),
        // Not `Packet`: nothing is asked of the descriptor.
        channel: Channel::Device,
        cooked: None,
        vnet_header: VNET,
        link_header: LinkHeader::Ethernet,
        max_len: 1514,
        batch: 1,
        drops_before: 0,
        timestamps: false,
    }
}

/// The frames that a block, or a run of slots, is found to hold, and what was counted.
pub(crate) fn walked(
    version: RingVersion,
    memory: &mut [u8],
    slot_len: usize,
) -> (Vec<RxDescriptor>, RxStats) {
    let (mut inlet, mut frames) = (Inlet::new(port()), Vec::new());
    match version {
        RingVersion::V2 => walk::slots(memory, slot_len, &mut inlet, &mut frames),
        RingVersion::V3 => walk::block(memory, &mut inlet, &mut frames),
    };
    // Whatever the memory says, every frame that is listed can be handed out, so none overlaps
    // another or reaches past the end.
    assert_eq!(RxBatch::new(memory, &frames).count(), frames.len(), "frames handed out");
    (frames, inlet.port.stats.rx.snapshot())
}
