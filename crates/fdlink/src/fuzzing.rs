//! Entries for fuzz targets to code that is not public. Not part of the API.

use crate::io::packet_mmap::fake;
use crate::options::RingVersion;

/// Walks a TPACKET_V3 block that is `bytes`.
///
/// # Panics
///
/// Where frames are listed that cannot be handed out.
pub fn v3_block(bytes: &mut [u8]) {
    fake::walked(RingVersion::V3, bytes, 0);
}

/// Walks a TPACKET_V2 slot that is `bytes`, and then a run of four that are.
///
/// # Panics
///
/// Where frames are listed that cannot be handed out.
pub fn v2_slot(bytes: &mut [u8]) {
    let len = bytes.len().max(4);
    fake::walked(RingVersion::V2, bytes, len);
    fake::walked(RingVersion::V2, bytes, len / 4);
}
