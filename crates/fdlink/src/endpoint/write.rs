//! How an endpoint sends: lists spread over the descriptors by flow, and what becomes of packets
//! that a descriptor has no room for.
//!
//! A list is grouped first, so that each descriptor is locked and visited once for all that is
//! meant for it; packets of one flow stay in their order, since a flow has one descriptor. The lock
//! is given back before anything is waited for.
//!
//! What is not here: how a frame leaves a descriptor (`io/`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::{LinkHeader, TxFrame, ethernet_header};
use crate::endpoint::{Endpoint, TxPacket};
use crate::offload::flow_hash;
use crate::queue::{Sent, Transmit, Wakeup};
use crate::stats::TxStats;
use crate::sys::poll;

/// What becomes of packets that a descriptor has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WritePolicy {
    /// They are dropped and counted (`not_writable`). Of one that left in part (on a stream, or cut
    /// into segments) the rest leaves with the next packet.
    #[default]
    Drop,
    /// The caller waits for room, so long for a whole list; what has none by then is dropped and
    /// counted.
    Wait(Duration),
}

impl WritePolicy {
    /// When waiting ends that begins now; `None` where there is no waiting.
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Drop => None,
            Self::Wait(bound) => {
                let now = Instant::now();
                // A bound that the clock cannot say is none: decades are as good.
                now.checked_add(bound).or_else(|| now.checked_add(DECADES))
            }
        }
    }
}

/// Longer than anything runs, and what every clock can add.
const DECADES: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Packets looked at together: the most that one sendmmsg takes (UIO_MAXIOV, linux/uio.h).
const WINDOW: usize = 1024;

/// Frames made on the stack before they are sent.
const CHUNK: usize = 32;

/// The mark of a packet that has been dealt with.
const DONE: usize = usize::MAX;

/// One descriptor's way out, shared by everybody who sends.
pub(super) struct Outlet {
    tx: Mutex<Box<dyn Transmit>>,
    /// A duplicate of its descriptor to wait on, so that nobody waits with the lock. Made for
    /// [`WritePolicy::Wait`] only.
    watch: Option<OwnedFd>,
}

impl Outlet {
    pub(super) fn new(tx: Box<dyn Transmit>) -> Self {
        Self { tx: Mutex::new(tx), watch: None }
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Transmit>> {
        self.tx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares for a policy.
    pub(super) fn prepare(&mut self, policy: WritePolicy) -> io::Result<()> {
        self.watch = match policy {
            WritePolicy::Drop => None,
            WritePolicy::Wait(_) => {
                let tx = self.tx.get_mut().unwrap_or_else(PoisonError::into_inner);
                let descriptor = tx.wakeup().descriptor;
                descriptor.map(|fd| fd.try_clone_to_owned()).transpose()?
            }
        };
        Ok(())
    }

    /// Waits until there may be room, or the time is over; `tx` is unlocked meanwhile.
    fn wait<'a>(
        &'a self,
        tx: MutexGuard<'a, Box<dyn Transmit>>,
        until: Instant,
    ) -> MutexGuard<'a, Box<dyn Transmit>> {
        let Wakeup { descriptor, after } = tx.wakeup();
        let watch = self.watch.as_ref().filter(|_| descriptor.is_some());
        drop(tx);
        let left = until.saturating_duration_since(Instant::now());
        let time = after.map_or(left, |after| after.min(left));
        match watch {
            Some(fd) => poll::wait_for(fd.as_fd(), libc::POLLOUT, Some(time)),
            None if after.is_some() => std::thread::sleep(time),
            // No link of this crate has neither; one that has is asked again a little later.
            None => std::thread::sleep(left.min(Duration::from_millis(1))),
        }
        self.lock()
    }

    /// Waits until nothing is queued, or the time is over: a stream may have taken the beginning of
    /// a frame.
    fn finish<'a>(&'a self, mut tx: MutexGuard<'a, Box<dyn Transmit>>, until: Option<Instant>) {
        let Some(until) = until else { return };
        while tx.queued() > 0 && Instant::now() < until {
            tx = self.wait(tx, until);
            if tx.flush().is_err() {
                // Whoever sends next is told.
                return;
            }
        }
    }
}

/// Why a frame was refused, told by the counter that has gone up.
fn refusal(before: &TxStats, after: &TxStats, len: usize) -> io::Error {
    use io::ErrorKind::{ConnectionRefused, InvalidInput, NetworkDown, Other, WriteZero};
    let grew = |counter: fn(&TxStats) -> u64| counter(after) > counter(before);
    if grew(|tx| tx.no_buffers) {
        return io::Error::from_raw_os_error(libc::ENOBUFS);
    }
    let (kind, text) = if grew(|tx| tx.link_down) {
        (NetworkDown, "the link is down".to_owned())
    } else if grew(|tx| tx.peer_gone) {
        (ConnectionRefused, "nobody is at the other end".to_owned())
    } else if grew(|tx| tx.too_long) {
        (InvalidInput, format!("a frame of {len} bytes is longer than the link takes"))
    } else if grew(|tx| tx.short_write) {
        (WriteZero, "the kernel took a part of the frame only".to_owned())
    } else if grew(|tx| tx.other_errors) {
        (Other, "the kernel refused the frame: is the socket connected?".to_owned())
    } else {
        (InvalidInput, format!("a frame of {len} bytes that the link cannot carry"))
    };
    io::Error::new(kind, text)
}

/// How far a list came.
struct Progress {
    /// When there is no more waiting; `None` for no waiting at all.
    until: Option<Instant>,
    sent: usize,
    /// Why the first descriptor that ended did.
    fatal: Option<io::Error>,
}

impl Endpoint {
    pub(super) fn write_list(&self, packets: &[TxPacket<'_>]) -> io::Result<Sent> {
        let until = self.policy.deadline();
        let mut progress = Progress { until, sent: 0, fatal: None };
        packets.chunks(WINDOW).for_each(|window| self.write_window(window, &mut progress));
        match progress {
            Progress { sent: 0, fatal: Some(error), .. } => Err(error),
            Progress { sent, .. } => Ok(Sent { taken: packets.len(), sent }),
        }
    }

    pub(super) fn write_frame(&self, frame: &[u8]) -> io::Result<()> {
        let packet = frame.get(self.properties.link_header.len()..).unwrap_or(&[]);
        let queue = self.queue_of_flow(&[IoSlice::new(packet)]);
        let Some(outlet) = self.outlets.get(queue) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let parts = [IoSlice::new(frame)];
        let until = self.policy.deadline();
        let mut tx = outlet.lock();
        // With the lock, nobody else counts.
        let before = self.counted(queue);
        let fatal = loop {
            match (tx.send(&[TxFrame::new(&parts)]), until) {
                (Err(error), _) => break Some(error),
                (Ok(Sent { sent: 1, .. }), _) => {
                    outlet.finish(tx, until);
                    return Ok(());
                }
                (Ok(Sent { taken: 1, .. }), _) => {
                    return Err(refusal(&before, &self.counted(queue), frame.len()));
                }
                (_, Some(until)) if Instant::now() < until => tx = outlet.wait(tx, until),
                _ => break None,
            }
        };
        self.count_dropped(queue, 1, fatal.is_some());
        Err(fatal.unwrap_or_else(|| io::ErrorKind::WouldBlock.into()))
    }

    /// Counts packets that did not get as far as a queue that is locked: a counter has one writer.
    fn count_dropped(&self, queue: usize, packets: usize, ended: bool) {
        if let Some(stats) = self.stats.queues().get(queue) {
            let reason = if ended { &stats.tx.closed } else { &stats.tx.not_writable };
            reason.add(packets as u64);
        }
    }

    /// Sends at most [`WINDOW`] packets, a descriptor at a time.
    fn write_window(&self, packets: &[TxPacket<'_>], progress: &mut Progress) {
        if self.outlets.len() < 2 || packets.len() < 2 {
            let queue = packets.first().map_or(0, |first| self.queue_of(first));
            return self.write_group(queue, packets.iter(), progress);
        }
        let mut queues = [0; WINDOW];
        for (queue, packet) in queues.iter_mut().zip(packets) {
            *queue = self.queue_of(packet);
        }
        for first in 0..packets.len() {
            let queue = queues[first];
            if queue != DONE {
                let rest = queues[first..].iter_mut().zip(&packets[first..]);
                let group = rest.filter_map(|(mark, packet)| {
                    let member = *mark == queue;
                    member.then(|| {
                        *mark = DONE;
                        packet
                    })
                });
                self.write_group(queue, group, progress);
            }
        }
    }

    /// Sends packets that are meant for the same queue.
    fn write_group<'a>(
        &self,
        queue: usize,
        mut group: impl Iterator<Item = &'a TxPacket<'a>>,
        progress: &mut Progress,
    ) {
        let Some(outlet) = self.outlets.get(queue) else { return };
        let mut tx = outlet.lock();
        let (mut dropped, mut fatal) = (0, None);
        loop {
            let mut frames = [TxFrame::new(&[]); CHUNK];
            let mut count = 0;
            for (frame, packet) in frames.iter_mut().zip(group.by_ref()) {
                *frame = self.frame(packet);
                count += 1;
            }
            let mut left = &frames[..count];
            // Once there is no room for a packet, those behind it have none either.
            while dropped == 0 && !left.is_empty() {
                match (tx.send(left), progress.until) {
                    (Err(error), _) => {
                        fatal = Some(error);
                        break;
                    }
                    (Ok(part), until) => {
                        progress.sent += part.sent;
                        left = &left[part.taken..];
                        match until.filter(|until| Instant::now() < *until) {
                            Some(until) if !left.is_empty() => tx = outlet.wait(tx, until),
                            Some(_) => {}
                            None => break,
                        }
                    }
                }
            }
            dropped += left.len();
            if count < CHUNK {
                break;
            }
        }
        self.count_dropped(queue, dropped, fatal.is_some());
        outlet.finish(tx, progress.until);
        progress.fatal = progress.fatal.take().or(fatal);
    }

    /// What was counted on a queue until now.
    fn counted(&self, queue: usize) -> TxStats {
        self.stats.queues().get(queue).map_or_else(TxStats::default, |stats| stats.tx.snapshot())
    }

    fn queue_of(&self, packet: &TxPacket<'_>) -> usize {
        match packet.flow {
            Some(flow) => flow_hash::pick(flow, self.outlets.len()),
            None => self.queue_of_flow(packet.parts),
        }
    }

    /// The queue of a packet's flow.
    fn queue_of_flow(&self, parts: &[IoSlice<'_>]) -> usize {
        if self.outlets.len() < 2 {
            return 0;
        }
        // Enough for IPv6 with an extension header and the ports.
        let mut headers = [0; 128];
        let mut len = 0;
        for part in parts {
            let taken = part.len().min(headers.len() - len);
            headers[len..len + taken].copy_from_slice(&part[..taken]);
            len += taken;
        }
        flow_hash::pick(flow_hash::flow_hash(&headers[..len], self.seed), self.outlets.len())
    }

    fn frame<'a>(&self, packet: &TxPacket<'a>) -> TxFrame<'a> {
        let frame = TxFrame::new(packet.parts).with_offload(packet.offload);
        match self.properties.link_header {
            LinkHeader::None => frame,
            LinkHeader::Ethernet => {
                let source = packet.local.unwrap_or_else(|| self.settings.address());
                frame.with_link_header(ethernet_header(packet.remote, source, packet.protocol))
            }
        }
    }
}
