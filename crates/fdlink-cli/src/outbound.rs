//! The way out: every flow that the stack offers goes on as a socket of the host, or is refused.
//!
//! # Theory of operation
//!
//! One task takes flows from the stack as they are offered, asks the policy, and gives each that
//! may go a task of its own (`tcp.rs`, `udp.rs`, `dns.rs`, `echo.rs`). A flow is answered inside
//! only when the host's kernel has answered outside. Everything runs on one thread, so counters
//! need no locked instruction and one scratch buffer serves all datagrams.
//!
//! What bounds it: the stack's tables (flows, half-open flows, offers), [`MAX_DIALS`] for
//! connections being opened, and the process's limit of descriptors, which is raised as far as it
//! goes and shows up as `no_descriptors` where it is reached.

mod dns;
mod echo;
pub(crate) mod policy;
mod relay;
pub(crate) mod resolvers;
mod tcp;
mod udp;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fdlink::stats::Counter;
use fdlink_stack::{Incoming, Refusal, Transparent};
use rustix::io::Errno;
use tokio::sync::Semaphore;

pub(crate) use policy::{Policy, Reason, Verdict};
use resolvers::Resolvers;

/// Connections that are being opened at once; more wait their turn, of which the stack bounds the
/// number. A dial into a hole takes two minutes, and a scan makes many.
const MAX_DIALS: usize = 1_024;
/// Room for the longest datagram, and for an ICMP header before it.
const SCRATCH: usize = 65_535 + 8;

fdlink::counters! {
    /// What the way out counts.
    OutboundCounters, OutboundStats {
        /// Connections asked for that may go out.
        tcp_dialled,
        /// Those that the host opened.
        tcp_connected,
        /// Those that the other side refused.
        tcp_refused,
        /// Those that found no way, or a way that is closed.
        tcp_unreachable,
        /// Those that nobody answered.
        tcp_timed_out,
        /// Those that failed otherwise.
        tcp_dial_errors,
        /// Connections that ended with both sides closed.
        tcp_finished,
        /// Connections that the host's side reset.
        tcp_reset_outside,
        /// Connections that the command's side reset.
        tcp_reset_inside,
        /// Bytes from the command to the host's network.
        tcp_bytes_out,
        /// Bytes from the host's network to the command.
        tcp_bytes_in,
        /// UDP flows that went out.
        udp_flows,
        /// Datagrams from the command to the host's network.
        udp_datagrams_out,
        /// Datagrams from the host's network to the command.
        udp_datagrams_in,
        /// UDP flows that ended because nobody listened there.
        udp_refused,
        /// UDP flows that ended because nothing came for a while.
        udp_idle,
        /// UDP flows for which the host had no way or no socket.
        udp_errors,
        /// Datagrams that the host would not send: too long, or no room.
        udp_dropped,
        /// Name look-ups over UDP.
        dns_queries,
        /// Answers to them.
        dns_answers,
        /// Look-ups sent to the next name server because one did not answer.
        dns_retries,
        /// Look-ups that no name server answered.
        dns_unanswered,
        /// Connections to name servers.
        dns_tcp,
        /// Ping flows that went out.
        echo_flows,
        /// Echo requests that went out.
        echo_requests,
        /// Echo replies that came back.
        echo_replies,
        /// Ping flows refused: the host lets this user send no echo requests.
        echo_denied,
        /// Flows to one of our addresses where nobody listens.
        closed_ports,
        /// Flows for which there was no descriptor left.
        no_descriptors,
    }
}

/// The way out. Shared by all its tasks.
#[derive(Debug)]
pub(crate) struct Outbound {
    policy: Policy,
    resolvers: Resolvers,
    counters: OutboundCounters,
    denied: [Counter; Reason::ALL.len()],
    notes: Mutex<Vec<String>>,
    scratch: Mutex<Box<[u8]>>,
    dials: Semaphore,
    /// Connections whose bytes from inside are not all out yet.
    sending: AtomicUsize,
}

impl Outbound {
    /// A way out with these rules.
    pub(crate) fn new(policy: Policy, resolvers: Resolvers) -> Self {
        Self {
            policy,
            notes: Mutex::new(resolvers.note().into_iter().collect()),
            resolvers,
            counters: OutboundCounters::default(),
            denied: Default::default(),
            scratch: Mutex::new(vec![0; SCRATCH].into_boxed_slice()),
            dials: Semaphore::new(MAX_DIALS),
            sending: AtomicUsize::new(0),
        }
    }

    /// Takes every flow that is offered; never ends.
    pub(crate) async fn serve(self: Arc<Self>, mut offers: Transparent) {
        loop {
            match offers.next().await {
                Incoming::Tcp(incoming) => tcp::take(&self, incoming),
                Incoming::Udp(incoming) => udp::take(&self, incoming),
                Incoming::Echo(incoming) => echo::take(&self, incoming),
                // A kind of flow that this program does not know is refused as it is dropped.
                _ => {}
            }
        }
    }

    /// What has been counted.
    pub(crate) fn stats(&self) -> OutboundStats {
        self.counters.snapshot()
    }

    /// Name and number of flows denied for each reason.
    pub(crate) fn denied(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reason::ALL.map(|reason| (reason.name(), self.denied[reason.index()].value())).into_iter()
    }

    /// What could not be done, a sentence each.
    pub(crate) fn notes(&self) -> Vec<String> {
        lock(&self.notes).clone()
    }

    /// Whether there are connections whose bytes from inside are not all out yet.
    pub(crate) fn is_sending(&self) -> bool {
        self.sending.load(Relaxed) > 0
    }

    fn count_denied(&self, reason: Reason) {
        self.denied[reason.index()].add(1);
    }

    /// Remembers a note, once.
    fn note(&self, note: &str) {
        let mut notes = lock(&self.notes);
        if !notes.iter().any(|old| old == note) {
            notes.push(note.to_owned());
        }
    }

    /// Memory for one datagram, for as long as it is looked at.
    fn scratch(&self) -> MutexGuard<'_, Box<[u8]>> {
        lock(&self.scratch)
    }

    /// What to tell the command of a failure outside.
    fn refusal(&self, error: &io::Error) -> Refusal {
        match Errno::from_io_error(error) {
            Some(Errno::CONNREFUSED) => Refusal::Refused,
            Some(Errno::NETUNREACH) => Refusal::NetworkUnreachable,
            Some(Errno::ACCESS | Errno::PERM) => Refusal::Prohibited,
            Some(Errno::MFILE | Errno::NFILE) => {
                self.counters.no_descriptors.add(1);
                self.note("the limit of open descriptors was reached: flows were refused");
                Refusal::HostUnreachable
            }
            _ => Refusal::HostUnreachable,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a connection among those that are sending, until dropped.
#[derive(Debug)]
struct Sending<'a>(&'a Outbound);

impl<'a> Sending<'a> {
    fn new(outbound: &'a Outbound) -> Self {
        outbound.sending.fetch_add(1, Relaxed);
        Self(outbound)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, Relaxed);
    }
}
