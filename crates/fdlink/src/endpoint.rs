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

mod injectable;
mod run;
mod settings;
mod write;

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batch::{EtherType, MacAddr};
use crate::dispatcher::{NetworkDispatcher, QueueIndex};
use crate::error::SetupError;
use crate::link::{Capabilities, Link, LinkProperties};
use crate::offload::vnet::TxOffload;
use crate::queue::{QueuePair, Receive, Sent};
use crate::report::Report;
use crate::stats::LinkStats;
use run::Run;
use settings::Settings;
use write::Outlet;

pub use injectable::{InjectError, InjectableEndpoint};
pub use write::WritePolicy;

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
    /// The whole list is dealt with: what cannot be sent ever, and what a descriptor has no room for
    /// ([`WritePolicy`]), is dropped and counted, and the rest goes on. With several descriptors the
    /// list is spread over them by flow; packets of one flow stay in order.
    ///
    /// # Errors
    ///
    /// What has ended a descriptor for good, if nothing of the list could be sent.
    fn write_packets(&self, packets: &[TxPacket<'_>]) -> io::Result<Sent>;

    /// Sends a frame as it is, link header included.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] where the descriptor had no room; why the frame was refused
    /// ([`NetworkDown`](io::ErrorKind::NetworkDown), [`ConnectionRefused`](io::ErrorKind::ConnectionRefused),
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for one that is too long or makes no sense, and
    /// the like); and what has ended the descriptor for good. Each is counted.
    fn write_raw(&self, frame: &[u8]) -> io::Result<()>;

    /// The IP MTU: the link's, or what [`set_mtu`](Self::set_mtu) made of it.
    fn mtu(&self) -> u32;

    /// Changes what [`mtu`](Self::mtu) says, for whoever makes packets by it; also while attached.
    /// The interface behind the descriptor keeps its own.
    ///
    /// # Errors
    ///
    /// Where it is not 68 bytes to what the link's longest frame holds
    /// ([`LinkProperties::max_frame_len`]), which is fixed when the link is built.
    fn set_mtu(&self, mtu: u32) -> Result<(), SetupError>;

    /// What may be left to the other side.
    fn capabilities(&self) -> Capabilities;

    /// Length of the link header, in bytes.
    fn max_header_len(&self) -> usize;

    /// The endpoint's own link address, where frames have one.
    fn link_address(&self) -> Option<MacAddr>;

    /// Changes the endpoint's own link address: packets sent from now on come from it. Also while
    /// attached. The interface behind the descriptor keeps its own.
    ///
    /// # Errors
    ///
    /// Where frames carry no addresses, or the address is a group's.
    fn set_link_address(&self, address: MacAddr) -> Result<(), SetupError>;

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
    /// Which of several descriptors it leaves on: this number modulo how many there are. Default:
    /// by the hash of its addresses and ports.
    pub flow: Option<u64>,
}

impl<'a> TxPacket<'a> {
    /// An IP packet on a link without link headers, where neither addresses nor the protocol are
    /// sent.
    pub fn ip(parts: &'a [IoSlice<'a>]) -> Self {
        let first = parts.iter().find(|part| !part.is_empty());
        let protocol = first.and_then(|part| EtherType::of_ip_packet(part));
        Self::new(MacAddr::default(), protocol.unwrap_or(EtherType::IPV4), parts)
    }

    /// A packet without offloads, from the endpoint's own address.
    pub fn new(remote: MacAddr, protocol: EtherType, parts: &'a [IoSlice<'a>]) -> Self {
        Self { remote, local: None, protocol, parts, offload: TxOffload::default(), flow: None }
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

/// Why an endpoint's descriptors were not given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// A descriptor could not be duplicated.
    #[error("a descriptor could not be duplicated")]
    Descriptor(#[source] io::Error),
    /// See [`JoinError`].
    #[error(transparent)]
    Join(#[from] JoinError),
    /// A queue of the link has no descriptor that it could give.
    #[error("queue {} of this link has no descriptor to hand over", .0.0)]
    NoDescriptor(QueueIndex),
    /// The link's owner did not say that it may be handed over.
    #[error("the link was built without `save_restore`: its descriptors are not to be handed over")]
    NotDeclared,
}

/// An endpoint over any link.
pub struct Endpoint {
    properties: LinkProperties,
    report: Report,
    stats: LinkStats,
    settings: Settings,
    policy: WritePolicy,
    outlets: Vec<Outlet>,
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
        let mut outlets = Vec::new();
        for (index, pair) in link.into_queues()?.into_iter().enumerate() {
            let QueuePair { rx, tx } = pair;
            outlets.push(Outlet::new(tx));
            state.idle.extend(rx.map(|rx| (QueueIndex(index), rx)));
        }
        Ok(Self {
            settings: Settings::new(&properties),
            policy: WritePolicy::default(),
            properties,
            report,
            stats,
            outlets,
            seed: seed(),
            state: Mutex::new(state),
            joining: Mutex::default(),
        })
    }

    /// The same endpoint with another policy for packets that a descriptor has no room for.
    ///
    /// # Errors
    ///
    /// [`WritePolicy::Wait`] takes one more descriptor for each of the link's, to wait on.
    pub fn with_write_policy(mut self, policy: WritePolicy) -> io::Result<Self> {
        self.set_write_policy(policy)?;
        Ok(self)
    }

    fn set_write_policy(&mut self, policy: WritePolicy) -> io::Result<()> {
        self.outlets.iter_mut().try_for_each(|outlet| outlet.prepare(policy))?;
        self.policy = policy;
        Ok(())
    }

    /// Stops receiving for good and gives the descriptors, for another process that goes on with
    /// them (by SCM_RIGHTS, or across an exec). They are duplicates, as the link has set them up,
    /// without rings; when the endpoint is dropped, a filter on a device goes, and of borrowed ones
    /// everything is put back. What waits in a socket's own queue stays there, what waits in a ring
    /// is lost.
    ///
    /// # Errors
    ///
    /// Where [`Capabilities::save_restore`] was not declared or the caller is one of the endpoint's
    /// own threads: nothing has changed then. Where a queue has no descriptor to give, or the process
    /// can have no more: then the endpoint is stopped and joined, and may be attached again.
    pub fn hand_over(&mut self) -> Result<Vec<OwnedFd>, HandOverError> {
        if !self.properties.capabilities.save_restore {
            return Err(HandOverError::NotDeclared);
        }
        if self.state().run.as_ref().is_some_and(Run::is_current) {
            return Err(JoinError::OwnThread.into());
        }
        self.stop();
        self.join()?;
        let mut state = self.state();
        let descriptors: Result<Vec<OwnedFd>, HandOverError> = (state.idle.iter())
            .map(|(queue, rx)| match rx.wakeup().descriptor {
                Some(fd) => fd.try_clone_to_owned().map_err(HandOverError::Descriptor),
                None => Err(HandOverError::NoDescriptor(*queue)),
            })
            .collect();
        let descriptors = descriptors?;
        std::mem::take(&mut state.idle).into_iter().for_each(|(_, rx)| rx.let_go());
        Ok(descriptors)
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
            // Before the join, which lets others attach.
            self.state().idle.extend(left);
            self.stop();
            let _ = self.join();
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
        // The run stays in place until the threads have ended: they may still ask for it, and
        // nobody attaches meanwhile. Without one there is nothing to let go of.
        let threads = self.state().run.as_mut().map(Run::take_threads);
        let Some(threads) = threads else { return Ok(()) };
        let idle: Vec<_> = threads.into_iter().filter_map(run::Thread::join).collect();
        let mut state = self.state();
        state.idle.extend(idle);
        state.idle.sort_by_key(|(index, _)| *index);
        state.run = None;
        Ok(())
    }

    fn write_packets(&self, packets: &[TxPacket<'_>]) -> io::Result<Sent> {
        self.write_list(packets)
    }

    fn write_raw(&self, frame: &[u8]) -> io::Result<()> {
        self.write_frame(frame)
    }

    fn mtu(&self) -> u32 {
        self.settings.mtu()
    }

    fn set_mtu(&self, mtu: u32) -> Result<(), SetupError> {
        self.settings.set_mtu(mtu, &self.properties)
    }

    fn capabilities(&self) -> Capabilities {
        self.properties.capabilities
    }

    fn max_header_len(&self) -> usize {
        self.properties.link_header.len()
    }

    fn link_address(&self) -> Option<MacAddr> {
        self.properties.address.map(|_| self.settings.address())
    }

    fn set_link_address(&self, address: MacAddr) -> Result<(), SetupError> {
        self.settings.set_address(address, &self.properties)
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
