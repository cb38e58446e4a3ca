//! Sending frames on a stream: frames that were written in place, and what waits.
//!
//! # Theory of operation
//!
//! A frame leaves behind its lead: the length prefix and the vnet header, if there is one. Frames
//! that leave as they are go out many in one call. The kernel may take any number of bytes of it.
//! A frame of which it took some has begun and must be finished before anything else leaves.
//!
//! What has begun, and what was committed, waits in the backlog:
//!
//! ```text
//! backlog: | lead frame | lead frame | lead frame | lead (lent slot) |    free    |
//!            ^ head: its first `begun` bytes have left
//!            |------- ready -------|               ^ top
//! ```
//!
//! The first `ready` frames leave as they are, their leads written and their checksums complete.
//! When everything has left, the backlog starts over.
//!
//! A super-frame that is to be cut stays in the backlog until its last piece has left, and only the
//! headers of a few pieces are written at a time. They are the same whenever they are written: so a
//! piece that has begun is noted as a number of bytes, too, and no piece is ever kept.
//!
//! What is not here: lists from the caller's buffers (`send/gathered`), making the call
//! (`send/outlet`), and what all kinds share (`io/transmit`): which way a frame takes, the
//! bookkeeping of what waits, and the headers of pieces.

mod gathered;
mod outlet;

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::time::Duration;

use self::outlet::Outlet;
use crate::batch::{ETHERNET_HEADER_LEN, TxFrame, TxSlot};
use crate::io::framed::FramePrefix;
use crate::io::transmit::cut::Cutter;
use crate::io::transmit::is_super_frame;
use crate::io::transmit::lead::Lead;
use crate::io::transmit::ledger::{Cut, Ledger};
use crate::io::transmit::way::Way;
use crate::io::{FRAME_ROOM, Port};
use crate::offload::checksum;
use crate::offload::vnet::{TxOffload, VnetHeader};
use crate::queue::{Sent, Transmit, Wakeup};
use crate::stats::{Counter, TxCounters};
use crate::sys::message;
use crate::sys::outgoing::Outgoing;

/// Frames of a list in one call.
const LIST: usize = 64;

/// Frames in the backlog, if it holds so many.
const SLOTS: usize = 256;

/// Two of the longest frames and room for what goes with them.
const BACKLOG: usize = 2 * FRAME_ROOM + 24 * 1024;

/// A lead and an Ethernet header, each the longest.
const SCRATCH: usize = Lead::LONGEST + ETHERNET_HEADER_LEN;

/// The kernel gives no edge when it has memory again, so the caller tries again after that long.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(1);

/// Sends frames on a stream.
pub(crate) struct StreamSender {
    outlet: Outlet,
    outgoing: Outgoing,
    scratch: Box<[[u8; SCRATCH]]>,
    backlog: Box<[u8]>,
    ledger: Ledger,
    cutter: Cutter,
    /// Frames at the head that leave as they are, their leads written.
    ready: usize,
    /// Bytes that have left of the frame at the head, or of the piece of it that is next.
    begun: usize,
}

impl StreamSender {
    pub(crate) fn new(port: Port, prefix: FramePrefix) -> Self {
        let outlet = Outlet::new(port, prefix);
        Self {
            outgoing: Outgoing::with_capacity(LIST),
            scratch: vec![[0; SCRATCH]; LIST].into(),
            backlog: vec![0; BACKLOG].into(),
            ledger: Ledger::new(SLOTS, outlet.lead.len()),
            cutter: Cutter::default(),
            ready: 0,
            begun: 0,
            outlet,
        }
    }

    /// Sends what waits, until all has left or the descriptor is full.
    fn send_queued(&mut self, sent: &mut Sent) -> io::Result<()> {
        let mut goes_on = true;
        while goes_on && self.queued() > 0 {
            goes_on = if let Some(cut) = self.ledger.cut {
                self.send_pieces(cut, sent)?
            } else if self.prepare() > 0 {
                self.send_ready(sent)?
            } else {
                self.find_way(sent)
            };
        }
        Ok(())
    }

    /// Makes the frames at the head ready to leave as they are; returns how many are. None: the
    /// first one leaves in another way.
    fn prepare(&mut self) -> usize {
        let Self { outlet, backlog, ledger, ready, .. } = self;
        let lead_len = outlet.lead.len();
        for slot in &mut ledger.waiting_mut()[*ready..] {
            let (lead, frame) = backlog[slot.range(lead_len)].split_at_mut(lead_len);
            match outlet.way(frame.len(), slot.offload, |at| frame.get(at).copied()) {
                Way::Whole(header) => outlet.lead.write(frame.len(), header, lead),
                Way::Complete(field) => {
                    // It cannot fail: the field was found to fit.
                    let _ = checksum::complete(frame, field);
                    slot.offload = TxOffload::default();
                    outlet.lead.write(frame.len(), VnetHeader::default(), lead);
                }
                Way::Cut(_) | Way::Refused(_) => break,
            }
            *ready += 1;
        }
        *ready
    }

    /// Decides about the frame at the head, which does not leave as it is; there is more to do.
    fn find_way(&mut self, sent: &mut Sent) -> bool {
        let Self { outlet, backlog, ledger, .. } = self;
        let lead = outlet.lead.len();
        let Some(slot) = ledger.waiting().first() else { return true };
        let frame = &backlog[slot.range(lead)][lead..];
        match outlet.way(frame.len(), slot.offload, |at| frame.get(at).copied()) {
            Way::Cut(run) => ledger.cut = Some(Cut::into_runs(run)),
            Way::Refused(counter) => {
                counter.add(1);
                sent.taken += 1;
                ledger.advance(1);
            }
            Way::Complete(_) | Way::Whole(_) => {}
        }
        true
    }

    /// Sends the frames that are ready, in one call; whether the descriptor took anything.
    fn send_ready(&mut self, sent: &mut Sent) -> io::Result<bool> {
        let Self { outlet, backlog, ledger, ready, begun, .. } = self;
        let lead = outlet.lead;
        let slots = &ledger.waiting()[..*ready];
        let from = slots.first().map_or(0, |slot| slot.range(lead.len()).start) + *begun;
        let to = slots.last().map_or(0, |slot| slot.range(lead.len()).end);
        let taken = outlet.call(|port| message::send(port.fd(), &backlog[from..to]))?;
        *begun += taken;
        // Only the first of them can have been told of.
        let (mut count, mut told) = (0, ledger.told);
        for slot in slots {
            let range = slot.range(lead.len());
            if *begun < range.len() {
                break;
            }
            *begun -= range.len();
            count += 1;
            if !mem::take(&mut told) {
                outlet.port.count_sent(slot.len, is_super_frame(lead.vnet(&backlog[range])));
                sent.taken += 1;
                sent.sent += 1;
            }
        }
        if count > 0 {
            *ready -= count;
            ledger.advance(count);
        }
        Ok(taken > 0)
    }

    /// Sends pieces of the frame at the head, in one call; whether there is more to do now.
    fn send_pieces(&mut self, mut cut: Cut, sent: &mut Sent) -> io::Result<bool> {
        let Self { outlet, outgoing, backlog, ledger, cutter, begun, .. } = self;
        let Some(slot) = ledger.waiting().first() else { return Ok(false) };
        let frame = &backlog[slot.range(outlet.lead.len())][outlet.lead.len()..];
        let pieces = slot.offload.gso.and_then(|gso| {
            let pieces = cutter.write(outlet.port.link_header, outlet.lead, (frame, gso), &cut);
            pieces.ok().map(|pieces| (pieces, gso))
        });
        let Some((pieces, gso)) = pieces else {
            return Ok(self.refuse(sent, |counters| &counters.invalid));
        };
        // None behind the first is longer.
        let longest = pieces.iter().next().map_or(0, |(_, piece)| piece.frame_len());
        if longest > outlet.lead.limit() {
            if cut.run > 1 {
                ledger.cut = Some(Cut::into_runs(1));
                return Ok(true);
            }
            return Ok(self.refuse(sent, |counters| &counters.too_long));
        }
        let mut list = outgoing.begin();
        let mut skip = *begun;
        for part in pieces.iter().flat_map(|(headers, piece)| [headers, piece.payload()]) {
            let (gone, rest) = part.split_at(skip.min(part.len()));
            skip -= gone.len();
            list.part(rest);
        }
        list.end_message();
        let taken = outlet.call(|port| list.send_some(port.fd(), 0))?;
        *begun += taken;
        let mut count = 0;
        for (headers, piece) in pieces.iter() {
            let len = headers.len() + piece.payload().len();
            if *begun < len {
                break;
            }
            *begun -= len;
            count += 1;
            cut.done += cut.run;
            cut.count_sent(&outlet.port, &piece, gso);
        }
        ledger.cut = Some(cut);
        if pieces.end_with(count) {
            sent.taken += usize::from(!ledger.told);
            sent.sent += usize::from(!ledger.told);
            ledger.advance(1);
        }
        Ok(taken > 0)
    }

    /// Drops the frame at the head, of which nothing has left; there is more to do.
    fn refuse(&mut self, sent: &mut Sent, reason: fn(&TxCounters) -> &Counter) -> bool {
        reason(&self.outlet.port.stats.tx).add(1);
        sent.taken += 1;
        self.ledger.advance(1);
        true
    }
}

impl Transmit for StreamSender {
    fn send(&mut self, frames: &[TxFrame<'_>]) -> io::Result<Sent> {
        let mut sent = Sent::default();
        self.flush()?;
        if self.queued() > 0 {
            return Ok(sent);
        }
        let end = self.send_list(frames, &mut sent);
        sent.before(end)
    }

    fn slot(&mut self, len: usize) -> Option<TxSlot<'_>> {
        if len > self.outlet.port.max_len {
            return None;
        }
        if !self.ledger.has_room(len, self.backlog.len()) {
            // An error that ends the descriptor shows again with the caller's own flush.
            self.flush().ok()?;
        }
        self.ledger.lend(len, &mut self.backlog)
    }

    fn flush(&mut self) -> io::Result<Sent> {
        let mut sent = Sent::default();
        let end = self.send_queued(&mut sent);
        sent.before(end)
    }

    fn queued(&self) -> usize {
        self.ledger.waiting().len()
    }

    fn wakeup(&self) -> Wakeup<'_> {
        if self.outlet.starved {
            // The descriptor may be writable all the while.
            return Wakeup { descriptor: None, after: Some(NO_MEMORY_PAUSE) };
        }
        Wakeup { descriptor: Some(self.outlet.port.fd.as_fd()), after: None }
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        // A frame of a list that has begun counts as sent, unless it leaves in pieces.
        let counted = usize::from(self.ledger.told && self.ledger.cut.is_none());
        self.outlet.port.stats.tx.closed.add((self.queued() - counted) as u64);
    }
}
