//! A command in a network of its own, from its namespaces to its exit status: sandbox, link, stack
//! and way out, put together and watched over.
//!
//! # Theory of operation
//!
//! [`Session::start`] makes the namespaces and the link, on a process that has one thread (the
//! sandbox forks). [`Session::run`] then drives everything on that same thread, under a runtime of
//! its own, until the command ends: the kernel ties the sandbox to the thread that started it, and
//! one core moves more than the command's kernel can offer it.
//!
//! ```text
//! command ─ its kernel ─ veth ─ [AF_PACKET] ─ endpoint ─ stack ─ transparent mode ─ outbound ─ host
//! ```
//!
//! What can happen meanwhile is in `session/supervise.rs`.

mod supervise;

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fdlink::aio;
use fdlink::link::adopt;
use fdlink::stats::{LinkStats, RxStats, TxStats};
use fdlink::{Closed, FdLink, Link, LinkOptions, MacAddr, Mode, Report};
use fdlink_sandbox::{Config, Sandbox};
use fdlink_stack::{Cidr, NicId, Stack, StackConfig, StackLevels, StackStats};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime;
use tokio::task::JoinHandle;

use crate::failure::Failure;
use crate::outbound::policy::{
    DNS_V4, DNS_V6, GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6, PREFIX_V4, PREFIX_V6,
};
use crate::outbound::{Outbound, OutboundStats};
use crate::plan::SessionPlan;
use crate::sys::signal::Signals;

pub(crate) use supervise::Ending;
use supervise::{Watched, drain, supervise};

/// How many tasks run between two looks at the host's sockets. While frames come, the stack's
/// driver is always ready to run; tokio's 61 would let it run that often first.
const EVENT_INTERVAL: u32 = 16;
/// A ring tells of frames up to a block timeout (1 ms) late, so a window holds what is under way
/// for that long: 1 MiB would allow 8 Gbit/s.
const RING_TCP_BUFFER: usize = 4 << 20;

/// A command that is ready to run.
#[derive(Debug)]
pub(crate) struct Session {
    sandbox: Sandbox,
    link: FdLink,
    report: Report,
    outbound: Arc<Outbound>,
    signals: Signals,
}

/// What can be looked at while the command runs.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "`run` shows no progress; what does comes with the demo")]
pub(crate) struct Live {
    /// The endpoint's counters.
    pub(crate) link: LinkStats,
    /// The stack.
    pub(crate) stack: Stack,
    /// The way out.
    pub(crate) outbound: Arc<Outbound>,
}

/// What became of it all.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) ending: Ending,
    /// From the command's start to its end.
    pub(crate) duration: Duration,
    /// What the link was asked for, and what it was.
    pub(crate) report: Report,
    /// What each of its queues counted.
    pub(crate) queues: Vec<(RxStats, TxStats)>,
    /// What the stack counted.
    pub(crate) stack: StackStats,
    /// What there was in the stack when the command had ended.
    pub(crate) levels: StackLevels,
    /// What the way out counted.
    pub(crate) outbound: OutboundStats,
    /// Flows denied, by reason.
    pub(crate) denied: Vec<(&'static str, u64)>,
    /// What could not be done and was left out, a sentence each.
    pub(crate) notes: Vec<String>,
}

impl Session {
    /// Makes the namespaces and the link. The process must have one thread.
    pub(crate) fn start(plan: &SessionPlan) -> Result<Self, Failure> {
        let config = Config {
            command: plan.command.clone(),
            root: plan.root,
            link: plan.link,
            queues: plan.queues,
            mtu: plan.mtu,
            ipv4: (GUEST_V4, PREFIX_V4),
            gateway4: GATEWAY_V4,
            ipv6: (GUEST_V6, PREFIX_V6),
            gateway6: GATEWAY_V6,
            resolvers: vec![IpAddr::V4(DNS_V4)],
            ..Config::default()
        };
        let mut sandbox = Sandbox::start(&config)?;
        // After the command's process has been made, which keeps its own limit.
        raise_descriptor_limit();
        let signals = Signals::take()
            .map_err(|error| Failure::new("signals could not be taken").because(&error))?;
        let options = LinkOptions::new()
            .mode(plan.mode)
            .mtu(plan.mtu)
            .ethernet(true)
            .address(MacAddr(config.gateway_mac));
        let link = adopt(sandbox.take_descriptors(), &options).map_err(|error| {
            Failure::new("the command's link could not be made").because(&error)
        })?;
        let report = link.report().clone();
        let outbound = Arc::new(Outbound::new(plan.policy, plan.resolvers.clone()));
        Ok(Self { sandbox, link, report, outbound, signals })
    }

    /// What the link was asked for, and what it is.
    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    /// What could not be done and was left out so far, a sentence each.
    pub(crate) fn notes(&self) -> Vec<String> {
        let sandbox = self.sandbox.notes().iter().cloned();
        let link = self.report.notes.iter().cloned();
        sandbox.chain(link).chain(self.outbound.notes()).collect()
    }

    /// Runs the command to its end, and `beside` with it, for as long as the command runs: to show
    /// progress, to serve what the command asks for.
    pub(crate) fn run<F: Future>(self, beside: impl FnOnce(Live) -> F) -> Result<Outcome, Failure> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .event_interval(EVENT_INTERVAL)
            .build()
            .map_err(|error| Failure::new("the runtime could not be made").because(&error))?;
        runtime.block_on(self.run_under_runtime(beside))
    }

    async fn run_under_runtime<F: Future>(
        self,
        beside: impl FnOnce(Live) -> F,
    ) -> Result<Outcome, Failure> {
        let Self { mut sandbox, link, report, outbound, signals } = self;
        let link_stats = link.stats();
        let (stack, driver) = start_stack(link, &outbound)?;
        let watched = Watched { control: watch(sandbox.control())?, signals: watch(&signals)? };
        let live = Live {
            link: link_stats.clone(),
            stack: stack.clone(),
            outbound: Arc::clone(&outbound),
        };
        let beside = beside(live);

        let started = Instant::now();
        sandbox
            .run_command()
            .map_err(|error| Failure::new("the command could not be started").because(&error))?;
        let ending = supervise(&mut sandbox, &signals, &watched, driver, beside).await?;
        let duration = started.elapsed();
        let levels = stack.levels();
        drain(&outbound).await;

        let queues = link_stats.queues().iter();
        let mut notes = sandbox.notes().to_vec();
        notes.extend(report.notes.iter().cloned());
        notes.extend(outbound.notes());
        Ok(Outcome {
            ending,
            duration,
            queues: queues.map(|queue| (queue.rx.snapshot(), queue.tx.snapshot())).collect(),
            report,
            stack: stack.stats(),
            levels,
            outbound: outbound.stats(),
            denied: outbound.denied().collect(),
            notes,
        })
    }
}

/// The limit of open descriptors, as far up as this user may: a connection is one.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused, it stays as it is, and is counted where it is reached.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// The stack on its link, running, with the way out behind it.
fn start_stack(
    link: FdLink,
    outbound: &Arc<Outbound>,
) -> Result<(Stack, JoinHandle<io::Result<Closed>>), Failure> {
    let failed = |error: &dyn std::error::Error| {
        Failure::new("the command's link could not be given to the stack").because(error)
    };
    let network = |ip: IpAddr, prefix| Cidr::new(ip, prefix).map_err(|error| failed(&error));
    let addresses = [
        network(GATEWAY_V4.into(), PREFIX_V4)?,
        network(DNS_V4.into(), PREFIX_V4)?,
        network(GATEWAY_V6.into(), PREFIX_V6)?,
        network(DNS_V6.into(), PREFIX_V6)?,
    ];
    let config = match link.report().mode {
        Mode::PacketMmap => StackConfig::new().tcp_buffer(RING_TCP_BUFFER),
        _ => StackConfig::new(),
    };
    let (stack, driver) = Stack::new(config);
    stack.create_nic(NicId(1), Box::new(link), &addresses).map_err(|error| failed(&error))?;
    let offers = stack.transparent().map_err(|error| failed(&error))?;
    tokio::spawn(Arc::clone(outbound).serve(offers));
    Ok((stack, tokio::spawn(driver.run())))
}

/// Has the runtime tell when a descriptor is readable.
fn watch(descriptor: impl AsFd) -> Result<AsyncFd<OwnedFd>, Failure> {
    let duplicate = descriptor.as_fd().try_clone_to_owned();
    duplicate
        .and_then(|duplicate| aio::watch(duplicate, Interest::READABLE))
        .map_err(|error| Failure::new("a descriptor could not be watched").because(&error))
}
