//! Watching over a running command.
//!
//! # Theory of operation
//!
//! Besides the command's own end, the link can close under the stack, or init be killed; both end
//! the session, and the command with it.
//!
//! Signals that a process sent to us alone go on to the command. What the terminal sends goes to
//! the whole foreground process group, which the command is in: it only must not end us before it
//! has ended the command. The kernel says which is which (`si_code`).
//!
//! When the command has ended, its connections may still have bytes here that the host has not
//! taken: they get a moment ([`drain`]). The command's interface goes with its namespace, that
//! closes the link, and every connection ends when it has given away what it had.

use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::{Duration, Instant};

use fdlink::Closed;
use fdlink_sandbox::{Event, Exit, Sandbox};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout_at};

use crate::failure::{Failure, OUR_FAILURE};
use crate::outbound::Outbound;
use crate::sys::signal::Signals;

/// How long [`drain`] waits for the next byte to move.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
/// How often it looks.
const DRAIN_STEP: Duration = Duration::from_millis(2);
/// How long init may take to tell why the link has closed: it comes at once, but on another
/// descriptor.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The command ended.
    Exited(Exit),
    /// init was killed.
    InitKilled,
    /// The link closed, or the stack's driver failed.
    LinkClosed(String),
    /// The command could not be executed.
    NotExecuted {
        /// Why.
        error: io::Error,
        /// The exit status that shells give for it.
        code: u8,
    },
}

impl Ending {
    /// The exit status to end with.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Exited(exit) => exit.code(),
            // As shells say "killed".
            Self::InitKilled => 128 + 9,
            Self::LinkClosed(_) => OUR_FAILURE,
            Self::NotExecuted { code, .. } => *code,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(Exit::Code(code)) => write!(f, "the command ended with status {code}"),
            Self::Exited(Exit::Signal(signal)) => {
                write!(f, "the command was ended by signal {signal}")
            }
            Self::InitKilled => f.write_str("the sandbox was killed"),
            Self::LinkClosed(why) => write!(f, "the command's link closed: {why}"),
            Self::NotExecuted { error, .. } => {
                write!(f, "the command could not be executed: {error}")
            }
        }
    }
}

/// What is waited for, beside the stack.
#[derive(Debug)]
pub(super) struct Watched {
    /// The sandbox's control socket.
    pub(super) control: AsyncFd<OwnedFd>,
    /// The signals of this process.
    pub(super) signals: AsyncFd<OwnedFd>,
}

/// Waits for the end, whichever comes first.
pub(super) async fn supervise(
    sandbox: &mut Sandbox,
    signals: &Signals,
    watched: &Watched,
    mut driver: JoinHandle<io::Result<Closed>>,
    beside: impl Future,
) -> Result<Ending, Failure> {
    let mut beside = pin!(async {
        beside.await;
        pending::<()>().await;
    });
    loop {
        tokio::select! {
            biased;
            ready = watched.control.readable() => {
                let mut ready = ready.map_err(|error| unheard(&error))?;
                match hear(sandbox)? {
                    Some(ending) => return Ok(ending),
                    None => ready.clear_ready(),
                }
            }
            ready = watched.signals.readable() => {
                let mut ready = ready.map_err(|error| unheard(&error))?;
                if !forward_signal(sandbox, signals)? {
                    ready.clear_ready();
                }
            }
            result = &mut driver => return last_words(sandbox, &watched.control, result).await,
            () = &mut beside => {}
        }
    }
}

/// The link has closed. The command's end takes its link away: then that is what has happened.
async fn last_words(
    sandbox: &mut Sandbox,
    control: &AsyncFd<OwnedFd>,
    driver: Result<io::Result<Closed>, tokio::task::JoinError>,
) -> Result<Ending, Failure> {
    let until = tokio::time::Instant::now() + LAST_WORDS;
    while let Ok(ready) = timeout_at(until, control.readable()).await {
        let mut ready = ready.map_err(|error| unheard(&error))?;
        match hear(sandbox)? {
            Some(ending) => return Ok(ending),
            None => ready.clear_ready(),
        }
    }
    Ok(Ending::LinkClosed(match driver {
        Ok(Ok(why)) => why.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    }))
}

/// What the sandbox has to say, if it has.
fn hear(sandbox: &mut Sandbox) -> Result<Option<Ending>, Failure> {
    Ok(match sandbox.next_event().map_err(|error| unheard(&error))? {
        None => None,
        Some(Event::Exited(exit)) => Some(Ending::Exited(exit)),
        Some(Event::ExecFailed { error, code }) => Some(Ending::NotExecuted { error, code }),
        // Nothing else can be heard of it.
        Some(_) => Some(Ending::InitKilled),
    })
}

/// Passes on a signal that has come; false where none has.
fn forward_signal(sandbox: &Sandbox, signals: &Signals) -> Result<bool, Failure> {
    let received = signals
        .next()
        .map_err(|error| Failure::new("a signal could not be read").because(&error))?;
    if let Some(signal) = received.filter(|signal| !signal.by_kernel) {
        // Fails where init is gone, which is heard of otherwise.
        let _ = sandbox.forward_signal(signal.number);
    }
    Ok(received.is_some())
}

fn unheard(error: &io::Error) -> Failure {
    Failure::new("the sandbox could not be heard").because(error)
}

/// Waits until every connection has given the host what it had, as long as bytes move.
pub(super) async fn drain(outbound: &Outbound) {
    let mut moved = (outbound.stats().tcp_bytes_out, Instant::now());
    while outbound.is_sending() && moved.1.elapsed() < DRAIN_PATIENCE {
        sleep(DRAIN_STEP).await;
        let bytes = outbound.stats().tcp_bytes_out;
        if bytes != moved.0 {
            moved = (bytes, Instant::now());
        }
    }
}
