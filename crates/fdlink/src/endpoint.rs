//! [`Endpoint`]: the push shape of a link, with a thread for each descriptor that hands what comes
//! to a [`NetworkDispatcher`], and calls that send packets or frames.
//!
//! # Theory of operation
//!
//! A receive queue is always in one of two places: in the endpoint, or with the thread that reads
//! it. [`attach`](LinkEndpoint::attach) lends the queues to threads and
//! [`join`](LinkEndpoint::join) takes them back, so an endpoint can be attached again. Threads hold
//! nothing of the endpoint but the stop signal; so it may be dropped at any time, even by a
//! dispatcher in the middle of a delivery. A transmit queue is behind one mutex, which is never
//! held while waiting or calling out.
//!
//! What is not here: any link kind or mode. An endpoint is a layer on [`Link`], like a stack.

mod run;

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batch::{EtherType, LinkHeader, MacAddr, TxFrame, ethernet_header};
use crate::dispatcher::{NetworkDispatcher, QueueIndex};
use crate::error::SetupError;
use crate::link::{Capabilities, Link, LinkProperties};
use crate::offload::flow_hash;
use crate::offload::vnet::TxOffload;
use crate::queue::{QueuePair, Receive, Sent, Transmit};
use crate::report::Report;
use crate::stats::LinkStats;
use run::Run;

/// What a network stack needs of a link: delivery by callback, and calls to send.
pub trait LinkEndpoint: Send + Sync {
    /// Starts delivering to `dispatcher`, on one thread for each descriptor.
    ///
    /// # Errors
    ///
    /// Where the endpoint is attached already, or a thread cannot be started.
    fn attach(&self, dispatcher: Arc<dyn NetworkDispatcher>) -> Result<(), AttachError>;

    /// Whether it was attached and not joined since.
    fn is_attached(&self) -> bool;

    /// Asks the threads to end, those that wait for frames too. Returns at once; may be called
    /// from a dispatcher.
    fn stop(&self);

    /// Waits until every thread has ended, by [`stop`](Self::stop) or because its descriptor is
    /// closed; then the endpoint may be attached again.
    ///
    /// # Errors
    ///
    /// On one of these threads itself, which would wait for ever.
    fn join(&self) -> Result<(), JoinError>;

    /// Sends network packets, with link headers made of their routes.
    ///
    /// Packets that cannot be sent ever are dropped and counted, and the rest goes on; where the
    /// descriptor is full, the list is cut short ([`Sent::taken`]).
    ///
    /// # Errors
    ///
    /// Only what ends the descriptor for good.
    fn write_packets(&self, packets: &[TxPacket<'_>]) -> io::Result<Sent>;

    /// Sends a frame as it is, link header included.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] where the descriptor is full,
    /// [`io::ErrorKind::InvalidInput`] where the frame was refused and counted, and what ends the
    /// descriptor for good.
    fn write_raw(&self, frame: &[u8]) -> io::Result<()>;

    /// The IP MTU.
    fn mtu(&self) -> u32;

    /// What may be left to the other side.
    fn capabilities(&self) -> Capabilities;

    /// Length of the link header, in bytes.
    fn max_header_len(&self) -> usize;

    /// The endpoint's own link address, where frames have one.
    fn link_address(&self) -> Option<MacAddr>;

    /// The longest super-frame that may be sent, link header included; 0 without segmentation
    /// offload.
    fn gso_max_size(&self) -> usize;

    /// The counters.
    fn stats(&self) -> LinkStats;
}

/// A network packet to be sent, with its route.
#[derive(Clone, Copy, Debug)]
pub struct TxPacket<'a> {
    /// The link address it goes to.
    pub remote: MacAddr,
    /// The link address it comes from, if not the endpoint's own.
    pub local: Option<MacAddr>,
    /// Its protocol.
    pub protocol: EtherType,
    /// Its bytes, from the network header on.
    pub parts: &'a [IoSlice<'a>],
    /// What is left to the other side. Offsets count from the start of the frame, so the link
    /// header is in them.
    pub offload: TxOffload,
}

impl<'a> TxPacket<'a> {
    /// A packet without offloads, from the endpoint's own address.
    pub fn new(remote: MacAddr, protocol: EtherType, parts: &'a [IoSlice<'a>]) -> Self {
        Self { remote, local: None, protocol, parts, offload: TxOffload::default() }
    }
}

/// Why an endpoint was not attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// It is attached already; join it first.
    #[error("the endpoint is attached already")]
    AlreadyAttached,
    /// A thread could not be started, or what stops it not be made.
    #[error("a thread for the endpoint could not be started")]
    Thread(#[source] io::Error),
}

/// Why a join would never return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The caller is one of the threads that are to be waited for.
    #[error("a thread of the endpoint cannot wait for itself")]
    OwnThread,
}

/// An endpoint over any link.
pub struct Endpoint {
    properties: LinkProperties,
    report: Report,
    stats: LinkStats,
    tx: Vec<Mutex<Box<dyn Transmit>>>,
    /// Hashes flows to queues; random, so that nobody outside can aim at one.
    seed: u64,
    state: Mutex<State>,
    /// Held by who joins, so that a second one waits as well.
    joining: Mutex<()>,
}

/// Where the receive queues are.
#[derive(Default)]
struct State {
    idle: Vec<(QueueIndex, Box<dyn Receive>)>,
    run: Option<Run>,
}

impl Endpoint {
    /// An endpoint that drives the queues of `link`.
    ///
    /// # Errors
    ///
    /// Where the link's queues cannot be set up.
    pub fn new(link: impl Link + 'static) -> Result<Self, SetupError> {
        Self::over(Box::new(link))
    }

    /// The same for a link whose type is not known.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn over(link: Box<dyn Link>) -> Result<Self, SetupError> {
        let (properties, report) = (link.properties().clone(), link.report().clone());
        let stats = link.stats();
        let mut state = State::default();
        let mut tx = Vec::new();
        for (index, pair) in link.into_queues()?.into_iter().enumerate() {
            let QueuePair { rx, tx: out } = pair;
            tx.push(Mutex::new(out));
            state.idle.extend(rx.map(|rx| (QueueIndex(index), rx)));
        }
        let (state, joining) = (Mutex::new(state), Mutex::default());
        Ok(Self { properties, report, stats, tx, seed: seed(), state, joining })
    }

    /// What the link is.
    pub fn properties(&self) -> &LinkProperties {
        &self.properties
    }

    /// What was asked for, what was got, and what was replaced.
    pub fn report(&self) -> &Report {
        &self.report
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the state halfway: every change to it is a single move.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, queue: usize, frames: &[TxFrame<'_>]) -> io::Result<Sent> {
        let Some(tx) = self.tx.get(queue) else { return Ok(Sent::default()) };
        tx.lock().unwrap_or_else(PoisonError::into_inner).send(frames)
    }

    /// The queue of a packet's flow.
    fn queue_of(&self, parts: &[IoSlice<'_>]) -> usize {
        if self.tx.len() < 2 {
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
        flow_hash::pick(flow_hash::flow_hash(&headers[..len], self.seed), self.tx.len())
    }

    fn frame<'a>(&self, packet: &TxPacket<'a>) -> TxFrame<'a> {
        let frame = TxFrame::new(packet.parts).with_offload(packet.offload);
        match self.properties.link_header {
            LinkHeader::None => frame,
            LinkHeader::Ethernet => {
                let own = self.properties.address.unwrap_or_default();
                let source = packet.local.unwrap_or(own);
                frame.with_link_header(ethernet_header(packet.remote, source, packet.protocol))
            }
        }
    }
}

impl LinkEndpoint for Endpoint {
    fn attach(&self, dispatcher: Arc<dyn NetworkDispatcher>) -> Result<(), AttachError> {
        let mut state = self.state();
        if state.run.is_some() {
            return Err(AttachError::AlreadyAttached);
        }
        let mut run = Run::new().map_err(AttachError::Thread)?;
        let idle = std::mem::take(&mut state.idle);
        let started = run.start(idle, &dispatcher);
        state.run = Some(run);
        // Threads that did start may already wait for this lock.
        drop(state);
        started.map_err(|(error, left)| {
            self.stop();
            let _ = self.join();
            self.state().idle.extend(left);
            AttachError::Thread(error)
        })
    }

    fn is_attached(&self) -> bool {
        self.state().run.is_some()
    }

    fn stop(&self) {
        if let Some(run) = &self.state().run {
            run.stop();
        }
    }

    fn join(&self) -> Result<(), JoinError> {
        if self.state().run.as_ref().is_some_and(Run::is_current) {
            return Err(JoinError::OwnThread);
        }
        let _only_one = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        // The run stays in place until the threads have ended: they may still ask for it.
        let threads = self.state().run.as_mut().map(Run::take_threads).unwrap_or_default();
        let mut idle: Vec<_> = threads.into_iter().filter_map(run::Thread::join).collect();
        idle.sort_by_key(|(index, _)| *index);
        let mut state = self.state();
        state.idle.extend(idle);
        state.run = None;
        Ok(())
    }

    fn write_packets(&self, packets: &[TxPacket<'_>]) -> io::Result<Sent> {
        // So many frames are made on the stack before they are sent.
        const CHUNK: usize = 32;
        let mut sent = Sent::default();
        while let Some(first) = packets.get(sent.taken) {
            let rest = &packets[sent.taken..];
            let queue = self.queue_of(first.parts);
            let same = rest.iter().take(CHUNK).take_while(|p| self.queue_of(p.parts) == queue);
            let mut frames = [TxFrame::new(&[]); CHUNK];
            let mut run = 0;
            for (frame, packet) in frames.iter_mut().zip(same) {
                *frame = self.frame(packet);
                run += 1;
            }
            let part = self.send(queue, &frames[..run])?;
            sent.taken += part.taken;
            sent.sent += part.sent;
            if part.taken < run {
                break;
            }
        }
        Ok(sent)
    }

    fn write_raw(&self, frame: &[u8]) -> io::Result<()> {
        let packet = frame.get(self.properties.link_header.len()..).unwrap_or(&[]);
        let queue = self.queue_of(&[IoSlice::new(packet)]);
        match self.send(queue, &[TxFrame::new(&[IoSlice::new(frame)])])? {
            Sent { sent: 1, .. } => Ok(()),
            Sent { taken: 1, .. } => Err(io::ErrorKind::InvalidInput.into()),
            Sent { .. } => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn mtu(&self) -> u32 {
        self.properties.mtu
    }

    fn capabilities(&self) -> Capabilities {
        self.properties.capabilities
    }

    fn max_header_len(&self) -> usize {
        self.properties.link_header.len()
    }

    fn link_address(&self) -> Option<MacAddr> {
        self.properties.address
    }

    fn gso_max_size(&self) -> usize {
        self.properties.gso_max_size
    }

    fn stats(&self) -> LinkStats {
        self.stats.clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop();
        // On one of its own threads it cannot wait, and need not: that thread ends when the
        // dispatcher returns, and so do the others.
        let _ = self.join();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Endpoint");
        out.field("properties", &self.properties).field("attached", &self.is_attached());
        out.finish_non_exhaustive()
    }
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
