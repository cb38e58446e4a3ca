//! Builds super-frames from segments, as the kernel's GRO does: the counterpart of
//! [`segment`](super::segment), for a stack that sends segments of the MSS and for whoever forwards
//! what came in small.
//!
//! # Theory of operation
//!
//! ```text
//!  pushed    A1  B1  A2  ack of B  A3 (PSH)  B2            flush
//!  open      A   AB  AB  A         -         B             -
//!  sink              .   B1, ack   A1 A2 A3  .             B2
//! ```
//!
//! A [`Coalescer`] holds one open super-frame for each of a few flows, in the caller's memory. A
//! frame that goes on where its flow's super-frame ends is appended: its payload is copied. Any
//! other frame of the flow lets the open one leave first, so that a flow's frames leave in the order
//! in which they came; flows may overtake each other. A flow without a place takes that of the flow
//! which has had it longest. What stayed alone leaves as it came; what is not IP passes by.
//!
//! **What goes together is what can be undone**: cutting the super-frame gives back the same frames,
//! byte for byte, by [`segment`](super::segment) or by any kernel. Of all that is between link header
//! and payload, only this may differ from one frame to the next:
//!
//! * IP length and header checksum, which must be right. IPv4 id: one more in each, whether or not
//!   DF is set. (GRO also takes ids that stand still under DF; a vnet header cannot say so, and
//!   cutting would count them up.)
//! * TCP: sequence number, each where the one before ends. FIN and PSH in the last only, which ends
//!   the super-frame; CWR in the first only ([`Gso::ecn`]). Other flags, acknowledgement, window and
//!   options are the same in all, and SYN, RST and URG in none.
//! * UDP: length. A datagram over IPv4 without a checksum stays alone: cutting gives it one.
//! * The transport checksum: right in all, or left partial in all. Who pushes
//!   [`RxChecksum::Valid`] is believed; what nobody verified is verified here.
//!
//! Payloads are of one size, the last may be shorter and ends the super-frame; none is empty. A
//! frame is whole and as long as its IP header says (no link padding), its IPv6 extension headers are
//! those that Linux copies when it cuts (hop-by-hop, routing, destination options), and they are the
//! same in all. A super-frame's packet is no longer than an IP header can say (65,535 bytes), and UDP
//! makes at most [`UDP_MAX_SEGMENTS`] of one.
//!
//! ```
//! use fdlink::offload::coalesce::{Coalescer, FrameView};
//! use fdlink::offload::segment::{SegmentChecksum, SuperFrame};
//! use fdlink::offload::vnet::RxChecksum;
//! # use etherparse::PacketBuilder;
//!
//! // A burst: three TCP segments without a link header, checksums not looked at yet.
//! let burst: Vec<Vec<u8>> = [(1, 1000, false), (2, 2000, false), (3, 3000, true)]
//!     .into_iter()
//!     .map(|(id, seq, last)| {
//!         // …
//! #       let ip = etherparse::Ipv4Header {
//! #           identification: id,
//! #           time_to_live: 64,
//! #           ..Default::default()
//! #       };
//! #       let ip = etherparse::IpHeaders::Ipv4(ip, Default::default());
//! #       let mut tcp = etherparse::TcpHeader::new(1, 2, seq, 512);
//! #       (tcp.ack, tcp.psh) = (true, last);
//! #       let mut frame = Vec::new();
//! #       PacketBuilder::ip(ip).tcp_header(tcp).write(&mut frame, &[0x61; 1000]).unwrap();
//! #       frame
//!     })
//!     .collect();
//!
//! // Places for four flows, with super-frames that a device with a gso_max_size of 65,536 takes.
//! let mut coalescer = Coalescer::new(vec![0; 4 * 65_376], 0, 65_376);
//! let mut sent = Vec::new();
//! let mut send = |frame: FrameView<'_>| {
//!     // Here: TxFrame::new(&[IoSlice::new(frame.bytes)]).with_offload(frame.tx_offload())
//!     sent.push((frame.bytes.to_vec(), frame.tx_offload()));
//! };
//! for bytes in &burst {
//!     coalescer.push(FrameView::new(bytes, RxChecksum::Unverified), &mut send);
//! }
//! coalescer.flush(&mut send);
//!
//! // One super-frame left, with a partial checksum; cutting it gives back what was pushed.
//! let [(bytes, offload)] = &sent[..] else { panic!() };
//! let gso = offload.gso.unwrap();
//! assert_eq!((bytes.len(), gso.size), (40 + 3000, 1000));
//! let super_frame = SuperFrame::parse(bytes, 0, gso)?;
//! assert_eq!(offload.checksum, Some(super_frame.checksum_field()));
//! let mut buffer = vec![0; super_frame.max_segment_len()];
//! for (segment, pushed) in super_frame.segments(SegmentChecksum::Complete).zip(&burst) {
//!     let len = segment.write(&mut buffer)?;
//!     assert_eq!(&buffer[..len], pushed);
//! }
//! # Ok::<(), fdlink::offload::segment::SegmentError>(())
//! ```
//!
//! What is not here: a clock that holds frames back or lets them go (a burst ends with
//! [`Coalescer::flush`]), and the rules' own code (`candidate`).
#![forbid(unsafe_code)]

mod candidate;

use self::candidate::{Candidate, Flow, Open};
use super::ip::IpPacket;
use super::vnet::{Gso, RxChecksum, TxOffload};

/// Most datagrams in one super-frame (include/linux/udp.h): Linux 6.18 refuses more with EINVAL.
pub const UDP_MAX_SEGMENTS: usize = 128;

/// Most flows that have a super-frame open at a time: as many as GRO has in one bucket
/// (`MAX_GRO_SKBS`, net/core/gro.c).
pub const MAX_FLOWS: usize = 8;

/// A frame with what is known of it: what a [`Coalescer`] takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameView<'a> {
    /// The whole frame, link header included.
    pub bytes: &'a [u8],
    /// What is known of its transport checksum.
    pub checksum: RxChecksum,
    /// How it is cut, if it is a super-frame.
    pub gso: Option<Gso>,
}

impl<'a> FrameView<'a> {
    /// A frame that is no super-frame.
    pub fn new(bytes: &'a [u8], checksum: RxChecksum) -> Self {
        Self { bytes, checksum, gso: None }
    }

    /// What is left to the other side when the frame is sent as it is.
    pub fn tx_offload(&self) -> TxOffload {
        let checksum = match self.checksum {
            RxChecksum::Partial(field) => Some(field),
            RxChecksum::Unverified | RxChecksum::Valid => None,
        };
        TxOffload { checksum, gso: self.gso }
    }
}

/// Coalesces the frames of a few flows. What is open when it is dropped is lost: [`flush`] it.
///
/// `M` is the memory: a `Vec<u8>` to own it, a `&mut [u8]` to borrow it.
///
/// [`flush`]: Self::flush
#[derive(Debug)]
pub struct Coalescer<M> {
    memory: M,
    link_header_len: usize,
    max_frame_len: usize,
    /// The first `flows` may be taken; each has its place in `memory`.
    open: [Option<Open>; MAX_FLOWS],
    flows: usize,
    /// How many super-frames were begun: their age.
    begun: u64,
}

impl<M: AsMut<[u8]>> Coalescer<M> {
    /// For frames with a link header of that length, which is compared and copied. Super-frames
    /// are up to `max_frame_len` bytes long, link header included: no more than the sending side
    /// takes (`gso_max_size`, less some slack for headers). Each flow has that much of the memory:
    /// so many have a place, up to [`MAX_FLOWS`]. With less memory than one needs, everything
    /// passes as it is.
    ///
    /// What is known of a frame beside its bytes, such as a VLAN tag that the kernel took out, is
    /// not compared: frames that differ in that go to coalescers of their own.
    pub fn new(mut memory: M, link_header_len: usize, max_frame_len: usize) -> Self {
        let flows = memory.as_mut().len().checked_div(max_frame_len).unwrap_or(0);
        Self {
            memory,
            link_header_len,
            max_frame_len,
            open: [None; MAX_FLOWS],
            flows: flows.min(MAX_FLOWS),
            begun: 0,
        }
    }

    /// How many flows have a place.
    pub fn flows(&self) -> usize {
        self.flows
    }

    /// Whether no frame is held back.
    pub fn is_empty(&self) -> bool {
        self.open.iter().all(Option::is_none)
    }

    /// Takes in one frame. `sink` gets what leaves for it: nothing, the frame itself, or a
    /// super-frame or more, in the order in which they are to be sent.
    pub fn push(&mut self, frame: FrameView<'_>, mut sink: impl FnMut(FrameView<'_>)) {
        let packet = frame.bytes.get(self.link_header_len..).and_then(IpPacket::parse);
        let Some(packet) = packet else {
            return sink(frame);
        };
        let flow = Flow::of(&packet);
        let Some(candidate) = Candidate::of(&frame, &packet, self.link_header_len) else {
            self.release(&flow, &mut sink);
            return sink(frame);
        };
        if let Some(place) = self.place_of(&flow) {
            if self.append(place, &candidate) {
                if self.open[place].is_some_and(|open| open.is_closed()) {
                    self.emit(place, &mut sink);
                }
                return;
            }
            self.emit(place, &mut sink);
        }
        if candidate.is_last() || frame.bytes.len() > self.max_frame_len || self.flows == 0 {
            return sink(frame);
        }
        let place = self.free_place(&mut sink);
        self.begin(place, &candidate, flow);
    }

    /// Lets everything leave that is still open, oldest first: at the end of a burst.
    pub fn flush(&mut self, mut sink: impl FnMut(FrameView<'_>)) {
        while let Some(place) = self.oldest() {
            self.emit(place, &mut sink);
        }
    }

    fn place_of(&self, flow: &Flow) -> Option<usize> {
        self.open.iter().position(|open| open.is_some_and(|open| open.flow == *flow))
    }

    fn oldest(&self) -> Option<usize> {
        let taken = self.open.iter().enumerate();
        let ages = taken.filter_map(|(place, open)| open.map(|open| (open.begun, place)));
        ages.min().map(|(_, place)| place)
    }

    /// A place that nothing is open in, if need be because the oldest leaves.
    fn free_place(&mut self, sink: &mut impl FnMut(FrameView<'_>)) -> usize {
        if let Some(place) = self.open[..self.flows].iter().position(Option::is_none) {
            return place;
        }
        let place = self.oldest().unwrap_or(0);
        self.emit(place, sink);
        place
    }

    /// The memory of one place.
    fn buffer(&mut self, place: usize) -> &mut [u8] {
        &mut self.memory.as_mut()[place * self.max_frame_len..][..self.max_frame_len]
    }

    fn begin(&mut self, place: usize, candidate: &Candidate<'_>, flow: Flow) {
        self.buffer(place)[..candidate.bytes.len()].copy_from_slice(candidate.bytes);
        self.open[place] = Some(Open::new(candidate, flow, self.begun));
        self.begun += 1;
    }

    /// Appends the frame, or leaves everything as it is and says no.
    fn append(&mut self, place: usize, candidate: &Candidate<'_>) -> bool {
        let Some(mut open) = self.open[place] else {
            return false;
        };
        let appended = open.append(self.buffer(place), candidate);
        self.open[place] = Some(open);
        appended
    }

    /// Lets every super-frame leave that may be of the same flow.
    fn release(&mut self, flow: &Flow, sink: &mut impl FnMut(FrameView<'_>)) {
        for place in 0..self.flows {
            if self.open[place].is_some_and(|open| open.flow.may_be(flow)) {
                self.emit(place, sink);
            }
        }
    }

    fn emit(&mut self, place: usize, sink: &mut impl FnMut(FrameView<'_>)) {
        if let Some(open) = self.open[place].take() {
            sink(open.finish(self.buffer(place)));
        }
    }
}

#[cfg(test)]
mod tests;
