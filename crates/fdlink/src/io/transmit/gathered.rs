//! Lists of frames gathered from the caller's buffers: sent from where they are, or, where there is
//! work to do on one, by way of the arena.

use std::io;

use super::ledger::Cut;
use super::verdict::{Gone, Verdict, is_refusal};
use super::way::Way;
use super::{Sender, is_super_frame};
use crate::batch::TxFrame;
use crate::queue::{Sent, Transmit};

/// Why a run of gathered frames ended.
enum Stop {
    /// The list is at its end, or as long as one call takes.
    Done,
    /// The descriptor is full.
    Full,
    /// The next frame is a super-frame that the kernel has refused.
    KernelRefused,
    /// The next frame does not leave as it is.
    NotWhole,
}

impl Sender {
    /// Sends a list, the arena being empty, until all has left or the descriptor is full.
    pub(super) fn send_list(&mut self, frames: &[TxFrame<'_>], sent: &mut Sent) -> io::Result<()> {
        while sent.taken < frames.len() {
            let run = match self.send_whole(&frames[sent.taken..], sent)? {
                Stop::Done => continue,
                Stop::Full => break,
                Stop::KernelRefused => Some(1),
                Stop::NotWhole => None,
            };
            if self.send_worked(&frames[sent.taken..], run, sent)? {
                break;
            }
        }
        Ok(())
    }

    /// Sends the frames at the front of the list that leave as they are, from where they are.
    fn send_whole(&mut self, frames: &[TxFrame<'_>], sent: &mut Sent) -> io::Result<Stop> {
        let (run, end) = self.write_heads(frames);
        let Self { port, outgoing, scratch, starved, .. } = self;
        let vnet = port.vnet_header;
        let frames = &frames[..run];
        let mut list = outgoing.begin();
        for (frame, scratch) in frames.iter().zip(scratch.iter()) {
            list.part(&scratch[..vnet + frame.link_header().map_or(0, |header| header.len())]);
            frame.parts().iter().for_each(|part| list.part(part));
            list.end_message();
        }
        let mut at = 0;
        while at < run {
            let dropped = match port.give(&mut list, at) {
                Ok(Gone::Whole(count)) => {
                    for (frame, scratch) in frames.iter().zip(scratch.iter()).skip(at).take(count) {
                        port.count_sent(frame.len(), is_super_frame(&scratch[..vnet]));
                    }
                    *starved = 0;
                    sent.sent += count;
                    sent.taken += count;
                    at += count;
                    continue;
                }
                Ok(Gone::Short) => true,
                Err(error) if is_refusal(&error) && is_super_frame(&scratch[at][..vnet]) => {
                    return Ok(Stop::KernelRefused);
                }
                Err(error) => match port.verdict(error) {
                    Verdict::Again => false,
                    Verdict::Drop => true,
                    Verdict::NoBuffers => {
                        port.stats.tx.no_buffers.add(1);
                        true
                    }
                    Verdict::Full => {
                        *starved = 0;
                        return Ok(Stop::Full);
                    }
                    Verdict::Fatal(error) => return Err(error),
                },
            };
            at += usize::from(dropped);
            sent.taken += usize::from(dropped);
        }
        Ok(end)
    }

    /// Writes the vnet and link headers of the frames at the front of the list that leave as they
    /// are; returns how many these are, and why not more.
    fn write_heads(&mut self, frames: &[TxFrame<'_>]) -> (usize, Stop) {
        let vnet = self.port.vnet_header;
        let mut run = 0;
        for (frame, scratch) in frames.iter().zip(self.scratch.iter_mut()) {
            let Way::Whole(header) = self.port.way_of(frame) else {
                return (run, Stop::NotWhole);
            };
            header.write(&mut scratch[..vnet]);
            if let Some(header) = frame.link_header() {
                scratch[vnet..vnet + header.len()].copy_from_slice(header);
            }
            run += 1;
        }
        (run, Stop::Done)
    }

    /// Sends the first frame of the list, and those behind it that do not leave as they are
    /// either, by way of the arena, which is empty. `run`: the first is cut into messages of so
    /// many segments, whatever its way would be. Returns whether the descriptor is full.
    fn send_worked(
        &mut self,
        frames: &[TxFrame<'_>],
        run: Option<usize>,
        sent: &mut Sent,
    ) -> io::Result<bool> {
        for (index, frame) in frames.iter().enumerate() {
            match self.port.way_of(frame) {
                // On neither there is work to do, and what is too long has no room.
                Way::Whole(_) | Way::Refused(_) if index > 0 => break,
                Way::Refused(counter) => {
                    counter.add(1);
                    sent.taken += 1;
                    return Ok(false);
                }
                _ => {}
            }
            if !self.ledger.has_room(frame.len(), self.arena.len()) {
                break;
            }
            self.ledger.copy(frame, &mut self.arena);
        }
        self.ledger.cut = run.map(Cut::into_runs);
        let end = self.send_queued(sent);
        if self.queued() == 0 {
            return Ok(false);
        }
        // A super-frame that left in part is ours now; what has not begun to leave is the caller's.
        let begun = self.ledger.cut.filter(|cut| cut.done > 0);
        let kept = usize::from(begun.is_some());
        if let Some(cut) = begun {
            self.ledger.told = true;
            sent.taken += 1;
            sent.sent += usize::from(!cut.lossy);
        }
        self.ledger.keep(kept);
        end.map(|()| true)
    }
}
