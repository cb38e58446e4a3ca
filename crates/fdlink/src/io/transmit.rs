//! Sending, on every kind of descriptor: lists gathered from the caller's buffers, and frames that
//! were written in place into the queue's own memory.
//!
//! The arena is small on purpose: frames written into it are still in the cache when the kernel
//! copies them out. Slots are handed out from its start to its end; when all have left, it starts
//! over.
//!
//! ```text
//! arena:  | vnet frame | vnet frame | vnet (lent slot) |      free      |
//!           ^ next                    ^ top
//! ```

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::batch::{SlotOwner, TxFrame, TxSlot};
use crate::io::{Channel, Port};
use crate::offload::vnet::{TxOffload, VnetHeader};
use crate::queue::{Sent, Transmit, Wakeup};
use crate::stats::Counter;
use crate::sys::message::{self, Outgoing};

/// Messages in one sendmmsg.
const LIST: usize = 64;

/// Two of the longest super-frames and room for what goes with them.
const ARENA: usize = 160 * 1024;

/// A vnet header (at most 12 bytes) and an Ethernet header.
const SCRATCH: usize = 12 + 14;

/// The longest IP packet. AF_PACKET takes longer super-frames and lets the length wrap.
const MAX_IP_LEN: usize = 65535;

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
    /// How often in a row the frame at the head found no buffers.
    starved: u32,
}

/// Which parts of the arena hold what.
#[derive(Debug)]
struct Ledger {
    slots: Vec<Slot>,
    /// The first slot that has not left.
    next: usize,
    /// Where the free part starts.
    top: usize,
    vnet_header: usize,
}

/// A committed frame in the arena, with its vnet header in front.
#[derive(Clone, Copy, Debug)]
struct Slot {
    start: usize,
    /// The vnet header not included.
    len: usize,
    offload: TxOffload,
}

/// What is to be done after a send that failed.
enum Verdict {
    Again,
    /// It was counted.
    Drop,
    Fatal(io::Error),
    Full,
    NoBuffers,
}

impl Sender {
    pub(crate) fn new(port: Port) -> Self {
        let ledger = Ledger {
            slots: Vec::with_capacity(LIST),
            next: 0,
            top: 0,
            vnet_header: port.vnet_header,
        };
        Self {
            port,
            outgoing: Outgoing::with_capacity(LIST),
            scratch: vec![[0; SCRATCH]; LIST].into(),
            arena: vec![0; ARENA].into(),
            ledger,
            starved: 0,
        }
    }

    /// Sends frames that all passed [`acceptable`](Self::acceptable); at most [`LIST`].
    fn send_run(&mut self, frames: &[TxFrame<'_>]) -> io::Result<Progress> {
        let vnet = self.port.vnet_header;
        for (frame, scratch) in frames.iter().zip(&mut self.scratch) {
            write_vnet(frame.offload(), frame.len(), &mut scratch[..vnet]);
            if let Some(header) = frame.link_header() {
                scratch[vnet..vnet + header.len()].copy_from_slice(header);
            }
        }
        let mut list = self.outgoing.begin();
        for (frame, scratch) in frames.iter().zip(&self.scratch) {
            list.part(&scratch[..vnet + frame.link_header().map_or(0, |header| header.len())]);
            frame.parts().iter().for_each(|part| list.part(part));
            list.end_message();
        }
        let mut progress = Progress::default();
        while progress.sent.taken < frames.len() {
            let at = progress.sent.taken;
            self.port.stats.tx.calls.add(1);
            let result = match self.port.channel {
                Channel::Device => list
                    .write(self.port.fd(), at)
                    .map(|len| if len < list.bytes(at) { Gone::Short } else { Gone::Whole(1) }),
                _ => list.send(self.port.fd(), at).map(Gone::Whole),
            };
            match result {
                Ok(Gone::Whole(count)) => {
                    for frame in &frames[at..at + count] {
                        self.port.count_sent(frame.len(), frame.offload());
                    }
                    progress.sent.taken += count;
                    progress.sent.sent += count;
                }
                Ok(Gone::Short) => progress.drop_one(&self.port.stats.tx.short_write),
                Err(error) => match self.port.verdict(error) {
                    Verdict::Again => {}
                    Verdict::Drop => progress.sent.taken += 1,
                    Verdict::NoBuffers => progress.drop_one(&self.port.stats.tx.no_buffers),
                    Verdict::Full => {
                        progress.full = true;
                        return Ok(progress);
                    }
                    Verdict::Fatal(error) => return Err(error),
                },
            }
        }
        Ok(progress)
    }

    /// How many of the frames that wait may be sent together. None: the first was refused and
    /// counted.
    fn run_of_slots(&self) -> usize {
        let mut waiting = self.ledger.slots[self.ledger.next..].iter();
        if !waiting.next().is_some_and(|first| self.acceptable(first.len, first.offload)) {
            return 0;
        }
        1 + waiting.take_while(|slot| self.port.refusal(slot.len, slot.offload).is_none()).count()
    }

    /// Sends the next `run` frames of the arena; returns how many left, which may be fewer.
    fn send_slots(&mut self, run: usize) -> io::Result<usize> {
        let Self { port, outgoing, arena, ledger, .. } = self;
        let waiting = &ledger.slots[ledger.next..ledger.next + run];
        for slot in waiting {
            let header = &mut arena[slot.start..slot.start + port.vnet_header];
            write_vnet(slot.offload, slot.len, header);
        }
        let bytes = |slot: &Slot| &arena[slot.start..slot.start + port.vnet_header + slot.len];
        port.stats.tx.calls.add(1);
        if port.channel == Channel::Device {
            let message = bytes(&waiting[0]);
            let len = message::write(port.fd(), message)?;
            if len < message.len() {
                port.stats.tx.short_write.add(1);
                return Ok(0);
            }
            return Ok(1);
        }
        if let [only] = waiting {
            return message::send(port.fd(), bytes(only)).map(|_| 1);
        }
        let mut list = outgoing.begin();
        for slot in waiting {
            list.part(bytes(slot));
            list.end_message();
        }
        list.send(port.fd(), 0)
    }

    /// Whether a frame may be given to the kernel; if not, it is counted.
    fn acceptable(&self, len: usize, offload: TxOffload) -> bool {
        let refusal = self.port.refusal(len, offload);
        if let Some(reason) = refusal {
            reason.add(1);
        }
        refusal.is_none()
    }

    /// Whether a frame of that length may be written in place.
    fn fits(&self, len: usize) -> bool {
        let free = self.arena.len() - self.ledger.top;
        self.ledger.slots.len() < LIST && self.port.vnet_header + len <= free
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
        while sent.taken < frames.len() {
            let rest = &frames[sent.taken..];
            let mut refused = false;
            let run = rest.iter().take(LIST).take_while(|frame| {
                let refusal = self.port.refusal(frame.len(), frame.offload());
                refused = refusal.is_some();
                !refused
            });
            let run = run.count();
            let progress = self.send_run(&rest[..run])?;
            sent.taken += progress.sent.taken;
            sent.sent += progress.sent.sent;
            if progress.full {
                break;
            }
            if refused {
                self.acceptable(rest[run].len(), rest[run].offload());
                sent.taken += 1;
            }
        }
        Ok(sent)
    }

    fn slot(&mut self, len: usize) -> Option<TxSlot<'_>> {
        if len > self.port.max_len {
            return None;
        }
        if !self.fits(len) {
            // An error that ends the descriptor shows again with the caller's own flush.
            self.flush().ok()?;
            if !self.fits(len) {
                return None;
            }
        }
        let start = self.ledger.top + self.port.vnet_header;
        Some(TxSlot::new(&mut self.arena[start..start + len], &mut self.ledger))
    }

    fn flush(&mut self) -> io::Result<Sent> {
        let mut sent = Sent::default();
        while self.ledger.next < self.ledger.slots.len() {
            let run = self.run_of_slots();
            if run == 0 {
                self.ledger.next += 1;
                sent.taken += 1;
                continue;
            }
            match self.send_slots(run) {
                Ok(0) => self.ledger.next += 1,
                Ok(count) => {
                    self.starved = 0;
                    for slot in &self.ledger.slots[self.ledger.next..self.ledger.next + count] {
                        self.port.count_sent(slot.len, slot.offload);
                    }
                    self.ledger.next += count;
                    sent.sent += count;
                    sent.taken += count;
                    continue;
                }
                Err(error) => match self.port.verdict(error) {
                    Verdict::Again => continue,
                    Verdict::Drop => self.ledger.next += 1,
                    Verdict::NoBuffers if self.starved >= NO_BUFFERS_TRIES => {
                        self.port.stats.tx.no_buffers.add(1);
                        self.ledger.next += 1;
                    }
                    Verdict::NoBuffers => {
                        self.starved += 1;
                        self.port.stats.tx.would_block.add(1);
                        return Ok(sent);
                    }
                    Verdict::Full => {
                        self.starved = 0;
                        return Ok(sent);
                    }
                    Verdict::Fatal(error) => return Err(error),
                },
            }
            // The frame at the head was dropped and counted.
            self.starved = 0;
            sent.taken += 1;
        }
        self.ledger.start_over();
        Ok(sent)
    }

    fn queued(&self) -> usize {
        self.ledger.slots.len() - self.ledger.next
    }

    fn wakeup(&self) -> Wakeup<'_> {
        if self.starved > 0 {
            // The descriptor is writable all the while.
            return Wakeup { descriptor: None, after: Some(NO_BUFFERS_PAUSE) };
        }
        Wakeup { descriptor: Some(self.port.fd.as_fd()), after: None }
    }
}

impl Ledger {
    fn start_over(&mut self) {
        self.slots.clear();
        self.next = 0;
        self.top = 0;
    }
}

impl SlotOwner for Ledger {
    fn commit(&mut self, len: usize, offload: TxOffload) {
        self.slots.push(Slot { start: self.top, len, offload });
        self.top += self.vnet_header + len;
    }
}

/// What a call took.
enum Gone {
    Whole(usize),
    Short,
}

/// How far a run came.
#[derive(Default)]
struct Progress {
    sent: Sent,
    full: bool,
}

impl Progress {
    fn drop_one(&mut self, reason: &Counter) {
        reason.add(1);
        self.sent.taken += 1;
    }
}

fn write_vnet(offload: TxOffload, frame_len: usize, out: &mut [u8]) {
    if !out.is_empty() {
        // The kernel itself sees to it that its linear part reaches past the checksum, so nobody
        // has to know the headers' length where nothing is segmented.
        VnetHeader::for_tx(offload.for_frame_len(frame_len), 0).write(out);
    }
}

impl Port {
    /// Why a frame cannot be given to the kernel: the counter of the reason.
    fn refusal(&self, len: usize, offload: TxOffload) -> Option<&Counter> {
        if len > self.link_header.len() + MAX_IP_LEN {
            return Some(&self.stats.tx.too_long);
        }
        let needs_header = offload.checksum.is_some() || offload.for_frame_len(len).gso.is_some();
        (len == 0 || (needs_header && self.vnet_header == 0)).then_some(&self.stats.tx.invalid)
    }

    fn count_sent(&self, len: usize, offload: TxOffload) {
        let counters = &self.stats.tx;
        counters.frames.add(1);
        counters.bytes.add(len as u64);
        counters.super_frames.add(u64::from(offload.for_frame_len(len).gso.is_some()));
    }

    /// What an error means for the frame at hand; counts it where that is all.
    fn verdict(&self, error: io::Error) -> Verdict {
        let counters = &self.stats.tx;
        let reason = match error.raw_os_error().unwrap_or(0) {
            libc::EINTR => return Verdict::Again,
            libc::EAGAIN => {
                counters.would_block.add(1);
                return Verdict::Full;
            }
            libc::ENOBUFS | libc::ENOMEM => return Verdict::NoBuffers,
            libc::EMSGSIZE => &counters.too_long,
            libc::EINVAL => &counters.invalid,
            // EIO: a TUN that is down.
            libc::ENETDOWN | libc::EIO => &counters.link_down,
            libc::EPIPE | libc::ECONNREFUSED | libc::ECONNRESET | libc::ENOTCONN
                if self.channel == Channel::Datagram =>
            {
                &counters.peer_gone
            }
            libc::EPIPE
            | libc::ECONNRESET
            | libc::ENOTCONN
            | libc::EBADF
            | libc::EBADFD
            | libc::ENXIO
            | libc::ENODEV
            | libc::ENOTSOCK => return Verdict::Fatal(error),
            _ => &counters.other_errors,
        };
        reason.add(1);
        Verdict::Drop
    }
}
