//! `fdlink demo`: real transfers through endpoint and stack, in every mode, verified, with a table
//! and a chart. No arguments, no privilege, no internet.
//!
//! Each row is a process of its own (`demo/process.rs`); this one has the server, shows progress,
//! and keeps the time.

mod budget;
mod chart;
pub(crate) mod client;
mod place;
pub(crate) mod process;
mod progress;
mod row;
mod server;
mod stream;
mod table;

use std::ffi::CStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use self::budget::Budget;
use self::place::Place;
use self::progress::Progress;
use self::row::{Message, Row, Trial};
use crate::failure::Failure;
use crate::file;

/// The exit status where a row was not verified.
const UNVERIFIED: u8 = 1;
/// Transfers of a row: IPv4, IPv6.
const TRANSFERS: u32 = 2;

/// `fdlink demo`.
#[derive(Args, Debug)]
#[command(
    about = "Show what every mode moves on this machine: verified transfers, a table, a chart"
)]
#[command(long_about = "\
Show what fdlink does on this machine, in less than a minute. It needs no privilege, no internet \
and no arguments.

For each mode (readv, recvmmsg, packet-mmap), at MTU 1500 and 65520, in both directions, a client \
in a sandbox moves data to or from a server on this host's loopback, over IPv4 and then over IPv6. \
The client's TCP is the kernel's, in a network of its own, as under `fdlink run`; everything it \
sends passes the endpoint and the user-space stack. Both ends hash all of it, and the endpoint's \
byte counters must account for it: a row where either is wrong has FAILED.

A table goes to stdout, progress to stderr, and a bar chart to fdlink-demo.svg in this folder.")]
#[command(after_long_help = "\
Examples:
  Everything:
      fdlink demo
  The chart elsewhere:
      fdlink demo --chart /tmp/demo.svg
  The slowest row, by jq:
      fdlink demo --json | jq '.rows | min_by(.transfers[0].gbit_per_second)'

Columns:
  Gbit/s        payload, at the receiver, from the first byte to the last
  MB moved      payload that arrived
  MB linked     bytes of the frames that the endpoint counted in that direction
  resent        TCP segments sent again, by the sandbox's kernel and by the stack
  calls per MB  system calls to receive and to send frames, for each MB moved
  frames/batch  frames for each visit to the kernel (rx: from the sandbox, tx: to it)

A frame has up to 64 KiB at any MTU: segmentation is left to the kernel's offload.

Exit status:
  0 where every row was verified, 1 where one was not, 125 where the demo itself failed")]
pub(crate) struct DemoArgs {
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,

    /// Where the chart goes
    #[arg(long, value_name = "FILE", default_value = "fdlink-demo.svg")]
    chart: PathBuf,

    /// Only so many rows
    #[arg(long, hide = true, value_name = "N")]
    rows: Option<usize>,

    /// Seconds for each transfer
    #[arg(long, hide = true, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "no number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Shows everything; the exit status.
pub(crate) fn run(args: &DemoArgs) -> Result<u8, Failure> {
    let started = Instant::now();
    let mut trials = Trial::all();
    trials.truncate(args.rows.unwrap_or(usize::MAX));
    let place = Place::here();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| Failure::new("the runtime could not be made").because(&error))?;
    let played = runtime.block_on(play_until_signal(&trials, args.seconds))?;
    let rows = match played {
        Played::Whole(rows) => rows,
        Played::Interrupted(signal) => {
            return Err(Failure::new("interrupted").code(128 + signal));
        }
    };
    if let Some(failure) = hopeless(&rows) {
        return Err(failure);
    }
    let chart = draw(&args.chart, &rows, &place);
    print(args, &rows, &place, started.elapsed(), chart.is_ok())?;
    let verified = rows.iter().all(Row::verified);
    match chart {
        Err(failure) if verified => return Err(failure),
        Err(failure) => drop(writeln!(io::stderr(), "{failure}")),
        Ok(()) => {}
    }
    Ok(if verified { 0 } else { UNVERIFIED })
}

/// What became of the rows.
enum Played {
    /// All of them have ended.
    Whole(Vec<Row>),
    /// By this signal.
    Interrupted(u8),
}

async fn play_until_signal(trials: &[Trial], wanted: Option<Duration>) -> Result<Played, Failure> {
    let taken = |error: io::Error| Failure::new("signals could not be taken").because(&error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(taken)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(taken)?;
    let progress = Progress::new(trials.len());
    // Whatever is dropped here ends, and is waited for.
    let played = tokio::select! {
        rows = play(trials, wanted, &progress) => Played::Whole(rows),
        _ = interrupt.recv() => Played::Interrupted(2),
        _ = terminate.recv() => Played::Interrupted(15),
    };
    progress.finish();
    Ok(played)
}

async fn play(trials: &[Trial], wanted: Option<Duration>, progress: &Progress) -> Vec<Row> {
    let mut budget = Budget::new(Instant::now(), wanted);
    let mut rows = Vec::with_capacity(trials.len());
    for (done, &trial) in trials.iter().enumerate() {
        progress.begin(trial);
        let left = u32::try_from(trials.len() - done).unwrap_or(u32::MAX);
        let row = match budget.share(Instant::now(), left, TRANSFERS) {
            None => Row::failed(trial, "there was no time left for it"),
            Some(share) => {
                let began = Instant::now();
                let row = process::play(trial, share, |bytes| progress.moved(trial, bytes)).await;
                budget.learn(began.elapsed(), share, TRANSFERS);
                row
            }
        };
        progress.end(done + 1, &row);
        rows.push(row);
    }
    rows
}

/// Where nothing worked, for one reason, that reason is all there is to say.
fn hopeless(rows: &[Row]) -> Option<Failure> {
    let first = rows.first()?.fault.as_ref()?;
    let same = |row: &Row| row.transfers.is_empty() && row.fault.as_ref() == Some(first);
    rows.iter().all(same).then(|| Failure::new(format!("no row could be run: {first}")))
}

/// Writes the chart, whole or not at all.
fn draw(path: &Path, rows: &[Row], place: &Place) -> Result<(), Failure> {
    let failed = || Failure::new(format!("the chart could not be written to {}", path.display()));
    let picture =
        chart::svg(rows, place).map_err(|error| failed().because(&io::Error::other(error)))?;
    file::replace(path, picture.as_bytes()).map_err(|error| {
        let hint = "run it in a folder that you may write to, or give a place with --chart FILE";
        failed().because(&error).hint(hint.to_owned())
    })
}

/// `--json`.
#[derive(Serialize)]
struct Document<'a> {
    version: &'a str,
    machine: &'a Place,
    rows: &'a [Row],
    verified: bool,
    seconds: f64,
    chart: Option<String>,
}

fn print(
    args: &DemoArgs,
    rows: &[Row],
    place: &Place,
    elapsed: Duration,
    has_chart: bool,
) -> Result<(), Failure> {
    let chart = has_chart.then(|| args.chart.display().to_string());
    let seconds = elapsed.as_secs_f64();
    if args.json {
        let version = env!("CARGO_PKG_VERSION");
        let verified = rows.iter().all(Row::verified);
        let document = Document { version, machine: place, rows, verified, seconds, chart };
        return out(&format!("{}\n", words(serde_json::to_string_pretty(&document))?));
    }
    let verified = rows.iter().filter(|row| row.verified()).count();
    let chart = chart.map(|chart| format!("; chart: {chart}")).unwrap_or_default();
    out(&format!(
        "{place}\n\n{}\n{verified} of {} rows verified in {seconds:.0} s{chart}\n",
        table::table(rows),
        rows.len(),
    ))
}

/// How ps and top name this process: by what was executed, it would be `exe`.
fn show_as(name: &CStr) {
    // It is a name and nothing more.
    let _ = rustix::thread::set_name(name);
}

/// Tells the demo something: a line on standard output.
fn tell(message: &Message) -> Result<(), Failure> {
    out(&format!("{}\n", words(serde_json::to_string(message))?))
}

fn words(json: serde_json::Result<String>) -> Result<String, Failure> {
    json.map_err(|error| Failure::new("the result could not be written as JSON").because(&error))
}

/// Writes to standard output. That nobody wants to read it (any more) is no failure.
fn out(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("standard output could not be written").because(&error))
        }
        _ => Ok(()),
    }
}
