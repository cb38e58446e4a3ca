//! Sending, on every kind of descriptor that keeps boundaries: lists gathered from the caller's
//! buffers, and frames that were written in place into the queue's own memory.
//!
//! The arena is small on purpose: frames written into it are still in the cache when the kernel
//! copies them out. Slots are handed out from its start to its end; when all have left, it starts
//! over.
//!
//! ```text
//! arena:  | vnet frame | vnet frame | vnet (lent slot) |      free      |
//!           ^ next                    ^ top
//! ```
//!
//! Work that the other side cannot do is done on frames in the arena: a gathered frame is copied
//! there first. So a super-frame that left in part waits there for the rest, whoever sent it.
//!
//! What is not here: streams (`framed/send`, of the same parts), lists from the caller's buffers
//! (`transmit/gathered`), which way a frame takes (`transmit/way`), what stands before it
//! (`transmit/lead`), what waits in the arena (`transmit/ledger`), cutting (`transmit/cut`), what
//! the kernel's errors mean (`transmit/verdict`).

pub(super) mod cut;
mod gathered;
pub(super) mod lead;
pub(super) mod ledger;
mod verdict;
pub(super) mod way;

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use self::cut::{Cutter, Progress};
use self::ledger::{Cut, Ledger};
use self::verdict::{Gone, Verdict, is_refusal};
use self::way::Way;
use crate::batch::{TxFrame, TxSlot};
use crate::io::{Channel, Port};
use crate::offload::checksum;
use crate::offload::vnet::{TxOffload, VnetHeader};
use crate::queue::{Sent, Transmit, Wakeup};
use crate::sys::message;
use crate::sys::outgoing::Outgoing;

/// Messages in one sendmmsg.
const LIST: usize = 64;

/// Two of the longest super-frames and room for what goes with them.
const ARENA: usize = 160 * 1024;

/// A vnet header (at most 12 bytes) and an Ethernet header.
const SCRATCH: usize = 12 + 14;

/// The kernel gives no edge when it has buffers again, so flush tries again after that long,
const NO_BUFFERS_PAUSE: Duration = Duration::from_millis(1);

/// and drops the frame after that many times in a row.
const NO_BUFFERS_TRIES: u32 = 100;

/// Sends frames on one descriptor.
pub(crate) struct Sender {
    port: Port,
    outgoing: Outgoing,
    scratch: Box<[[u8; SCRATCH]]>,
    arena: Box<[u8]>,
    ledger: Ledger,
    cutter: Cutter,
    /// How often in a row the frame at the head found no buffers.
    starved: u32,
}

impl Sender {
    pub(crate) fn new(port: Port) -> Self {
        Self {
            outgoing: port.outgoing(LIST),
            scratch: vec![[0; SCRATCH]; LIST].into(),
            arena: vec![0; ARENA].into(),
            ledger: Ledger::new(LIST, port.vnet_header),
            cutter: Cutter::default(),
            port,
            starved: 0,
        }
    }

    /// Sends the slots at the head that leave as they are, or finds how the first one does.
    fn send_slots(&mut self, sent: &mut Sent) -> io::Result<()> {
        let run = self.prepare_slots();
        let Self { port, outgoing, arena, ledger, starved, .. } = self;
        let vnet = port.vnet_header;
        let waiting = &ledger.waiting()[..run];
        let gone = match waiting {
            [] => return self.find_way(sent),
            [only] if port.channel == Channel::Device => {
                let message = &arena[only.range(vnet)];
                port.stats.tx.calls.add(1);
                let taken = message::write(port.fd(), message)?;
                port.written(taken, message.len())
            }
            [only] if port.cooked.is_none() => {
                port.stats.tx.calls.add(1);
                message::send(port.fd(), &arena[only.range(vnet)])?;
                Gone::Whole(1)
            }
            slots => {
                let mut list = outgoing.begin();
                for slot in slots {
                    list.part(&arena[slot.range(vnet)]);
                    list.end_message();
                }
                port.give(&mut list, 0)?
            }
        };
        if let Gone::Whole(count) = gone {
            for slot in &waiting[..count] {
                port.count_sent(slot.len, is_super_frame(&arena[slot.range(vnet)][..vnet]));
            }
            sent.sent += count;
        }
        *starved = 0;
        sent.taken += gone.count();
        ledger.advance(gone.count());
        Ok(())
    }

    /// Makes the slots at the head ready to leave as they are, as many as one call takes; returns
    /// how many. None: the first one leaves in another way.
    fn prepare_slots(&mut self) -> usize {
        let Self { port, arena, ledger, .. } = self;
        let most = if port.channel == Channel::Device { 1 } else { LIST };
        let mut run = 0;
        for slot in ledger.waiting_mut().iter_mut().take(most) {
            let (vnet, frame) = arena[slot.range(port.vnet_header)].split_at_mut(port.vnet_header);
            match port.way(frame.len(), slot.offload, |at| frame.get(at).copied()) {
                Way::Whole(header) => header.write(vnet),
                Way::Complete(field) => {
                    // It cannot fail: the field was found to fit.
                    let _ = checksum::complete(frame, field);
                    slot.offload = TxOffload::default();
                }
                Way::Cut(_) | Way::Refused(_) => break,
            }
            run += 1;
        }
        run
    }

    /// Decides about the slot at the head, which does not leave as it is.
    fn find_way(&mut self, sent: &mut Sent) -> io::Result<()> {
        let Self { port, arena, ledger, starved, .. } = self;
        let Some(slot) = ledger.waiting().first() else { return Ok(()) };
        let frame = &arena[slot.range(port.vnet_header)][port.vnet_header..];
        match port.way(frame.len(), slot.offload, |at| frame.get(at).copied()) {
            Way::Cut(run) => ledger.cut = Some(Cut::into_runs(run)),
            Way::Refused(counter) => {
                counter.add(1);
                *starved = 0;
                sent.taken += 1;
                ledger.advance(1);
            }
            Way::Complete(_) | Way::Whole(_) => {}
        }
        Ok(())
    }

    /// Sends pieces of the slot at the head.
    fn send_pieces(&mut self, mut cut: Cut, sent: &mut Sent) -> io::Result<()> {
        let Self { port, outgoing, arena, ledger, cutter, starved, .. } = self;
        let Some(slot) = ledger.waiting().first() else { return Ok(()) };
        let frame = &arena[slot.range(port.vnet_header)][port.vnet_header..];
        let result = match slot.offload.gso {
            Some(gso) => cutter.send(port, outgoing, (frame, gso), &mut cut),
            None => Ok(Progress::Malformed),
        };
        if ledger.cut.replace(cut).is_some_and(|before| before.done < cut.done) {
            *starved = 0;
        }
        match result? {
            Progress::More => return Ok(()),
            Progress::Malformed => {
                port.stats.tx.invalid.add(1);
                cut.lossy = true;
            }
            Progress::Done => {}
        }
        if !ledger.told {
            sent.taken += 1;
            sent.sent += usize::from(!cut.lossy);
        }
        *starved = 0;
        ledger.advance(1);
        Ok(())
    }

    /// Drops the frame at the head, or the piece of it that is next; it was counted.
    fn drop_next(&mut self, sent: &mut Sent) {
        self.starved = 0;
        if let Some(cut) = &mut self.ledger.cut {
            cut.done += cut.run;
            cut.lossy = true;
            return;
        }
        sent.taken += 1;
        self.ledger.advance(1);
    }

    /// Cuts the frame at the head into single segments from where it is, if it is a super-frame
    /// that the kernel was given as one; whether it is.
    fn cut_refused(&mut self) -> bool {
        if let Some(cut) = &mut self.ledger.cut {
            return std::mem::replace(&mut cut.run, 1) > 1;
        }
        let vnet = self.port.vnet_header;
        let head = self.ledger.waiting().first();
        let refused =
            head.is_some_and(|slot| is_super_frame(&self.arena[slot.range(vnet)][..vnet]));
        if refused {
            self.ledger.cut = Some(Cut::into_runs(1));
        }
        refused
    }

    /// Sends what waits in the arena, until all has left or the descriptor is full.
    fn send_queued(&mut self, sent: &mut Sent) -> io::Result<()> {
        while self.queued() > 0 {
            let result = match self.ledger.cut {
                Some(cut) => self.send_pieces(cut, sent),
                None => self.send_slots(sent),
            };
            let Err(error) = result else { continue };
            if is_refusal(&error) && self.cut_refused() {
                continue;
            }
            match self.port.verdict(error) {
                Verdict::Again => {}
                Verdict::Drop => self.drop_next(sent),
                Verdict::NoBuffers if self.starved >= NO_BUFFERS_TRIES => {
                    self.port.stats.tx.no_buffers.add(1);
                    self.drop_next(sent);
                }
                Verdict::NoBuffers => {
                    self.starved += 1;
                    self.port.stats.tx.would_block.add(1);
                    break;
                }
                Verdict::Full => {
                    self.starved = 0;
                    break;
                }
                Verdict::Fatal(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Transmit for Sender {
    fn send(&mut self, frames: &[TxFrame<'_>]) -> io::Result<Sent> {
        let mut sent = Sent::default();
        if self.queued() > 0 {
            self.flush()?;
            if self.queued() > 0 {
                return Ok(sent);
            }
        }
        let end = self.send_list(frames, &mut sent);
        sent.before(end)
    }

    fn slot(&mut self, len: usize) -> Option<TxSlot<'_>> {
        if len > self.port.max_len {
            return None;
        }
        if !self.ledger.has_room(len, self.arena.len()) {
            // An error that ends the descriptor shows again with the caller's own flush.
            self.flush().ok()?;
        }
        self.ledger.lend(len, &mut self.arena)
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
        if self.starved > 0 {
            // The descriptor is writable all the while.
            return Wakeup { descriptor: None, after: Some(NO_BUFFERS_PAUSE) };
        }
        Wakeup { descriptor: Some(self.port.fd.as_fd()), after: None }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.port.stats.tx.closed.add(self.queued() as u64);
    }
}

/// Whether the vnet header that was written for a frame leaves it to be cut.
pub(super) fn is_super_frame(vnet: &[u8]) -> bool {
    VnetHeader::parse(vnet).is_some_and(|header| header.is_super_frame())
}

#[cfg(test)]
mod tests;
