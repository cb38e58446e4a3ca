//! What the kernel says of a frame in a ring: `tpacket2_hdr` or `tpacket3_hdr`, and the
//! `sockaddr_ll` behind it. Reads bytes that may say anything; nothing is trusted here but that
//! they are there.

use std::mem::offset_of;
use std::time::{Duration, SystemTime};

use libc::{tpacket_hdr_variant1, tpacket2_hdr, tpacket3_hdr};

use crate::sys::message::PacketInfo;

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    /// V3: from this header to the next one; 0 for the last.
    pub(super) next: usize,
    pub(super) info: PacketInfo,
    /// Bytes of the frame that are there.
    captured: usize,
    /// From the header to the frame.
    mac: usize,
    /// Bytes of the header with its address: a frame begins behind them.
    len: usize,
}

impl Header {
    /// The header of V2 at the start of its slot.
    pub(super) fn v2(slot: &[u8]) -> Option<Self> {
        const ADDRESS: usize = address_at(size_of::<tpacket2_hdr>());
        Some(Self {
            next: 0,
            info: PacketInfo {
                packet_type: packet_type(slot, ADDRESS)?,
                status: u32_at(slot, offset_of!(tpacket2_hdr, tp_status))?,
                len: u32_at(slot, offset_of!(tpacket2_hdr, tp_len))?,
                vlan_tci: u16_at(slot, offset_of!(tpacket2_hdr, tp_vlan_tci))?,
                vlan_tpid: u16_at(slot, offset_of!(tpacket2_hdr, tp_vlan_tpid))?,
                timestamp: time(
                    u32_at(slot, offset_of!(tpacket2_hdr, tp_sec))?,
                    u32_at(slot, offset_of!(tpacket2_hdr, tp_nsec))?,
                ),
                ..PacketInfo::default()
            },
            captured: u32_at(slot, offset_of!(tpacket2_hdr, tp_snaplen))? as usize,
            mac: u16_at(slot, offset_of!(tpacket2_hdr, tp_mac))?.into(),
            len: ADDRESS + size_of::<libc::sockaddr_ll>(),
        })
    }

    /// A header of V3 somewhere in a block.
    pub(super) fn v3(block: &[u8], at: usize) -> Option<Self> {
        const ADDRESS: usize = address_at(size_of::<tpacket3_hdr>());
        const VLAN: usize = offset_of!(tpacket3_hdr, hv1);
        let header = block.get(at..)?;
        let tci = u32_at(header, VLAN + offset_of!(tpacket_hdr_variant1, tp_vlan_tci))?;
        Some(Self {
            next: u32_at(header, offset_of!(tpacket3_hdr, tp_next_offset))? as usize,
            info: PacketInfo {
                packet_type: packet_type(header, ADDRESS)?,
                status: u32_at(header, offset_of!(tpacket3_hdr, tp_status))?,
                len: u32_at(header, offset_of!(tpacket3_hdr, tp_len))?,
                // 16 bits in a field of 32.
                vlan_tci: u16::try_from(tci & 0xffff).unwrap_or(0),
                vlan_tpid: u16_at(header, VLAN + offset_of!(tpacket_hdr_variant1, tp_vlan_tpid))?,
                timestamp: time(
                    u32_at(header, offset_of!(tpacket3_hdr, tp_sec))?,
                    u32_at(header, offset_of!(tpacket3_hdr, tp_nsec))?,
                ),
                ..PacketInfo::default()
            },
            captured: u32_at(header, offset_of!(tpacket3_hdr, tp_snaplen))? as usize,
            mac: u16_at(header, offset_of!(tpacket3_hdr, tp_mac))?.into(),
            len: ADDRESS + size_of::<libc::sockaddr_ll>(),
        })
    }

    /// Where the frame with its vnet header starts in the memory that the header is in `at`, and
    /// its bytes; `None` where it does not lie between the header and the end.
    pub(super) fn frame<'m>(
        &self,
        memory: &'m [u8],
        at: usize,
        vnet: usize,
    ) -> Option<(usize, &'m [u8])> {
        let start = self.mac.checked_sub(vnet).filter(|start| *start >= self.len)?;
        let start = at.checked_add(start)?;
        let end = start.checked_add(vnet)?.checked_add(self.captured)?;
        memory.get(start..end).map(|message| (start, message))
    }
}

/// Where the kernel puts the address: TPACKET_ALIGN of the header's length.
const fn address_at(header: usize) -> usize {
    header.next_multiple_of(libc::TPACKET_ALIGNMENT)
}

fn packet_type(header: &[u8], address: usize) -> Option<u8> {
    header.get(address + offset_of!(libc::sockaddr_ll, sll_pkttype)).copied()
}

/// When the kernel took the frame in. It says so in every header, whether it was asked to or not.
fn time(seconds: u32, nanos: u32) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds.into(), nanos))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}
