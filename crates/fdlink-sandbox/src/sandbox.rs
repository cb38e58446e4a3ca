//! P's side: starting, supervising, ending.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};

use crate::{
    Config, Error,
    child::{self, Plan},
    control::{Control, ToInit, ToParent},
    sys::process::{self, Cloned},
};

/// Set-up takes some 50 ms; only a host that is out of memory, or that loads a kernel module for
/// it, is anywhere near this.
const SETUP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long dropping waits for a killed namespace to be gone. A process in it that the kernel
/// cannot kill (in uninterruptible sleep on a dead NFS server) must not hang P as well.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The namespaces a child is born in. The second network namespace comes later.
const NAMESPACES: i32 =
    libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET;

/// A command in namespaces of its own, with init in between; killed and reaped when dropped.
#[derive(Debug)]
pub struct Sandbox {
    control: Control,
    init: Init,
    descriptors: Vec<OwnedFd>,
    notes: Vec<String>,
    state: State,
}

/// How far the command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Started,
    Ended,
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status (0 to 255).
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// As shells put it: the status, or 128 + the signal.
    #[must_use]
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        };
        u8::try_from(code & 0xff).unwrap_or(u8::MAX)
    }

    /// As shells put it: 127 when there is no such command, 126 when there is, but it cannot be
    /// executed.
    pub(crate) fn of_failed_exec(errno: i32) -> i32 {
        if errno == libc::ENOENT { 127 } else { 126 }
    }
}

/// Something that happened in the sandbox. Each of these is the last one.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The command ended, and with it whatever it had left running.
    Exited(Exit),
    /// The command could not be executed.
    ExecFailed {
        /// Why.
        error: io::Error,
        /// What a shell would exit with: 127 if there is no such command, else 126.
        code: u8,
    },
    /// init was killed, and with it everything in the sandbox.
    InitGone,
}

impl Sandbox {
    /// Makes the namespaces, the link, its addresses and routes, and the mounts. The command is
    /// not started yet.
    ///
    /// **Call it while the process has one thread**: before an async runtime, before anything that
    /// starts threads. And call it on a thread that lives as long as the sandbox shall: the kernel
    /// ties init to the thread.
    ///
    /// # Errors
    ///
    /// [`Error::Threads`] if there are threads already; otherwise what could not be done, see
    /// [`Error`]. Nothing is left behind then.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let plan = Plan::new(config)?;
        let (threads, single) = process::count_threads().map_err(Error::CountThreads)?;
        let Some(single) = single else { return Err(Error::Threads { threads }) };
        let (ours, theirs) = Control::pair().map_err(Error::ControlSocket)?;
        let init = process::clone(&single, NAMESPACES, |copied| child::run(&plan, &theirs, copied))
            .map_err(Error::Namespaces)?;
        drop(theirs);
        let mut sandbox = Self {
            control: ours,
            init: Init(init),
            descriptors: Vec::new(),
            notes: Vec::new(),
            state: State::Ready,
        };
        sandbox.wait_until_ready()?;
        let (expected, received) = (config.queues, sandbox.descriptors.len());
        if expected != received {
            return Err(Error::Descriptors { expected, received });
        }
        sandbox.control.set_nonblocking().map_err(Error::ControlSocket)?;
        Ok(sandbox)
    }

    /// The outer end of the link, one descriptor per queue; empty when taken before.
    ///
    /// Packet sockets are `SOCK_RAW`, bound with `ETH_P_ALL`, and otherwise as the kernel makes
    /// them: virtio-net header, rings, fanout and non-blocking mode are set by whoever takes them.
    /// TAP descriptors have `IFF_VNET_HDR` and `IFF_NO_PI`.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// Has init start the command. Once; a second call is an error.
    ///
    /// # Errors
    ///
    /// `EPIPE` when init is gone.
    pub fn run_command(&mut self) -> io::Result<()> {
        if self.state != State::Ready {
            return Err(Errno::ALREADY.into());
        }
        self.control.tell_init(ToInit::Go)?;
        self.state = State::Started;
        Ok(())
    }

    /// Readable when there is an event. For `AsyncFd` and the like; it is non-blocking already.
    #[must_use]
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// The event, if there is one; `None` if it would have to be waited for. Every event is the
    /// last; after it this returns [`Event::InitGone`].
    ///
    /// # Errors
    ///
    /// What the kernel says about the control socket.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        if self.state == State::Ended {
            return Ok(Some(Event::InitGone));
        }
        let event = loop {
            match self.control.hear_init() {
                Ok(Some(ToParent::Exited(exit))) => break Event::Exited(exit),
                Ok(Some(ToParent::NoExec(errno))) => {
                    let errno = errno.raw_os_error();
                    let code = u8::try_from(Exit::of_failed_exec(errno)).unwrap_or(126);
                    break Event::ExecFailed { error: io::Error::from_raw_os_error(errno), code };
                }
                Ok(Some(ToParent::Note(note))) => self.notes.push(note),
                Ok(Some(ToParent::Ready(_) | ToParent::Failed(_))) => {}
                Ok(None) => break Event::InitGone,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        };
        self.state = State::Ended;
        Ok(Some(event))
    }

    /// Waits for the event.
    ///
    /// # Errors
    ///
    /// As [`Sandbox::next_event`].
    pub fn wait_event(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.next_event()? {
                return Ok(event);
            }
            wait_readable(self.control(), None)?;
        }
    }

    /// Has init send a signal to the command.
    ///
    /// Only for signals that were sent to P alone. What the terminal sends (SIGINT by Ctrl-C,
    /// SIGQUIT, SIGTSTP, SIGWINCH, SIGHUP when it closes) goes to the whole foreground process
    /// group, which the command is in: forwarding that too would deliver it twice. A handler with
    /// `SA_SIGINFO`, or a signalfd, tells them apart by `si_code`: `SI_KERNEL` is the terminal,
    /// `SI_USER` a process. A simple rule that holds without it: forward SIGTERM, SIGUSR1 and
    /// SIGUSR2 always; SIGINT, SIGQUIT and SIGHUP only when standard input is no terminal.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` before [`Sandbox::run_command`], `EPIPE` when init is gone.
    pub fn forward_signal(&self, signal: i32) -> io::Result<()> {
        match self.state {
            State::Ready => Err(Errno::NOTCONN.into()),
            State::Ended => Err(Errno::PIPE.into()),
            State::Started => self.control.tell_init(ToInit::Signal(signal)),
        }
    }

    /// What could not be done and was left out, a sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// init's process id, as P sees it.
    #[must_use]
    pub fn init_pid(&self) -> i32 {
        self.init.0.pid.as_raw_nonzero().get()
    }

    /// Kills everything in the sandbox and waits until it is gone; what dropping does.
    pub fn kill(self) {}

    fn wait_until_ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + SETUP_TIMEOUT;
        loop {
            if !wait_readable(self.control(), Some(deadline)).map_err(Error::Receive)? {
                return Err(Error::Timeout(SETUP_TIMEOUT));
            }
            match self.control.hear_init().map_err(Error::Receive)? {
                Some(ToParent::Note(note)) => self.notes.push(note),
                Some(ToParent::Ready(descriptors)) => {
                    self.descriptors = descriptors;
                    return Ok(());
                }
                Some(ToParent::Failed(failure)) => {
                    return Err(Error::Setup { step: failure.step, source: failure.errno.into() });
                }
                Some(ToParent::Exited(_) | ToParent::NoExec(_)) | None => return Err(Error::Gone),
            }
        }
    }
}

/// Waits until `fd` is readable or hung up; false if the deadline came first.
fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timeout = left.map(|l| Timespec {
            tv_sec: i64::try_from(l.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: l.subsec_nanos().into(),
        });
        let mut ready = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(0) if left.is_some_and(|l| l.is_zero()) => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// init, killed and reaped when dropped. By its pidfd: where P's parent left SIGCHLD ignored,
/// nothing has to be reaped and the number may be somebody else's by now.
#[derive(Debug)]
struct Init(Cloned);

impl Drop for Init {
    fn drop(&mut self) {
        let pidfd = &self.0.pidfd;
        let _: Result<(), Errno> = pidfd_send_signal(pidfd, Signal::KILL);
        // A pidfd is readable once its process, and for init that means its whole namespace, is
        // dead; then there is something to reap, or (ECHILD) nothing any more.
        if wait_readable(pidfd.as_fd(), Some(Instant::now() + KILL_TIMEOUT)).unwrap_or(false) {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), options);
        }
    }
}
