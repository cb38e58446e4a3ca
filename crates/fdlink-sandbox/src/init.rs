//! PID 1 of the sandbox: starts the command, reaps, forwards signals, reports, ends.
//!
//! # Theory of operation
//!
//! One loop over two descriptors: the control socket (P's orders, or its hang-up) and a signalfd
//! for SIGCHLD. Everything else is blocked, and the kernel ignores for PID 1 what it has no handler
//! for, so a Ctrl-C, which the terminal sends to init as well, does nothing here: the command, in
//! the same process group, got it too.
//!
//! init ends when the command has ended (and, unless a signal ended it, what it wrote to its
//! connections is delivered: `linger.rs`) or when P hangs up; either way the kernel then kills every
//! process of the PID namespace and only then lets P reap init (kernel/pid_namespace.c,
//! zap_pid_ns_processes).

use std::{
    env,
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus, wait},
};

use crate::{
    child::Plan,
    control::{Control, ToInit, ToParent},
    linger,
    sandbox::Exit,
    sys::{
        process::{self, Copied},
        signal::{self, ChildSignal},
    },
};

/// Runs until the command or P has ended.
pub(crate) fn supervise(
    plan: &Plan<'_>,
    control: &Control,
    copied: &Copied,
    children: &ChildSignal,
) -> i32 {
    let mut command = None;
    loop {
        let mut ready = [PollFd::new(control, PollFlags::IN), PollFd::new(children, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return 1,
        }
        let [orders, signals] = ready.map(|r| !r.revents().is_empty());
        if orders {
            match control.hear_parent() {
                Ok(Some(ToInit::Go)) if command.is_none() => {
                    command = start_command(plan, control, copied);
                }
                Ok(Some(ToInit::Signal(signal))) => {
                    // ESRCH cannot be: the command is not reaped until the lines below. EPERM can,
                    // when it has become somebody else with `root`; P asked, and that is the answer.
                    if let Some(pid) = command {
                        let _ = process::kill(pid, signal);
                    }
                }
                Ok(Some(ToInit::Go)) => {}
                // P is gone, or not to be understood.
                Ok(None) | Err(_) => return 0,
            }
        }
        if signals {
            children.clear();
            if let Some(exit) = reap(command) {
                if matches!(exit, Exit::Code(_)) {
                    linger::until_delivered(control);
                }
                let _ = control.tell_parent(&ToParent::Exited(exit));
                return 0;
            }
        }
    }
}

/// Takes every child that has ended; how the command did, if it is among them. Orphans of the
/// namespace become init's children, and nobody asks how they ended.
fn reap(command: Option<Pid>) -> Option<Exit> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if Some(pid) == command {
            ended = exit_of(status);
        }
    }
    ended
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    let code = status.exit_status().map(Exit::Code);
    code.or_else(|| status.terminating_signal().map(Exit::Signal))
}

fn start_command(plan: &Plan<'_>, control: &Control, copied: &Copied) -> Option<Pid> {
    let become_command = |copied: &Copied| {
        let errno = match signal::reset_for_exec(copied) {
            Ok(()) => exec(plan, copied),
            Err(error) => Errno::from_io_error(&error).unwrap_or(Errno::INVAL),
        };
        let _ = control.tell_parent(&ToParent::NoExec(errno));
        Exit::of_failed_exec(errno.raw_os_error())
    };
    match process::fork(copied, become_command) {
        Ok(pid) => Some(pid),
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
            let _ = control.tell_parent(&ToParent::NoExec(errno));
            None
        }
    }
}

fn exec(plan: &Plan<'_>, copied: &Copied) -> Errno {
    let error = process::exec(copied, &plan.arguments);
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
    // execvp says EACCES when any directory of PATH could not be searched, be the command nowhere
    // at all. Shells call that "not found", and so do we.
    match plan.arguments.first() {
        Some(name) if errno == Errno::ACCESS && !is_in_path(name) => Errno::NOENT,
        _ => errno,
    }
}

fn is_in_path(name: &CString) -> bool {
    let name = OsStr::from_bytes(name.as_bytes());
    if name.as_bytes().contains(&b'/') {
        return true;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| Path::new(&directory).join(name).exists())
}
