//! A super-frame in the arena that leaves in pieces: single segments with complete checksums, or
//! runs of segments that are super-frames again.
//!
//! The headers of some pieces at a time are written into a buffer of this module's own, and each
//! message is gathered from them and from the payload where it is. Where the descriptor is full in
//! the middle, [`Cut`] says from where to go on.

use std::io;

use super::lead::Lead;
use super::ledger::Cut;
use super::verdict::Gone;
use crate::batch::LinkHeader;
use crate::io::Port;
use crate::offload::segment::{Segment, SegmentChecksum, SegmentError, Segments, SuperFrame};
use crate::offload::vnet::{Gso, TxOffload, VnetHeader};
use crate::sys::outgoing::Outgoing;

/// Pieces whose headers are written before the first of them is sent. A descriptor that is full
/// after one makes the work on the others vain, and a call for 16 segments costs little each.
const PIECES: usize = 16;

/// More than the longest headers that are walked: 15 IPv6 extensions of 2048 bytes between vnet,
/// link, IP and TCP header.
const HEADERS: usize = 32 * 1024;

/// Tag protocol identifiers (IEEE 802.1Q and 802.1ad), the length of a tag, and how many there are.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const TAG_LEN: usize = 4;
const MOST_TAGS: usize = 2;

/// Where the headers of pieces are written. Takes no memory before the first of them.
#[derive(Debug, Default)]
pub(in crate::io) struct Cutter {
    headers: Box<[u8]>,
}

/// The next pieces of a super-frame, their headers written.
#[derive(Debug)]
pub(in crate::io) struct Pieces<'a> {
    headers: &'a [u8],
    /// Bytes of headers of each piece, lead included.
    stride: usize,
    /// How many have their headers written.
    count: usize,
    /// These, and all behind them.
    rest: Segments<'a>,
}

impl<'a> Pieces<'a> {
    /// Headers with their lead, and the piece that they are of.
    pub(in crate::io) fn iter(&self) -> impl Iterator<Item = (&'a [u8], Segment<'a>)> {
        self.headers.chunks_exact(self.stride).zip(self.rest.clone()).take(self.count)
    }

    /// Whether nothing is left behind the first `count`.
    pub(in crate::io) fn end_with(&self, count: usize) -> bool {
        self.rest.len() == count
    }
}

/// What became of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All its pieces are dealt with.
    Done,
    /// It cannot be cut.
    Malformed,
    /// There are more.
    More,
}

impl Cutter {
    /// Sends the next pieces of `frame`, and notes in `cut` how far that came.
    ///
    /// # Errors
    ///
    /// What the kernel said to the piece at `cut.done`.
    pub(super) fn send(
        &mut self,
        port: &Port,
        outgoing: &mut Outgoing,
        (frame, gso): (&[u8], Gso),
        cut: &mut Cut,
    ) -> io::Result<Progress> {
        let lead = Lead::new(None, port.vnet_header);
        let Ok(pieces) = self.write(port.link_header, lead, (frame, gso), cut) else {
            return Ok(Progress::Malformed);
        };
        let mut list = outgoing.begin();
        for (headers, piece) in pieces.iter() {
            list.part(headers);
            list.part(piece.payload());
            list.end_message();
        }
        let mut rest = pieces.iter();
        let mut at = 0;
        while at < pieces.count {
            let gone = port.give(&mut list, at)?;
            let count = gone.count();
            for (_, piece) in rest.by_ref().take(count) {
                match gone {
                    Gone::Short => cut.lossy = true,
                    Gone::Whole(_) => cut.count_sent(port, &piece, gso),
                }
            }
            cut.done += count * cut.run;
            at += count;
        }
        Ok(if pieces.end_with(at) { Progress::Done } else { Progress::More })
    }

    /// Writes the headers of the next pieces of `frame`, one behind the other, each behind its
    /// lead.
    ///
    /// # Errors
    ///
    /// Where the frame cannot be cut. It shows with the first pieces.
    pub(in crate::io) fn write<'a>(
        &'a mut self,
        link_header: LinkHeader,
        lead: Lead,
        (frame, gso): (&'a [u8], Gso),
        cut: &Cut,
    ) -> Result<Pieces<'a>, SegmentError> {
        let frame = SuperFrame::parse(frame, network_at(link_header, frame), gso)?;
        let kind = if cut.run == 1 { SegmentChecksum::Complete } else { SegmentChecksum::Partial };
        let mut rest = frame.runs(cut.run, kind);
        if let Some(sent) = (cut.done / cut.run).checked_sub(1) {
            rest.nth(sent);
        }
        if self.headers.is_empty() {
            self.headers = vec![0; HEADERS].into();
        }
        let headers_len = frame.headers_len();
        let header_len = u16::try_from(headers_len).map_err(|_| SegmentError::TooLong)?;
        let stride = lead.len() + headers_len;
        if stride > self.headers.len() {
            return Err(SegmentError::BufferTooSmall { needed: stride });
        }
        let mut count = 0;
        for (piece, out) in rest.clone().zip(self.headers.chunks_exact_mut(stride)).take(PIECES) {
            let (before, headers) = out.split_at_mut(lead.len());
            piece.write_headers(headers)?;
            let left = if piece.is_complete() {
                TxOffload::default()
            } else {
                let gso = Some(Gso { header_len, ..gso });
                TxOffload { checksum: Some(frame.checksum_field()), gso }
            };
            let vnet = VnetHeader::for_tx(left.for_frame_len(piece.frame_len()), header_len);
            lead.write(piece.frame_len(), vnet, before);
            count += 1;
        }
        Ok(Pieces { headers: &self.headers, stride, count, rest })
    }
}

impl Cut {
    /// Counts a piece that left, and with the first one that the frame is cut, if it is into single
    /// segments.
    pub(in crate::io) fn count_sent(&mut self, port: &Port, piece: &Segment<'_>, gso: Gso) {
        port.count_sent(piece.frame_len(), piece.payload().len() > usize::from(gso.size));
        if self.run == 1 && !self.counted {
            port.stats.tx.segmented.add(1);
            self.counted = true;
        }
    }
}

/// Where the network header begins: behind link header and VLAN tags.
fn network_at(link_header: LinkHeader, frame: &[u8]) -> usize {
    let mut at = link_header.len();
    for _ in 0..MOST_TAGS {
        // The Ethernet type is the last of a header.
        let tagged = at.checked_sub(2).and_then(|from| frame.get(from..at));
        if !tagged.is_some_and(|tag| TAGS.iter().any(|known| known == tag)) {
            break;
        }
        at += TAG_LEN;
    }
    at
}
