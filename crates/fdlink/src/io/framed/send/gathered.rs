//! Lists of frames gathered from the caller's buffers: sent from where they are, or, where there is
//! work to do on one, by way of the backlog. Both ways, a frame that has begun is not the caller's
//! any more, and the frames behind it stay the caller's.

use std::io;

use super::StreamSender;
use crate::batch::TxFrame;
use crate::io::transmit::is_super_frame;
use crate::io::transmit::way::Way;
use crate::queue::{Sent, Transmit};

/// Parts in one call, leads included; the kernel takes 1024 (UIO_MAXIOV).
const PARTS: usize = 1024;

impl StreamSender {
    /// Sends a list, the backlog being empty, until all has left or the descriptor is full.
    pub(super) fn send_list(&mut self, frames: &[TxFrame<'_>], sent: &mut Sent) -> io::Result<()> {
        let mut goes_on = true;
        while goes_on && sent.taken < frames.len() {
            let rest = &frames[sent.taken..];
            goes_on = match self.write_heads(rest) {
                0 => self.send_worked(rest, sent)?,
                run => self.send_whole(&rest[..run], sent)?,
            };
        }
        Ok(())
    }

    /// Writes the leads and link headers of the frames at the front of the list that leave as they
    /// are and in one call; returns how many these are. None: there is work to do on the first, or
    /// it has too many parts.
    fn write_heads(&mut self, frames: &[TxFrame<'_>]) -> usize {
        let Self { outlet, scratch, .. } = self;
        let lead = outlet.lead;
        let (mut run, mut parts) = (0, 0);
        for (frame, out) in frames.iter().zip(scratch.iter_mut()) {
            parts += 1 + frame.parts().len();
            let Way::Whole(header) = outlet.way_of(frame) else { break };
            if parts > PARTS {
                break;
            }
            lead.write(frame.len(), header, &mut out[..lead.len()]);
            if let Some(header) = frame.link_header() {
                out[lead.len()..lead.len() + header.len()].copy_from_slice(header);
            }
            run += 1;
        }
        run
    }

    /// Sends frames from where they are, their heads written, in one call; whether the descriptor
    /// may take more. Of the last that it took, the rest may be in the backlog.
    fn send_whole(&mut self, frames: &[TxFrame<'_>], sent: &mut Sent) -> io::Result<bool> {
        let Self { outlet, outgoing, scratch, .. } = self;
        let lead = outlet.lead;
        let mut list = outgoing.begin();
        for (frame, scratch) in frames.iter().zip(scratch.iter()) {
            list.part(
                &scratch[..lead.len() + frame.link_header().map_or(0, |header| header.len())],
            );
            frame.parts().iter().for_each(|part| list.part(part));
        }
        list.end_message();
        let taken = outlet.call(|port| list.send_some(port.fd(), 0))?;
        let mut bytes = taken;
        for (frame, scratch) in frames.iter().zip(scratch.iter()) {
            if bytes == 0 {
                break;
            }
            // It leaves whole or the stream ends.
            outlet.port.count_sent(frame.len(), is_super_frame(lead.vnet(scratch)));
            sent.taken += 1;
            sent.sent += 1;
            let len = lead.len() + frame.len();
            if bytes < len {
                self.ledger.copy(frame, &mut self.backlog);
                self.ledger.told = true;
                self.begun = bytes;
                self.send_queued(sent)?;
                return Ok(self.queued() == 0);
            }
            bytes -= len;
        }
        Ok(taken > 0)
    }

    /// Sends the first frame of the list, and those behind it on which there is work to do, by way
    /// of the backlog, which is empty; whether the descriptor may take more.
    fn send_worked(&mut self, frames: &[TxFrame<'_>], sent: &mut Sent) -> io::Result<bool> {
        for (index, frame) in frames.iter().enumerate() {
            match self.outlet.way_of(frame) {
                // On neither there is work to do, and what is too long has no room.
                Way::Whole(_) | Way::Refused(_) if index > 0 => break,
                Way::Refused(counter) => {
                    counter.add(1);
                    sent.taken += 1;
                    return Ok(true);
                }
                _ => {}
            }
            if !self.ledger.has_room(frame.len(), self.backlog.len()) {
                break;
            }
            self.ledger.copy(frame, &mut self.backlog);
        }
        let end = self.send_queued(sent);
        if self.queued() == 0 {
            return end.map(|()| true);
        }
        // What has begun is ours now; what has not is the caller's.
        let cut = self.ledger.cut;
        let begun = self.begun > 0 || cut.is_some_and(|cut| cut.done > 0);
        if begun {
            self.count_begun(sent);
        }
        self.ledger.keep(usize::from(begun));
        self.ready = self.ready.min(usize::from(begun));
        end.map(|()| false)
    }

    /// Tells now that the frame at the head, which has begun, is sent. Pieces are counted by
    /// themselves.
    fn count_begun(&mut self, sent: &mut Sent) {
        let Self { outlet, backlog, ledger, .. } = self;
        if let (None, Some(slot)) = (ledger.cut, ledger.waiting().first()) {
            let vnet = outlet.lead.vnet(&backlog[slot.range(outlet.lead.len())]);
            outlet.port.count_sent(slot.len, is_super_frame(vnet));
        }
        ledger.told = true;
        sent.taken += 1;
        sent.sent += 1;
    }
}
