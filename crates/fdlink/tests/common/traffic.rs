//! TCP and UDP that may be left to the other side in part, and what is to come of it, computed on
//! its own: offsets by hand, checksums and lengths by etherparse.

use std::net::SocketAddr;
use std::ops::Range;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fdlink::offload::vnet::{ChecksumField, Gso, GsoKind, TxOffload};
use testkit::packet::{self, Tcp, flag};

/// Payload of a segment: with the longest headers here (Ethernet, IPv6, TCP with a time stamp) a
/// frame of it keeps below an MTU of 1500.
pub(crate) const MSS: u16 = 1400;

/// TCP's time stamp option and two paddings, so that the header is longer than the least.
const OPTIONS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

/// About to wrap within a super-frame.
const SEQ: u32 = u32::MAX - 2000;

/// One packet, or super-packet, of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) ethernet: bool,
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) payload: usize,
    pub(crate) mss: u16,
}

impl Traffic {
    fn link_len(self) -> usize {
        if self.ethernet { 14 } else { 0 }
    }

    fn ip_len(self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn transport_len(self) -> usize {
        if self.udp { 8 } else { 20 + OPTIONS.len() }
    }

    /// Where the transport header starts: `csum_start`.
    pub(crate) fn start(self) -> u16 {
        u16::try_from(self.link_len() + self.ip_len()).unwrap()
    }

    /// Where the checksum is from there: `csum_offset`.
    pub(crate) fn offset(self) -> u16 {
        if self.udp { 6 } else { 16 }
    }

    /// Length of all headers: `hdr_len`.
    pub(crate) fn headers(self) -> u16 {
        self.start() + u16::try_from(self.transport_len()).unwrap()
    }

    /// `gso_type`.
    pub(crate) fn gso_type(self) -> u8 {
        match (self.udp, self.v6) {
            (true, _) => 5,
            (false, true) => 4,
            (false, false) => 1,
        }
    }

    pub(crate) fn segments(self) -> usize {
        self.payload.div_ceil(self.mss.into())
    }

    /// The checksum and the segmentation left to the other side.
    pub(crate) fn offload(self) -> TxOffload {
        let kind = match (self.udp, self.v6) {
            (true, _) => GsoKind::UdpSegments,
            (false, true) => GsoKind::TcpV6,
            (false, false) => GsoKind::TcpV4,
        };
        // What a stack knows: not the length of all headers.
        let gso = Gso { kind, size: self.mss, header_len: 0, ecn: false };
        let checksum = ChecksumField { start: self.start(), offset: self.offset() };
        TxOffload { checksum: Some(checksum), gso: Some(gso) }
    }

    /// The frame with its checksum complete.
    pub(crate) fn complete(self) -> Vec<u8> {
        let payload: Vec<u8> =
            (0..self.payload).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        let (source, destination) = self.addresses();
        let packet = if self.udp {
            packet::udp(source, destination, &payload)
        } else {
            let flags = flag::ACK | flag::PSH | flag::FIN;
            let (ack, window, options) = (9, 1000, &OPTIONS[..]);
            let payload = &payload[..];
            packet::tcp(Tcp { source, destination, seq: SEQ, ack, flags, window, options, payload })
        };
        if !self.ethernet {
            return packet;
        }
        packet::ethernet_ip([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8], &packet)
    }

    /// The frame with the pseudo-header's sum in place of its checksum.
    pub(crate) fn partial(self) -> Vec<u8> {
        let mut frame = self.complete();
        let (source, destination) = self.addresses();
        let (protocol, len) = (if self.udp { 17 } else { 6 }, self.transport_len() + self.payload);
        let sum = packet::pseudo_header_sum(source.ip(), destination.ip(), protocol, len);
        frame[self.checksum_at()].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    fn checksum_at(self) -> Range<usize> {
        let at = usize::from(self.start() + self.offset());
        at..at + 2
    }

    fn addresses(self) -> (SocketAddr, SocketAddr) {
        let (source, destination) =
            if self.v6 { ("[fd00::1]:5", "[fd00::2]:6") } else { ("192.0.2.1:5", "192.0.2.2:6") };
        (source.parse().unwrap(), destination.parse().unwrap())
    }

    /// Checks that frames are this packet's segments, in order, each whole by itself: lengths and
    /// checksums by etherparse, and the payload that they make together.
    pub(crate) fn check_segments(self, frames: &[Vec<u8>]) {
        assert_eq!(frames.len(), self.segments(), "{self:?}");
        let whole = self.complete();
        let mut payload: Vec<u8> = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            assert_eq!(frame[..self.link_len()], whole[..self.link_len()]);
            let sliced = SlicedPacket::from_ip(&frame[self.link_len()..]).unwrap();
            let (len, sum) = check_ip(&sliced, index);
            assert_eq!(len, frame.len() - self.link_len(), "{self:?}: segment {index}");
            let last = index + 1 == frames.len();
            let data = match &sliced.transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    let offset = u32::try_from(payload.len()).unwrap();
                    assert_eq!(tcp.sequence_number(), SEQ.wrapping_add(offset));
                    assert_eq!((tcp.fin(), tcp.psh(), tcp.ack()), (last, last, true));
                    assert_eq!(tcp.options(), OPTIONS);
                    tcp.payload()
                }
                Some(TransportSlice::Udp(udp)) => {
                    assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
                    udp.payload()
                }
                other => panic!("{other:?}"),
            };
            let stated = u16::from_be_bytes(frame[self.checksum_at()].try_into().unwrap());
            assert_eq!(stated, sum, "{self:?}: checksum of segment {index}");
            assert!(last || data.len() == usize::from(self.mss), "{self:?}: segment {index}");
            payload.extend(data);
        }
        assert_eq!(payload, whole[self.headers().into()..], "{self:?}");
    }
}

/// Checks the IP header; returns the packet's length and its right transport checksum.
fn check_ip(sliced: &SlicedPacket<'_>, index: usize) -> (usize, u16) {
    match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            // The packet's own id is 0.
            assert_eq!(usize::from(ip.identification), index);
            let sum = match sliced.transport.as_ref().unwrap() {
                TransportSlice::Tcp(tcp) => tcp.calc_checksum_ipv4(ip.source, ip.destination),
                TransportSlice::Udp(udp) => {
                    udp.to_header().calc_checksum_ipv4_raw(ip.source, ip.destination, udp.payload())
                }
                other => panic!("{other:?}"),
            };
            (ip.total_len.into(), sum.unwrap())
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header().to_header();
            let sum = match sliced.transport.as_ref().unwrap() {
                TransportSlice::Tcp(tcp) => tcp.calc_checksum_ipv6(ip.source, ip.destination),
                TransportSlice::Udp(udp) => {
                    udp.to_header().calc_checksum_ipv6_raw(ip.source, ip.destination, udp.payload())
                }
                other => panic!("{other:?}"),
            };
            (40 + usize::from(ip.payload_length), sum.unwrap())
        }
        other => panic!("{other:?}"),
    }
}
