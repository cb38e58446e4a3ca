//! A super-frame in the arena that leaves in pieces: single segments with complete checksums, or
//! runs of segments that are super-frames again.
//!
//! The headers of some pieces at a time are written into a buffer of this module's own, and each
//! message is gathered from them and from the payload where it is. Where the descriptor is full in
//! the middle, [`Cut`] says from where to go on.

use std::io;

use super::ledger::Cut;
use super::verdict::Gone;
use crate::batch::LinkHeader;
use crate::io::Port;
use crate::offload::segment::{SegmentChecksum, SegmentError, Segments, SuperFrame};
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
pub(super) struct Cutter {
    headers: Box<[u8]>,
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
        let Ok(frame) = SuperFrame::parse(frame, network_at(port.link_header, frame), gso) else {
            return Ok(Progress::Malformed);
        };
        let kind = if cut.run == 1 { SegmentChecksum::Complete } else { SegmentChecksum::Partial };
        let mut rest = frame.runs(cut.run, kind);
        if let Some(sent) = (cut.done / cut.run).checked_sub(1) {
            rest.nth(sent);
        }
        let Ok(pieces) = self.write_headers(port, &frame, rest.clone(), gso) else {
            return Ok(Progress::Malformed);
        };
        let mut list = outgoing.begin();
        let stride = port.vnet_header + frame.headers_len();
        for (piece, headers) in rest.clone().zip(self.headers.chunks_exact(stride)).take(pieces) {
            list.part(headers);
            list.part(piece.payload());
            list.end_message();
        }
        let mut at = 0;
        while at < pieces {
            let gone = port.give(&mut list, at)?;
            let count = gone.count();
            for piece in rest.by_ref().take(count) {
                let is_run = piece.payload().len() > usize::from(gso.size);
                match gone {
                    Gone::Short => cut.lossy = true,
                    Gone::Whole(_) => port.count_sent(piece.frame_len(), is_run),
                }
            }
            if matches!(gone, Gone::Whole(_)) && cut.run == 1 && !cut.counted {
                port.stats.tx.segmented.add(1);
                cut.counted = true;
            }
            cut.done += count * cut.run;
            at += count;
        }
        Ok(if rest.len() == 0 { Progress::Done } else { Progress::More })
    }

    /// Writes the headers of the next pieces, one behind the other; returns of how many.
    fn write_headers(
        &mut self,
        port: &Port,
        frame: &SuperFrame<'_>,
        pieces: Segments<'_>,
        gso: Gso,
    ) -> Result<usize, SegmentError> {
        if self.headers.is_empty() {
            self.headers = vec![0; HEADERS].into();
        }
        let headers_len = frame.headers_len();
        let header_len = u16::try_from(headers_len).map_err(|_| SegmentError::TooLong)?;
        let stride = port.vnet_header + headers_len;
        if stride > self.headers.len() {
            return Err(SegmentError::BufferTooSmall { needed: stride });
        }
        let mut count = 0;
        for (piece, out) in pieces.zip(self.headers.chunks_exact_mut(stride)).take(PIECES) {
            let (vnet, headers) = out.split_at_mut(port.vnet_header);
            piece.write_headers(headers)?;
            let left = if piece.is_complete() {
                TxOffload::default()
            } else {
                let gso = Some(Gso { header_len, ..gso });
                TxOffload { checksum: Some(frame.checksum_field()), gso }
            };
            VnetHeader::for_tx(left.for_frame_len(piece.frame_len()), header_len).write(vnet);
            count += 1;
        }
        Ok(count)
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
