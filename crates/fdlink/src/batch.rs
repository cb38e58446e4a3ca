//! Frames as they cross the seam: received ones borrowed from the queue's memory, outgoing ones
//! borrowed from the caller (`TxFrame`) or written in place into the queue's memory (`TxSlot`).
//!
//! What is not here: how the memory is filled or sent (`io/`), and what a frame means (`offload/`,
//! the stack).

use std::fmt;
use std::io::IoSlice;
use std::time::SystemTime;

use crate::offload::vnet::{Gso, RxChecksum, TxOffload};

/// Length of an Ethernet header without a VLAN tag, in bytes (IEEE 802.3; `ETH_HLEN`).
pub const ETHERNET_HEADER_LEN: usize = 14;

/// A 48-bit link address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The address every station receives.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set (multicast or broadcast).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text given was not six hexadecimal octets separated by colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a link address is six hexadecimal octets separated by colons, as in 02:00:00:00:00:01")]
pub struct ParseMacError;

impl std::str::FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len()));
            *octet = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or(ParseMacError)?;
        }
        if parts.next().is_some() {
            return Err(ParseMacError);
        }
        Ok(Self(octets))
    }
}

/// A protocol number of the link layer (IEEE 802 EtherType, host byte order).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4 (`ETH_P_IP`).
    pub const IPV4: Self = Self(0x0800);
    /// ARP (`ETH_P_ARP`).
    pub const ARP: Self = Self(0x0806);
    /// IPv6 (`ETH_P_IPV6`).
    pub const IPV6: Self = Self(0x86dd);

    /// The protocol of a bare IP packet, from its version nibble; `None` for anything else.
    pub fn of_ip_packet(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Some(Self::IPV4),
            6 => Some(Self::IPV6),
            _ => None,
        }
    }
}

/// What stands before the network packet in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LinkHeader {
    /// A 14-byte Ethernet header.
    Ethernet,
    /// Nothing: the frame is the IP packet.
    #[default]
    None,
}

impl LinkHeader {
    /// Its length in bytes.
    pub fn len(self) -> usize {
        match self {
            Self::Ethernet => ETHERNET_HEADER_LEN,
            Self::None => 0,
        }
    }

    /// Whether there is no link header.
    pub fn is_empty(self) -> bool {
        self == Self::None
    }
}

/// An 802.1Q tag that the kernel took out of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Tag protocol identifier, 0x8100 or 0x88a8.
    pub tpid: u16,
    /// Priority, drop eligibility and VLAN number.
    pub tci: u16,
}

/// To whom a received frame was addressed (`sll_pkttype`, linux/if_packet.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PacketType {
    /// Everyone.
    Broadcast,
    /// This host, or the kind of descriptor does not say.
    #[default]
    Host,
    /// A group.
    Multicast,
    /// Somebody else.
    OtherHost,
    /// Sent by this host itself.
    Outgoing,
}

/// What a link knows of a received frame beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RxMeta {
    /// What stands before the network packet.
    pub link_header: LinkHeader,
    /// What is known of the transport checksum.
    pub checksum: RxChecksum,
    /// Set for a super-frame: how it would be cut.
    pub gso: Option<Gso>,
    /// The tag that the kernel took out, if it did.
    pub vlan: Option<VlanTag>,
    /// The frame's length on the link, where the kind tells more than was received; else 0.
    pub original_len: u32,
    /// To whom it was addressed.
    pub packet_type: PacketType,
    /// When the kernel took it in, where it was asked to say; in a ring it always does.
    pub timestamp: Option<SystemTime>,
}

impl RxMeta {
    /// What is still to be done to the frame, for whoever sends it on: the other side finishes the
    /// checksum and cuts a super-frame as this side would have.
    pub fn left_to_do(&self) -> TxOffload {
        let checksum = match self.checksum {
            RxChecksum::Partial(field) => Some(field),
            RxChecksum::Unverified | RxChecksum::Valid => None,
        };
        TxOffload { checksum, gso: self.gso }
    }
}

/// Where in the queue's memory one received frame lies.
#[derive(Clone, Copy, Debug, Default)]
pub struct RxDescriptor {
    /// Offset of the frame's first byte (its link header) in the batch's memory.
    pub offset: usize,
    /// Length in bytes, link header included.
    pub len: usize,
    /// What is known of it.
    pub meta: RxMeta,
}

/// One kernel visit's frames, borrowed from the queue that received them.
///
/// An iterator: each [`Frame`] is handed out once, with exclusive access to its bytes. Frames that
/// are not taken are simply released with the batch.
#[derive(Debug)]
pub struct RxBatch<'a> {
    memory: &'a mut [u8],
    /// How much of the original memory was cut off in front of `memory`.
    consumed: usize,
    descriptors: std::slice::Iter<'a, RxDescriptor>,
}

impl<'a> RxBatch<'a> {
    /// A batch of the frames that `descriptors` name in `memory`, in ascending order of offset and
    /// without overlap. A descriptor that breaks this, or reaches past the end, ends the batch.
    pub fn new(memory: &'a mut [u8], descriptors: &'a [RxDescriptor]) -> Self {
        Self { memory, consumed: 0, descriptors: descriptors.iter() }
    }

    /// How many frames have not been taken yet.
    pub fn len(&self) -> usize {
        self.descriptors.len()
    }

    /// Whether every frame has been taken.
    pub fn is_empty(&self) -> bool {
        self.descriptors.len() == 0
    }
}

impl<'a> Iterator for RxBatch<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let descriptor = self.descriptors.next()?;
        let skip = descriptor.offset.checked_sub(self.consumed)?;
        let end = skip.checked_add(descriptor.len)?;
        if end > self.memory.len() {
            return None;
        }
        let (taken, rest) = std::mem::take(&mut self.memory).split_at_mut(end);
        self.memory = rest;
        self.consumed += end;
        Some(Frame { bytes: &mut taken[skip..], meta: descriptor.meta })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.descriptors.len()))
    }
}

/// A received frame, where the kernel put it. It may be changed in place.
#[derive(Debug)]
pub struct Frame<'a> {
    bytes: &'a mut [u8],
    meta: RxMeta,
}

impl<'a> Frame<'a> {
    /// A frame over `bytes`, link header included: for links that make their own.
    pub fn new(bytes: &'a mut [u8], meta: RxMeta) -> Self {
        Self { bytes, meta }
    }

    /// The whole frame, link header included.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// The whole frame, to be changed in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// The frame's bytes for as long as the batch lives.
    pub fn into_bytes(self) -> &'a mut [u8] {
        self.bytes
    }

    /// What the link knows of it.
    pub fn meta(&self) -> &RxMeta {
        &self.meta
    }

    /// The network packet: what follows the link header; empty for a runt.
    pub fn packet(&self) -> &[u8] {
        self.bytes.get(self.meta.link_header.len()..).unwrap_or(&[])
    }

    /// The link-layer address it was sent to, where there is an Ethernet header.
    pub fn destination(&self) -> Option<MacAddr> {
        self.ethernet_field(0).map(MacAddr)
    }

    /// The link-layer address it came from, where there is an Ethernet header.
    pub fn source(&self) -> Option<MacAddr> {
        self.ethernet_field(6).map(MacAddr)
    }

    /// From the Ethernet type, or from the IP version where there is no link header. `None` for a
    /// runt and for a bare packet that is not IP.
    pub fn protocol(&self) -> Option<EtherType> {
        match self.meta.link_header {
            LinkHeader::Ethernet => {
                let field = self.bytes.get(12..ETHERNET_HEADER_LEN)?;
                Some(EtherType(u16::from_be_bytes([field[0], field[1]])))
            }
            LinkHeader::None => EtherType::of_ip_packet(self.bytes),
        }
    }

    fn ethernet_field<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if self.meta.link_header != LinkHeader::Ethernet || self.bytes.len() < ETHERNET_HEADER_LEN {
            return None;
        }
        self.bytes.get(at..at + N)?.try_into().ok()
    }
}

/// An outgoing frame, gathered from the caller's buffers.
#[derive(Clone, Copy, Debug)]
pub struct TxFrame<'a> {
    parts: &'a [IoSlice<'a>],
    link_header: Option<[u8; ETHERNET_HEADER_LEN]>,
    offload: TxOffload,
}

impl<'a> TxFrame<'a> {
    /// A frame made of `parts` one after the other; the first starts with the link header unless
    /// one is given by [`with_link_header`](Self::with_link_header).
    pub fn new(parts: &'a [IoSlice<'a>]) -> Self {
        Self { parts, link_header: None, offload: TxOffload::default() }
    }

    /// Puts an Ethernet header in front of the parts.
    pub fn with_link_header(mut self, header: [u8; ETHERNET_HEADER_LEN]) -> Self {
        self.link_header = Some(header);
        self
    }

    /// Leaves the checksum, or the checksum and the segmentation, to the other side.
    pub fn with_offload(mut self, offload: TxOffload) -> Self {
        self.offload = offload;
        self
    }

    /// The caller's buffers.
    pub fn parts(&self) -> &'a [IoSlice<'a>] {
        self.parts
    }

    /// The Ethernet header that goes in front of the parts, if one was given.
    pub fn link_header(&self) -> Option<&[u8; ETHERNET_HEADER_LEN]> {
        self.link_header.as_ref()
    }

    /// What is left to the other side.
    pub fn offload(&self) -> TxOffload {
        self.offload
    }

    /// Length in bytes, link header included, vnet header not.
    pub fn len(&self) -> usize {
        let parts: usize = self.parts.iter().map(|part| part.len()).sum();
        parts + self.link_header.map_or(0, |header| header.len())
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Builds the Ethernet header of a frame.
pub fn ethernet_header(
    destination: MacAddr,
    source: MacAddr,
    protocol: EtherType,
) -> [u8; ETHERNET_HEADER_LEN] {
    let mut header = [0; ETHERNET_HEADER_LEN];
    header[..6].copy_from_slice(&destination.0);
    header[6..12].copy_from_slice(&source.0);
    header[12..].copy_from_slice(&protocol.0.to_be_bytes());
    header
}

/// Memory of a transmit queue for one frame, to be written in place and committed.
///
/// Dropped without [`commit`](Self::commit), nothing is sent. A committed frame leaves with the
/// next [`flush`](crate::queue::Transmit::flush).
pub struct TxSlot<'a> {
    bytes: &'a mut [u8],
    owner: &'a mut dyn SlotOwner,
}

/// Who lends [`TxSlot`]s: a transmit queue's side of a commit.
pub trait SlotOwner {
    /// The first `len` bytes that were lent are a frame, with this left to the other side.
    fn commit(&mut self, len: usize, offload: TxOffload);
}

impl<'a> TxSlot<'a> {
    /// A slot over `bytes`, whose commit goes to `owner`.
    pub fn new(bytes: &'a mut [u8], owner: &'a mut dyn SlotOwner) -> Self {
        Self { bytes, owner }
    }

    /// The frame to be written, link header first. The bytes hold whatever was there before.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Queues the first `len` bytes as a frame.
    ///
    /// # Panics
    ///
    /// If `len` is more than was lent.
    pub fn commit(self, len: usize, offload: TxOffload) {
        assert!(len <= self.bytes.len(), "a slot of {} bytes, {len} used", self.bytes.len());
        self.owner.commit(len, offload);
    }
}

impl fmt::Debug for TxSlot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxSlot").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: usize, len: usize) -> RxDescriptor {
        RxDescriptor { offset, len, meta: RxMeta::default() }
    }

    #[test]
    fn frames_are_handed_out_once_and_in_order() {
        let mut memory: Vec<u8> = (0..10).collect();
        let descriptors = [at(1, 2), at(3, 0), at(5, 5)];
        let frames: Vec<Vec<u8>> =
            RxBatch::new(&mut memory, &descriptors).map(|frame| frame.bytes().to_vec()).collect();
        assert_eq!(frames, [vec![1, 2], vec![], vec![5, 6, 7, 8, 9]]);
    }

    #[test]
    fn a_descriptor_that_overlaps_or_reaches_past_the_end_ends_the_batch() {
        let mut memory = vec![0; 10];
        for bad in [at(2, 2), at(9, 2), at(usize::MAX, 1), at(4, usize::MAX)] {
            let descriptors = [at(0, 3), bad, at(9, 1)];
            let mut batch = RxBatch::new(&mut memory, &descriptors);
            assert_eq!(batch.next().map(|frame| frame.bytes().len()), Some(3));
            assert!(batch.next().is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_runt_has_no_addresses_and_no_packet() {
        let mut bytes = [0xff; 13];
        let meta = RxMeta { link_header: LinkHeader::Ethernet, ..RxMeta::default() };
        let frame = Frame::new(&mut bytes, meta);
        assert_eq!((frame.source(), frame.destination(), frame.protocol()), (None, None, None));
        assert!(frame.packet().is_empty());
    }

    #[test]
    fn link_addresses_are_read_and_printed() {
        let mac: MacAddr = "02:0a:00:00:00:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:0a:00:00:00:ff");
        for bad in
            ["", "02:0a:00:00:00", "02:0a:00:00:00:ff:01", "g2:0a:00:00:00:ff", "+2:0:0:0:0:0:"]
        {
            assert_eq!(bad.parse::<MacAddr>(), Err(ParseMacError), "{bad}");
        }
    }
}
