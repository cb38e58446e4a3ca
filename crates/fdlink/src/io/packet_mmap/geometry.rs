//! How a ring is laid out: from the page size, the longest frame and a budget of bytes to slots.
//! Pure; docs/rings.md has the reasons with their numbers.

use std::ops::RangeInclusive;

use crate::batch::ETHERNET_HEADER_LEN;
use crate::options::RingVersion;
use crate::sys::ring::Geometry;

/// The shortest block timeout that the kernel takes; each millisecond is latency.
pub(crate) const RETIRE_MILLIS: u32 = 1;

/// V3: 256 ms of a sleeping reader; V2: 256 frames.
const DEFAULT_SLOTS: usize = 256;

/// Fewer lose frames to any pause of a reader: 64 are 64 ms (V3) or one burst of that many (V2).
const LEAST_SLOTS: usize = 64;

/// The kernel allocates all of it at once, for each descriptor.
const MOST_BYTES: usize = 1 << 30;

/// A frame of an IP packet of 65535 bytes, with a VLAN tag of its own. What arrives does not depend
/// on what we send, nor on our having a vnet header: super-frames come without one, too.
const SUPER_FRAME: usize = ETHERNET_HEADER_LEN + 4 + 65535;

/// What the kernel puts before a frame in a slot (tpacket_rcv): header and address (32 or 48 + 20
/// bytes) and 16 for a link header, aligned to 16. In V3 the block's descriptor (48) comes first.
const V2_HEADERS: usize = (size_of::<libc::tpacket2_hdr>() + ADDRESS + 16).next_multiple_of(ALIGN);
const V3_HEADERS: usize = size_of::<libc::tpacket_block_desc>()
    + (size_of::<libc::tpacket3_hdr>() + ADDRESS + 16).next_multiple_of(ALIGN);
const ADDRESS: usize = size_of::<libc::sockaddr_ll>();
const ALIGN: usize = libc::TPACKET_ALIGNMENT;

/// What a ring must hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Bytes of a page.
    pub(crate) page: usize,
    /// The link's own longest frame, link header included.
    pub(crate) max_frame_len: usize,
    /// The longest super-frame it sends, as a sign of what others do.
    pub(crate) gso_max_size: usize,
    /// Bytes of vnet header before each frame.
    pub(crate) vnet_header: usize,
}

/// The layout of a ring of at most `budget` bytes; or the budgets that would do.
pub(crate) fn geometry(
    version: RingVersion,
    needs: Needs,
    budget: Option<usize>,
) -> Result<Geometry, RangeInclusive<usize>> {
    let slot_len = slot_len(version, needs);
    let possible = LEAST_SLOTS * slot_len..=MOST_BYTES;
    let budget = budget.unwrap_or(DEFAULT_SLOTS * slot_len);
    if !possible.contains(&budget) {
        return Err(possible);
    }
    match (u32::try_from(slot_len), u32::try_from(budget / slot_len)) {
        (Ok(slot_len), Ok(slots)) => {
            Ok(Geometry { version, slot_len, slots, retire_millis: RETIRE_MILLIS })
        }
        _ => Err(possible),
    }
}

/// Bytes of a slot (V2) or block (V3): a super-frame with its headers, in pages; and a power of two
/// of them, which is what the kernel allocates anyway (alloc_one_pg_vec_page).
fn slot_len(version: RingVersion, needs: Needs) -> usize {
    let headers = match version {
        RingVersion::V2 => V2_HEADERS,
        RingVersion::V3 => V3_HEADERS,
    };
    let frame = needs.max_frame_len.max(needs.gso_max_size).max(SUPER_FRAME);
    (headers + needs.vnet_header + frame).next_power_of_two().max(needs.page)
}

/// Half as many slots, for a kernel that has no memory for these; `None` where there would be too
/// few.
pub(crate) fn halved(geometry: Geometry) -> Option<Geometry> {
    let slots = geometry.slots / 2;
    (slots as usize >= LEAST_SLOTS).then_some(Geometry { slots, ..geometry })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: [RingVersion; 2] = [RingVersion::V2, RingVersion::V3];

    fn needs(page: usize, mtu: usize) -> Needs {
        let max_frame_len = mtu + ETHERNET_HEADER_LEN;
        Needs { page, max_frame_len, gso_max_size: 0, vnet_header: 12 }
    }

    #[test]
    fn a_slot_holds_a_super_frame_and_every_mtu_on_every_page_size() {
        for (page, version) in
            [4, 16, 64].iter().flat_map(|kib| VERSIONS.map(|version| (kib << 10, version)))
        {
            for mtu in 68..=65536 {
                let layout = geometry(version, needs(page, mtu), None).unwrap();
                let (len, slots) = (layout.slot_len as usize, layout.slots as usize);
                // What tpacket_rcv computes for the longest frame of this link.
                let (before, header) = if version == RingVersion::V2 { (0, 52) } else { (48, 68) };
                let net = (header + 16_usize).next_multiple_of(16) + 12;
                assert!(before + net - 14 + (mtu + 14).max(65549) <= len, "{page} {mtu}");
                assert_eq!(len % page, 0);
                assert_eq!((len, slots), (128 << 10, 256), "{page} {mtu}");
            }
        }
        // Pages of a size that no machine has yet, and frames longer than any now.
        assert_eq!(slot_len(RingVersion::V3, needs(1 << 18, 1500)), 1 << 18);
        let big = Needs { gso_max_size: 512 << 10, ..needs(4096, 1500) };
        assert_eq!(slot_len(RingVersion::V2, big), 1 << 20);
    }

    #[test]
    fn a_budget_is_kept_and_one_that_is_too_small_is_refused() {
        let needs = needs(4096, 1500);
        for version in VERSIONS {
            for budget in [8 << 20, (8 << 20) + 1, 100_000_000, 1 << 30] {
                let layout = geometry(version, needs, Some(budget)).unwrap();
                let bytes = layout.slot_len as usize * layout.slots as usize;
                assert!(bytes <= budget && budget - bytes < layout.slot_len as usize);
                assert!(layout.slots >= 64);
            }
            for budget in [0, 1, (8 << 20) - 1, (1 << 30) + 1, usize::MAX] {
                assert_eq!(geometry(version, needs, Some(budget)), Err(8 << 20..=1 << 30));
            }
        }
    }

    #[test]
    fn a_ring_shrinks_by_halves_down_to_the_least() {
        let mut layout = geometry(RingVersion::V3, needs(4096, 1500), None).unwrap();
        let mut slots = Vec::new();
        while let Some(smaller) = halved(layout) {
            assert_eq!(smaller, Geometry { slots: smaller.slots, ..layout });
            slots.push(smaller.slots);
            layout = smaller;
        }
        assert_eq!(slots, [128, 64]);
    }
}
