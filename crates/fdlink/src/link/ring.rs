//! The rings of a link's AF_PACKET sockets: which layout, and mapping them on all of its sockets or
//! on none.

use std::io;
use std::os::fd::AsFd;

use crate::descriptor::Descriptor;
use crate::error::SetupError;
use crate::io::packet_mmap::geometry::{self, Needs};
use crate::link::examine::call;
use crate::link::plan::Plan;
use crate::options::{LinkOptions, Mode, RingVersion};
use crate::report::{DescriptorReport, RingLayout};
use crate::sys::ring::{self, Geometry, Ring};

/// The layout that the options ask for; `None` for a link without rings. Changes nothing.
pub(super) fn layout(plan: &Plan, options: &LinkOptions) -> Result<Option<Geometry>, SetupError> {
    if plan.mode != Mode::PacketMmap {
        return Ok(None);
    }
    let needs = Needs {
        page: ring::page_size(),
        max_frame_len: plan.max_frame_len,
        gso_max_size: plan.gso_max_size,
        vnet_header: plan.vnet_header,
    };
    let asked = options.ring_bytes;
    geometry::geometry(options.ring_version, needs, asked).map(Some).map_err(|possible| {
        SetupError::Option {
            option: "ring_bytes",
            expected: format!("{} to {} bytes", possible.start(), possible.end()),
            found: asked.map_or_else(|| "the default".to_owned(), |bytes| bytes.to_string()),
        }
    })
}

/// Maps a ring on each socket. Where that fails no ring remains; with `fallback`, smaller rings are
/// tried for want of memory and then, for whatever reason, the mode is replaced.
pub(super) fn map(
    descriptors: &mut [Descriptor],
    layout: Option<Geometry>,
    plan: &mut Plan,
    options: &LinkOptions,
) -> Result<Vec<Option<Ring>>, SetupError> {
    let none = descriptors.iter().map(|_| None).collect();
    let Some(wanted) = layout else { return Ok(none) };
    let (got, result) = shrink(wanted, options.fallback, |layout| map_all(descriptors, layout));
    match result {
        Ok(rings) => {
            if got != wanted {
                let (got, wanted) = (described(got), described(wanted));
                plan.notes.push(format!("not enough memory for {wanted}: {got}"));
            }
            Ok(rings.into_iter().map(Some).collect())
        }
        Err((index, source)) if options.fallback => {
            plan.notes.push(format!("no ring on descriptor {index} ({source}): readv"));
            plan.mode = Mode::Readv;
            Ok(none)
        }
        Err((index, source)) => {
            Err(call("setsockopt(PACKET_RX_RING)", format!("descriptor {index}"), source))
        }
    }
}

/// A failure, and the descriptor that it happened on.
type Failed = (usize, io::Error);

fn map_all(descriptors: &mut [Descriptor], layout: Geometry) -> Result<Vec<Ring>, Failed> {
    let mut rings = Vec::with_capacity(descriptors.len());
    for index in 0..descriptors.len() {
        match Ring::new(descriptors[index].as_fd(), layout) {
            Ok(ring) => {
                descriptors[index].remember_ring(ring.on_socket());
                rings.push(ring);
            }
            Err(error) => {
                drop(rings);
                descriptors[..index].iter_mut().for_each(Descriptor::remove_ring);
                return Err((index, error));
            }
        }
    }
    Ok(rings)
}

/// Tries smaller layouts for want of memory, if that is allowed; what was tried last, and how it
/// ended.
fn shrink<T>(
    mut layout: Geometry,
    allowed: bool,
    mut attempt: impl FnMut(Geometry) -> Result<T, Failed>,
) -> (Geometry, Result<T, Failed>) {
    loop {
        let result = attempt(layout);
        let memory = matches!(&result, Err((_, e)) if e.raw_os_error() == Some(libc::ENOMEM));
        match geometry::halved(layout).filter(|_| memory && allowed) {
            Some(smaller) => layout = smaller,
            None => return (layout, result),
        }
    }
}

/// Unmaps the rings and takes them off their sockets.
pub(super) fn take_off(descriptors: &[Descriptor], rings: Vec<Option<Ring>>) {
    for (descriptor, ring) in descriptors.iter().zip(rings) {
        if let Some(ring) = ring {
            ring.take_off(descriptor.as_fd());
        }
    }
}

/// Puts a ring into its descriptor's report.
pub(super) fn report(ring: &Ring, report: &mut DescriptorReport) {
    report.ring = ring.len();
    report.ring_layout = Some(described(ring.geometry()));
}

/// Bytes of frames that a descriptor's ring holds at the least: V2 takes a slot for each frame,
/// however short.
pub(super) fn queue_bytes(report: &DescriptorReport, max_frame_len: usize) -> usize {
    match report.ring_layout {
        Some(RingLayout { version: RingVersion::V2, slots, .. }) => slots * max_frame_len,
        _ => report.ring,
    }
}

fn described(geometry: Geometry) -> RingLayout {
    let Geometry { version, slots, slot_len, .. } = geometry;
    RingLayout { version, slots: slots as usize, slot_len: slot_len as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Geometry =
        Geometry { version: RingVersion::V2, slot_len: 1 << 17, slots: 256, retire_millis: 1 };

    /// A kernel with memory for that many slots, and what became of asking it.
    fn asked(room: u32, errno: i32, allowed: bool) -> (Vec<u32>, u32, bool) {
        let mut tried = Vec::new();
        let (got, result) = shrink(LAYOUT, allowed, |layout| {
            tried.push(layout.slots);
            let enough = layout.slots <= room;
            enough.then_some(()).ok_or_else(|| (0, io::Error::from_raw_os_error(errno)))
        });
        (tried, got.slots, result.is_ok())
    }

    #[test]
    fn only_want_of_memory_and_only_where_it_is_allowed_makes_a_ring_smaller() {
        assert_eq!(asked(256, libc::ENOMEM, true), (vec![256], 256, true));
        assert_eq!(asked(100, libc::ENOMEM, true), (vec![256, 128, 64], 64, true));
        assert_eq!(asked(63, libc::ENOMEM, true), (vec![256, 128, 64], 64, false));
        assert_eq!(asked(100, libc::ENOMEM, false), (vec![256], 256, false));
        assert_eq!(asked(100, libc::EPERM, true), (vec![256], 256, false));
    }
}
