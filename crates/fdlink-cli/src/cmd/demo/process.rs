//! A row as a process of its own: a sandbox must be started by a process that has one thread, and
//! what is a process can be ended if it hangs.
//!
//! ```text
//! fdlink demo ─── fdlink demo-row ─── init ─── fdlink demo-client
//!   server,         endpoint,        (PID 1)     a kernel's TCP, in
//!   table, chart    stack                        a network of its own
//! ```
//!
//! demo-row and demo-client tell what they saw on standard output, a line of JSON each time, and
//! what went wrong on standard error. Whichever of them dies, those to its right are killed by the
//! kernel.

use std::future::pending;
use std::io::{self, BufRead, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::pin::pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use fdlink::Mode;
use fdlink::stats::{RxStats, TxStats};
use fdlink_sandbox::{Exit, LinkChoice};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{interval, sleep, timeout};

use super::budget::Share;
use super::client::ClientArgs;
use super::row::{Counted, Family, Message, Row, Trial};
use super::server::Server;
use crate::failure::Failure;
use crate::outbound::Policy;
use crate::outbound::resolvers::Resolvers;
use crate::plan::SessionPlan;
use crate::session::{Ending, Outcome, Session};

/// This program, wherever it lies and even if that file has been replaced meanwhile.
const MYSELF: &str = "/proc/self/exe";
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);
/// How long a killed row may take to be gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a row is to do. Written by the demo, not by people.
#[derive(Args, Clone, Debug)]
pub(crate) struct RowArgs {
    /// How frames cross the descriptor
    #[arg(long)]
    pub(crate) mode: Mode,
    /// The MTU of the sandbox's interface
    #[arg(long)]
    pub(crate) mtu: u32,
    /// The process that wants to know
    #[arg(long)]
    pub(crate) parent: i32,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `fdlink demo-row`: `run`, with the demo's client.
pub(crate) fn run(args: &RowArgs) -> Result<(), Failure> {
    die_with(args.parent)?;
    super::show_as(c"demo-row");
    let mut command = vec![MYSELF.into(), "demo-client".into()];
    command.extend(args.client.typed().into_iter().map(Into::into));
    let plan = SessionPlan {
        command,
        mode: args.mode,
        link: LinkChoice::Veth,
        queues: 1,
        mtu: args.mtu,
        root: false,
        policy: Policy { host_loopback: true },
        resolvers: Resolvers::fixed(Vec::<SocketAddr>::new()),
    };
    let outcome = Session::start(&plan)?.run(|_| pending::<()>())?;
    match &outcome.ending {
        Ending::Exited(Exit::Code(0)) => super::tell(&Message::Counted(counted(&outcome))),
        // The client has said why.
        Ending::Exited(Exit::Code(code)) => Err(Failure::new(format!("status {code}"))),
        ending => Err(Failure::new(ending.to_string())),
    }
}

/// Has the kernel kill this process when its parent ends.
fn die_with(parent: i32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::new("the parent could not be watched").because(&error))?;
    // It may have ended before that.
    match rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()) {
        Some(pid) if pid == parent => Ok(()),
        _ => Err(Failure::new("demo-row is for the demo's own use").hint(Some(
            "`fdlink demo` shows everything; `fdlink run` runs commands of yours".to_owned(),
        ))),
    }
}

fn counted(outcome: &Outcome) -> Counted {
    let (mut rx, mut tx) = (RxStats::default(), TxStats::default());
    for queue in &outcome.queues {
        rx += queue.0;
        tx += queue.1;
    }
    Counted {
        rx_frames: rx.frames,
        rx_bytes: rx.bytes,
        rx_batches: rx.batches,
        rx_calls: rx.calls,
        rx_drops: rx.kernel_drops + rx.truncated + rx.malformed,
        tx_frames: tx.frames,
        tx_bytes: tx.bytes,
        tx_calls: tx.calls,
        tx_drops: tx.no_buffers + tx.too_long + tx.invalid + tx.short_write + tx.other_errors,
        tcp_retransmits: outcome.stack.tcp_retransmits,
    }
}

/// Plays a row to its end, within its share of time. `progress` hears how many bytes have been
/// moved. Dropped, it kills the row.
pub(crate) async fn play(trial: Trial, share: Share, progress: impl Fn(u64)) -> Row {
    match try_play(trial, share, progress).await {
        Ok(row) => row,
        Err(error) => Row::failed(trial, format!("the row could not be started: {error}")),
    }
}

async fn try_play(trial: Trial, share: Share, progress: impl Fn(u64)) -> io::Result<Row> {
    let server = Server::start(trial.direction, share.transfer)?;
    let families: Vec<Family> = server.ports.iter().map(|(family, _)| *family).collect();
    let mut process = Process::spawn(trial, share, &server)?;
    let (in_time, told) = process.listen(share.limit, || progress(server.moved())).await?;
    let (status, complaint) = process.finish()?;
    let (served, server_fault) = server.finish();

    let mut row = Row::judge(trial, &families, &served, messages(&told));
    // What went wrong first: a row that ended early leaves the other faults behind it.
    if !in_time {
        row.fault =
            Some(format!("it took more than {:.1} s and was ended", share.limit.as_secs_f64()));
    } else if !status.success() {
        row.fault = Some(if complaint.is_empty() { status.to_string() } else { complaint });
    } else if let Some(fault) = server_fault {
        row.fault = Some(fault);
    }
    Ok(row)
}

/// A running row. Dropped, it is killed and waited for.
struct Process(Child);

impl Process {
    fn spawn(trial: Trial, share: Share, server: &Server) -> io::Result<Self> {
        let port = |wanted| {
            let mut ports = server.ports.iter();
            ports.find(|(family, _)| *family == wanted).map(|(_, port)| *port)
        };
        let client = ClientArgs {
            direction: trial.direction,
            millis: u64::try_from(share.transfer.as_millis()).unwrap_or(u64::MAX),
            ipv4_port: port(Family::V4).unwrap_or_default(),
            ipv6_port: port(Family::V6),
        };
        let child = Command::new(MYSELF)
            .arg0("fdlink")
            .arg("demo-row")
            .arg(format!("--mode={}", trial.mode))
            .arg(format!("--mtu={}", trial.mtu))
            .arg(format!("--parent={}", std::process::id()))
            .args(client.typed())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is the demo's to hear.
            .process_group(0)
            .spawn()?;
        Ok(Self(child))
    }

    /// Hears what is told until it and those to its right have ended, which then let go of the
    /// pipe; false if they had to be killed.
    async fn listen(&mut self, limit: Duration, tick: impl Fn()) -> io::Result<(bool, String)> {
        let pipe = self.0.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut pipe = Receiver::from_owned_fd(pipe.into())?;
        let mut told = Vec::new();
        let in_time = {
            let mut end = pin!(pipe.read_to_end(&mut told));
            let mut limit = pin!(sleep(limit));
            let mut ticks = interval(TICK);
            loop {
                tokio::select! {
                    end = &mut end => break end.map(|_| true)?,
                    () = &mut limit => break false,
                    _ = ticks.tick() => tick(),
                }
            }
        };
        if !in_time {
            self.0.kill()?;
            // Its end is the end of the others, but not in the same moment.
            let _ = timeout(LAST_WORDS, pipe.read_to_end(&mut told)).await;
        }
        Ok((in_time, String::from_utf8_lossy(&told).into_owned()))
    }

    /// How it ended, and what it complained of.
    fn finish(mut self) -> io::Result<(ExitStatus, String)> {
        let status = self.0.wait()?;
        let mut complaint = String::new();
        if let Some(mut pipe) = self.0.stderr.take() {
            pipe.read_to_string(&mut complaint)?;
        }
        Ok((status, first_complaint(&complaint)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both do nothing to a child that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What was told; lines that are not ours are nothing to us.
fn messages(told: &str) -> Vec<Message> {
    told.as_bytes().lines().filter_map(|line| serde_json::from_str(&line.ok()?).ok()).collect()
}

/// The first complaint, with its hint, without our name before it: what comes later follows from
/// it.
fn first_complaint(text: &str) -> String {
    let text = text.trim();
    let text = text.strip_prefix("fdlink: ").unwrap_or(text);
    text.split("\nfdlink: ").next().unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_is_the_cause() {
        let text = "fdlink: client, IPv6: refused\n  hint: try\nfdlink: status 125\n";
        assert_eq!(first_complaint(text), "client, IPv6: refused\n  hint: try");
        assert_eq!(first_complaint("\n"), "");
    }

    #[test]
    fn only_messages_are_read() {
        let message = serde_json::to_string(&Message::Counted(Counted::default())).unwrap();
        assert_eq!(messages(&format!("noise\n{message}\n{{}}\n")).len(), 1);
    }
}
