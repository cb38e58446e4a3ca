//! Sending frames on a stream: lists gathered from the caller's buffers, and frames written in
//! place.
//!
//! # Theory of operation
//!
//! A frame leaves behind its lead: the length prefix and the vnet header, if there is one. A list
//! goes out in one call, lead and parts of one frame behind those of the other. The kernel may take
//! any number of bytes of it. A frame of which it took some has begun and must be finished before
//! anything else leaves, so its rest is copied to the backlog; the frames behind it stay the
//! caller's.
//!
//! The backlog is the stream itself, as far as it was not taken: the rest of a frame that a list
//! began, then the slots that were committed. One call sends all of it. When everything has left,
//! it starts over.
//!
//! ```text
//! backlog: | rest of a frame | lead frame | lead frame | lead (lent slot) |    free    |
//!               ^ head                                   ^ top
//! ```

use std::io;
use std::iter;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::batch::{SlotOwner, TxFrame, TxSlot};
use crate::io::framed::FramePrefix;
use crate::io::transmit::is_super_frame;
use crate::io::transmit::way::{MAX_IP_LEN, header_for, header_of};
use crate::io::{FRAME_ROOM, Port};
use crate::offload::vnet::{TxOffload, VnetHeader};
use crate::queue::{Sent, Transmit, Wakeup};
use crate::stats::Counter;
use crate::sys::message;
use crate::sys::outgoing::Outgoing;

/// Frames in one call.
const LIST: usize = 64;

/// Parts in one call, leads included; the kernel takes 1024 (UIO_MAXIOV).
const PARTS: usize = 1024;

/// Frames in the backlog, if it holds so many.
const SLOTS: usize = 256;

/// Two of the longest frames and room for what goes with them.
const BACKLOG: usize = 2 * FRAME_ROOM + 24 * 1024;

/// A length prefix, a vnet header and an Ethernet header, each the longest.
const LEAD: usize = FramePrefix::LONGEST + VnetHeader::LEN_MRG + 14;

/// The kernel gives no edge when it has memory again, so the caller tries again after that long.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(1);

/// Sends frames on a stream.
pub(crate) struct StreamSender {
    outgoing: Outgoing,
    leads: Box<[[u8; LEAD]]>,
    backlog: Box<[u8]>,
    ledger: Ledger,
}

/// Which parts of the backlog hold what.
struct Ledger {
    way: Way,
    /// The first byte that has not left.
    head: usize,
    /// Where the free part starts.
    top: usize,
    /// Where the rest of a frame ends that a list began; 0 without one.
    begun: usize,
    slots: Vec<Slot>,
    /// Slots whose leads are written.
    sealed: usize,
    /// Slots that have left.
    left: usize,
    /// Slots that were refused and counted, of which no flush has told yet.
    refused: usize,
}

/// A committed frame in the backlog.
#[derive(Clone, Copy)]
struct Slot {
    /// Where its lead starts.
    start: usize,
    /// Where it ends.
    end: usize,
    offload: TxOffload,
    /// Whether its lead, once it is written, leaves it to be cut.
    is_super_frame: bool,
}

/// The descriptor, and how a frame looks on it.
struct Way {
    port: Port,
    prefix: FramePrefix,
    /// Bytes of prefix and vnet header before each frame.
    lead: usize,
    /// The last call found no memory.
    starved: bool,
}

impl StreamSender {
    pub(crate) fn new(port: Port, prefix: FramePrefix) -> Self {
        let lead = prefix.len() + port.vnet_header;
        let ledger = Ledger {
            way: Way { port, prefix, lead, starved: false },
            head: 0,
            top: 0,
            begun: 0,
            slots: Vec::with_capacity(SLOTS),
            sealed: 0,
            left: 0,
            refused: 0,
        };
        Self {
            outgoing: Outgoing::with_capacity(LIST),
            leads: vec![[0; LEAD]; LIST].into(),
            backlog: vec![0; BACKLOG].into(),
            ledger,
        }
    }

    /// How many of the frames go out in one call; none where the first has too many parts. They end
    /// before one that is refused.
    fn run(&self, frames: &[TxFrame<'_>]) -> usize {
        let mut parts = 0;
        let together = frames.iter().take(LIST).take_while(|frame| {
            parts += 1 + frame.parts().len();
            parts <= PARTS && self.ledger.way.refusal(frame.len(), frame.offload()).is_none()
        });
        together.count()
    }

    /// Writes what stands before a frame of a list; returns how long that is.
    fn write_lead(&mut self, index: usize, frame: &TxFrame<'_>) -> usize {
        let (lead, out) = (self.ledger.way.lead, &mut self.leads[index]);
        self.ledger.way.write_lead(frame.len(), header_of(frame), &mut out[..lead]);
        let header = frame.link_header().map_or(&[][..], |header| header);
        out[lead..lead + header.len()].copy_from_slice(header);
        lead + header.len()
    }

    /// Sends a list in one call; returns how many of its frames have begun, of which the last may
    /// have its rest in the backlog. None: the descriptor is full.
    fn send_run(&mut self, frames: &[TxFrame<'_>]) -> io::Result<usize> {
        let mut lens = [0; LIST];
        for (index, (frame, len)) in frames.iter().zip(&mut lens).enumerate() {
            *len = self.write_lead(index, frame);
        }
        let mut list = self.outgoing.begin();
        for ((frame, lead), len) in frames.iter().zip(&self.leads).zip(lens) {
            list.part(&lead[..len]);
            frame.parts().iter().for_each(|part| list.part(part));
        }
        list.end_message();
        let mut bytes = self.ledger.way.call(|port| list.send_some(port.fd(), 0))?;
        for (index, frame) in frames.iter().enumerate() {
            let whole = self.ledger.way.lead + frame.len();
            if bytes < whole {
                if bytes > 0 {
                    self.begin(index, frame, bytes);
                }
                return Ok(index + usize::from(bytes > 0));
            }
            bytes -= whole;
            self.count_sent(index, frame);
        }
        Ok(frames.len())
    }

    /// Sends a list behind what waits, until all has left or the descriptor is full.
    fn send_list(&mut self, frames: &[TxFrame<'_>], sent: &mut Sent) -> io::Result<()> {
        loop {
            self.flush()?;
            let rest = &frames[sent.taken..];
            let Some(first) = rest.first().filter(|_| self.queued() == 0) else { return Ok(()) };
            if let Some(reason) = self.ledger.way.refusal(first.len(), first.offload()) {
                reason.add(1);
                sent.taken += 1;
                continue;
            }
            let begun = match self.run(rest) {
                0 => {
                    self.begin(0, first, 0);
                    1
                }
                run => self.send_run(&rest[..run])?,
            };
            if begun == 0 {
                return Ok(());
            }
            sent.taken += begun;
            sent.sent += begun;
        }
    }

    /// Puts a frame without its first `skip` bytes, which have left, into the empty backlog. It
    /// leaves whole or the stream ends, so it counts as sent now.
    fn begin(&mut self, index: usize, frame: &TxFrame<'_>, mut skip: usize) {
        let len = self.write_lead(index, frame);
        let parts = frame.parts().iter().map(|part| &**part);
        let mut at = 0;
        for part in iter::once(&self.leads[index][..len]).chain(parts) {
            let (_, rest) = part.split_at(skip.min(part.len()));
            skip -= part.len() - rest.len();
            self.backlog[at..at + rest.len()].copy_from_slice(rest);
            at += rest.len();
        }
        self.ledger.begun = at;
        self.ledger.top = at;
        self.count_sent(index, frame);
    }

    /// Counts a frame of a list, whose lead was written.
    fn count_sent(&self, index: usize, frame: &TxFrame<'_>) {
        let Way { port, prefix, lead, .. } = &self.ledger.way;
        let vnet = &self.leads[index][prefix.len()..*lead];
        port.count_sent(frame.len(), is_super_frame(vnet));
    }

    /// Whether a frame of that length may be written in place.
    fn fits(&self, len: usize) -> bool {
        let free = self.backlog.len() - self.ledger.top;
        self.ledger.slots.len() < SLOTS && self.ledger.way.lead + len <= free
    }
}

impl Transmit for StreamSender {
    fn send(&mut self, frames: &[TxFrame<'_>]) -> io::Result<Sent> {
        let mut sent = Sent::default();
        let end = self.send_list(frames, &mut sent);
        sent.before(end)
    }

    fn slot(&mut self, len: usize) -> Option<TxSlot<'_>> {
        if len > self.ledger.way.port.max_len {
            return None;
        }
        if !self.fits(len) {
            // An error that ends the descriptor shows again with the caller's own flush.
            self.flush().ok()?;
            if !self.fits(len) {
                return None;
            }
        }
        let start = self.ledger.top + self.ledger.way.lead;
        Some(TxSlot::new(&mut self.backlog[start..start + len], &mut self.ledger))
    }

    fn flush(&mut self) -> io::Result<Sent> {
        let Self { backlog, ledger, .. } = self;
        ledger.seal(backlog);
        let mut sent = Sent::default();
        let mut end = Ok(());
        while ledger.head < ledger.top {
            let waiting = &backlog[ledger.head..ledger.top];
            match ledger.way.call(|port| message::send(port.fd(), waiting)) {
                Ok(0) => break,
                Ok(bytes) => sent.sent += ledger.advance(bytes),
                Err(error) => {
                    end = Err(error);
                    break;
                }
            }
        }
        sent.taken = sent.sent + std::mem::take(&mut ledger.refused);
        sent.before(end)
    }

    fn queued(&self) -> usize {
        let Ledger { slots, left, head, begun, .. } = &self.ledger;
        slots.len() - left + usize::from(head < begun)
    }

    fn wakeup(&self) -> Wakeup<'_> {
        if self.ledger.way.starved {
            // The descriptor may be writable all the while.
            return Wakeup { descriptor: None, after: Some(NO_MEMORY_PAUSE) };
        }
        Wakeup { descriptor: Some(self.ledger.way.port.fd.as_fd()), after: None }
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        // The rest of a frame that a list began is of one that counts as sent.
        let Ledger { way, slots, left, .. } = &self.ledger;
        way.port.stats.tx.closed.add((slots.len() - left) as u64);
    }
}

impl Ledger {
    /// Writes the leads of the slots that were committed since the last time.
    fn seal(&mut self, backlog: &mut [u8]) {
        let lead = self.way.lead;
        for slot in &mut self.slots[self.sealed..] {
            let (out, frame) = backlog[slot.start..slot.end].split_at_mut(lead);
            let header = header_for(frame.len(), slot.offload, |at| frame.get(at).copied());
            self.way.write_lead(frame.len(), header, out);
            slot.is_super_frame = header.is_super_frame();
        }
        self.sealed = self.slots.len();
    }

    /// That many bytes have left; returns how many slots went with them.
    fn advance(&mut self, bytes: usize) -> usize {
        self.head += bytes;
        let before = self.left;
        while let Some(slot) = self.slots.get(self.left).filter(|slot| slot.end <= self.head) {
            let len = slot.end - slot.start - self.way.lead;
            self.way.port.count_sent(len, slot.is_super_frame);
            self.left += 1;
        }
        let left = self.left - before;
        if self.head == self.top {
            self.slots.clear();
            (self.head, self.top, self.begun) = (0, 0, 0);
            (self.sealed, self.left) = (0, 0);
        }
        left
    }
}

impl SlotOwner for Ledger {
    fn commit(&mut self, len: usize, offload: TxOffload) {
        // Refused here, where it takes no place: the backlog has no gaps.
        if let Some(reason) = self.way.refusal(len, offload) {
            reason.add(1);
            self.refused += 1;
            return;
        }
        let start = self.top;
        self.top += self.way.lead + len;
        self.slots.push(Slot { start, end: self.top, offload, is_super_frame: false });
    }
}

impl Way {
    /// The longest frame that may be sent at all.
    fn longest(&self) -> usize {
        let behind_prefix = self.prefix.limit() - self.port.vnet_header;
        behind_prefix.min(self.port.link_header.len() + MAX_IP_LEN)
    }

    /// Why a frame cannot be sent: the counter of the reason.
    fn refusal(&self, len: usize, offload: TxOffload) -> Option<&Counter> {
        let counters = &self.port.stats.tx;
        if len > self.longest() {
            return Some(&counters.too_long);
        }
        let needs_header = offload.checksum.is_some() || offload.for_frame_len(len).gso.is_some();
        let invalid = len == 0
            || (needs_header && self.port.vnet_header == 0)
            || offload.checksum.is_some_and(|field| !field.fits(len));
        invalid.then_some(&counters.invalid)
    }

    /// Writes the prefix and the vnet header of a frame of `len` bytes.
    fn write_lead(&self, len: usize, header: VnetHeader, out: &mut [u8]) {
        let (prefix, vnet) = out.split_at_mut(self.prefix.len());
        self.prefix.write(vnet.len() + len, prefix);
        header.write(vnet);
    }

    /// Makes a call that sends bytes; returns how many, 0 where the descriptor takes none now.
    /// Every other error ends the stream: what left of it is not known.
    fn call(&mut self, mut send: impl FnMut(&Port) -> io::Result<usize>) -> io::Result<usize> {
        let counters = &self.port.stats.tx;
        loop {
            counters.calls.add(1);
            let result = send(&self.port);
            let errno = result.as_ref().map_or_else(io::Error::raw_os_error, |_| None);
            self.starved = matches!(errno, Some(libc::ENOBUFS | libc::ENOMEM));
            match errno {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                    counters.would_block.add(1);
                    return Ok(0);
                }
                _ => return result,
            }
        }
    }
}
