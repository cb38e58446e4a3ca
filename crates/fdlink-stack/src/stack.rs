//! The stack as its users hold it: interfaces, routes, counters. Sockets are in `sockets/`,
//! transparent mode in `transparent.rs`, the loop in `driver.rs`.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use fdlink::queue::Closed;
use fdlink::{Link, SetupError};

use crate::address::{Cidr, NicId, Route};
use crate::config::StackConfig;
use crate::core::Core;
use crate::driver::Driver;
use crate::nic::{Nic, NicQueue};
use crate::stats::{StackLevels, StackStats};

/// A user-space TCP/IP stack. Cheap to clone; all clones are the same stack.
#[derive(Clone)]
pub struct Stack {
    pub(crate) shared: Arc<Shared>,
}

/// What sockets and the driver share.
pub(crate) struct Shared {
    core: Mutex<Core>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// The state, for a moment: nobody waits while holding it.
    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        // A panic elsewhere leaves counters and flows as they were; there is nothing half done
        // that the next holder would have to know of.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an interface could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    /// That number is in use.
    #[error("interface {} exists already", .0.0)]
    Exists(NicId),
    /// The link's queues could not be set up.
    #[error("the link's queues could not be set up")]
    Link(#[from] SetupError),
}

impl Stack {
    /// A stack, and the driver that moves its packets: spawn [`Driver::run`] on a tokio runtime.
    pub fn new(config: StackConfig) -> (Self, Driver) {
        let spin = config.spin;
        let shared = Arc::new(Shared { core: Mutex::new(Core::new(config, Instant::now())) });
        (Self { shared: Arc::clone(&shared) }, Driver::new(shared, spin))
    }

    /// Makes an interface of a link, which the stack drives from now on.
    ///
    /// # Errors
    ///
    /// Where the number is taken or the link's queues cannot be set up.
    pub fn create_nic(
        &self,
        id: NicId,
        link: Box<dyn Link>,
        addresses: &[Cidr],
    ) -> Result<(), NicError> {
        let properties = link.properties().clone();
        if self.shared.core().nics.iter().any(|nic| nic.id == id) {
            return Err(NicError::Exists(id));
        }
        let queues = link.into_queues()?;
        let queues = queues.into_iter().map(NicQueue::from).collect();
        let mut nic = Nic::new(id, &properties, queues, addresses.to_vec());
        let mut core = self.shared.core();
        // Somebody else may have been faster.
        if core.nics.iter().any(|nic| nic.id == id) {
            return Err(NicError::Exists(id));
        }
        nic.closed = core.stopped.then_some(Closed::Stopped);
        core.nics.push(nic);
        core.driver.wake();
        Ok(())
    }

    /// Packets to `destination` leave through that interface, by way of `gateway`. The longest
    /// prefix wins. Whether the interface exists.
    pub fn add_route(&self, id: NicId, destination: Cidr, gateway: IpAddr) -> bool {
        let mut core = self.shared.core();
        let nic = core.nics.iter_mut().find(|nic| nic.id == id);
        nic.map(|nic| nic.routes.push(Route { destination, gateway })).is_some()
    }

    /// What has been counted.
    pub fn stats(&self) -> StackStats {
        let core = self.shared.core();
        let mut stats = core.stats.snapshot();
        for nic in &core.nics {
            // The caches count these themselves.
            let counts = nic.neighbors.counts();
            stats.neighbors_asked += counts.asked;
            stats.neighbors_failed += counts.failed;
            stats.neighbors_evicted += counts.evicted;
        }
        stats
    }

    /// How much of everything there is now.
    pub fn levels(&self) -> StackLevels {
        self.shared.core().levels()
    }

    /// Resets every connection and ends the driver. Whatever waits on a socket fails with
    /// `ConnectionAborted`; the same happens when the driver ends by itself or is dropped.
    pub fn stop(&self) {
        self.shared.core().shut_down(Instant::now());
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("levels", &self.levels()).finish_non_exhaustive()
    }
}
