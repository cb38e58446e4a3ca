//! [`InjectableEndpoint`]: an endpoint that sends on its descriptors and does not read them; what
//! comes in is put in by its owner, on the owner's thread.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batch::{MacAddr, RxBatch, RxDescriptor, RxMeta};
use crate::dispatcher::{NetworkDispatcher, QueueIndex};
use crate::endpoint::{AttachError, Endpoint, JoinError, LinkEndpoint, TxPacket, WritePolicy};
use crate::error::SetupError;
use crate::link::{Capabilities, Link, LinkProperties};
use crate::queue::{Closed, Sent};
use crate::report::Report;
use crate::stats::LinkStats;

/// An endpoint without a receiving descriptor: outbound as any, inbound by
/// [`inject`](Self::inject).
///
/// There are no threads. [`attach`](LinkEndpoint::attach) keeps the dispatcher,
/// [`stop`](LinkEndpoint::stop) lets go of it after one closed notice, [`join`](LinkEndpoint::join)
/// makes room for the next. An injection that another thread is in the middle of ends by itself.
pub struct InjectableEndpoint {
    endpoint: Endpoint,
    state: Mutex<State>,
}

/// To whom frames go.
#[derive(Clone)]
enum State {
    Detached,
    Attached(Arc<dyn NetworkDispatcher>),
    /// Stopped, and not joined since.
    Ended,
}

/// Why a frame was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InjectError {
    /// There is nobody to deliver to: the endpoint was not attached, or was stopped.
    #[error("the endpoint is not attached: there is nobody to deliver to")]
    NotAttached,
    /// The dispatcher panicked. It was told that its queue is closed, and is let go of.
    #[error("the dispatcher panicked")]
    Panicked,
}

/// Frames that are put in come from here.
const QUEUE: QueueIndex = QueueIndex(0);

impl InjectableEndpoint {
    /// An endpoint that sends on the descriptors of `link`. Its receive queues are closed.
    ///
    /// # Errors
    ///
    /// As [`Endpoint::new`].
    pub fn new(link: impl Link + 'static) -> Result<Self, SetupError> {
        let endpoint = Endpoint::new(link)?;
        endpoint.state().idle.clear();
        Ok(Self { endpoint, state: Mutex::new(State::Detached) })
    }

    /// The same endpoint with another policy for packets that a descriptor has no room for.
    ///
    /// # Errors
    ///
    /// As [`Endpoint::with_write_policy`].
    pub fn with_write_policy(mut self, policy: WritePolicy) -> io::Result<Self> {
        self.endpoint.set_write_policy(policy)?;
        Ok(self)
    }

    /// What the link is.
    pub fn properties(&self) -> &LinkProperties {
        self.endpoint.properties()
    }

    /// What was asked for, what was got, and what was replaced.
    pub fn report(&self) -> &Report {
        self.endpoint.report()
    }

    /// Delivers one frame, link header included if the link has one. What is known of it is the
    /// caller's to say, but for the link header, which is the link's.
    ///
    /// # Errors
    ///
    /// Where there is nobody to deliver to, or the dispatcher panicked.
    pub fn inject(&self, frame: &mut [u8], meta: RxMeta) -> Result<(), InjectError> {
        let link_header = self.properties().link_header;
        let meta = RxMeta { link_header, ..meta };
        let descriptor = [RxDescriptor { offset: 0, len: frame.len(), meta }];
        self.inject_batch(&mut RxBatch::new(frame, &descriptor))
    }

    /// Delivers a batch of frames, as another link's queue brought them.
    ///
    /// # Errors
    ///
    /// As [`inject`](Self::inject).
    pub fn inject_batch(&self, batch: &mut RxBatch<'_>) -> Result<(), InjectError> {
        // Without the lock: the dispatcher may stop the endpoint, or drop it.
        let State::Attached(dispatcher) = self.state().clone() else {
            return Err(InjectError::NotAttached);
        };
        catch_unwind(AssertUnwindSafe(|| dispatcher.deliver(QUEUE, batch))).map_err(|_| {
            // It may have been let go of meanwhile, and another one be attached.
            self.end(&Closed::Panicked, |attached| Arc::ptr_eq(attached, &dispatcher));
            InjectError::Panicked
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the dispatcher, if it is the one that is meant, and tells it why.
    fn end(&self, why: &Closed, meant: impl Fn(&Arc<dyn NetworkDispatcher>) -> bool) {
        let dispatcher = {
            let mut state = self.state();
            let State::Attached(dispatcher) = &*state else { return };
            if !meant(dispatcher) {
                return;
            }
            let dispatcher = Arc::clone(dispatcher);
            *state = State::Ended;
            dispatcher
        };
        // A panic in the notice ends nothing that has not ended already.
        drop(catch_unwind(AssertUnwindSafe(|| dispatcher.closed(QUEUE, why))));
    }
}

impl LinkEndpoint for InjectableEndpoint {
    fn attach(&self, dispatcher: Arc<dyn NetworkDispatcher>) -> Result<(), AttachError> {
        let mut state = self.state();
        if !matches!(*state, State::Detached) {
            return Err(AttachError::AlreadyAttached);
        }
        *state = State::Attached(dispatcher);
        Ok(())
    }

    fn is_attached(&self) -> bool {
        !matches!(*self.state(), State::Detached)
    }

    fn stop(&self) {
        self.end(&Closed::Stopped, |_| true);
    }

    fn join(&self) -> Result<(), JoinError> {
        let mut state = self.state();
        if matches!(*state, State::Ended) {
            *state = State::Detached;
        }
        Ok(())
    }

    fn write_packets(&self, packets: &[TxPacket<'_>]) -> io::Result<Sent> {
        self.endpoint.write_packets(packets)
    }

    fn write_raw(&self, frame: &[u8]) -> io::Result<()> {
        self.endpoint.write_raw(frame)
    }

    fn mtu(&self) -> u32 {
        self.endpoint.mtu()
    }

    fn set_mtu(&self, mtu: u32) -> Result<(), SetupError> {
        self.endpoint.set_mtu(mtu)
    }

    fn capabilities(&self) -> Capabilities {
        self.endpoint.capabilities()
    }

    fn max_header_len(&self) -> usize {
        self.endpoint.max_header_len()
    }

    fn link_address(&self) -> Option<MacAddr> {
        self.endpoint.link_address()
    }

    fn set_link_address(&self, address: MacAddr) -> Result<(), SetupError> {
        self.endpoint.set_link_address(address)
    }

    fn gso_max_size(&self) -> usize {
        self.endpoint.gso_max_size()
    }

    fn stats(&self) -> LinkStats {
        self.endpoint.stats()
    }
}

impl Drop for InjectableEndpoint {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for InjectableEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("InjectableEndpoint");
        out.field("endpoint", &self.endpoint).field("attached", &self.is_attached());
        out.finish_non_exhaustive()
    }
}
