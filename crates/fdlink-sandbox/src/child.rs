//! The order of the set-up: what init does from its first instruction until it is ready.
//!
//! # Theory of operation
//!
//! The child is born in new user, PID, mount and network namespaces (one clone), with every
//! capability over them and nothing mapped. The order below is not free:
//!
//! 1. tied to P (`PDEATHSIG`), then checked that P was still there: the signal is only sent to
//!    those who asked before. Later steps clear no death signal: the kernel does that when ids
//!    change or capabilities grow (kernel/cred.c, commit_creds), and here they only shrink.
//! 2. ids mapped; before that every file access is made as the overflow user.
//! 3. mounts cut off from the host, /proc fresh: later steps write below /proc.
//! 4. the network, which makes a second network namespace and moves in.
//! 5. sysfs, which shows the network namespace of whoever mounts it: after 4.
//! 6. resolv.conf, then everything nosuid.
//! 7. capabilities given up, then non-dumpable, so that the command, having the same user id, can
//!    neither trace init nor open its descriptors.
//! 8. the descriptors go to P, the copies here are closed.

use std::{env, ffi::CString, os::fd::AsFd, path::PathBuf};

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal},
};

use crate::{
    Config, Error, Step,
    control::{Control, ToParent},
    error::{At, Failure},
    init, mounts, network, privileges, resolv,
    sys::{
        descriptors,
        process::Copied,
        signal::{self, ChildSignal},
    },
};

/// Everything P knows that init needs.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) config: &'a Config,
    pub(crate) arguments: Vec<CString>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Where the command starts; `None` where it has been deleted.
    pub(crate) directory: Option<PathBuf>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(config: &'a Config) -> Result<Self, Error> {
        config.check()?;
        Ok(Self {
            config,
            arguments: config.arguments()?,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            directory: env::current_dir().ok(),
        })
    }
}

/// All of init's life. What it returns is its exit status, which nobody reads: what P needs to know
/// goes over the control socket.
pub(crate) fn run(plan: &Plan<'_>, control: &Control, copied: &Copied) -> i32 {
    descriptors::close_inherited(copied, control.as_fd());
    match set_up(plan, control, copied) {
        Ok(children) => init::supervise(plan, control, copied, &children),
        Err(failure) => {
            // If P cannot be told it is gone, and there is nothing left to do either way.
            let _ = control.tell_parent(&ToParent::Failed(failure));
            1
        }
    }
}

fn set_up(plan: &Plan<'_>, control: &Control, copied: &Copied) -> Result<ChildSignal, Failure> {
    let config = plan.config;
    let mut notes = Vec::new();

    set_parent_process_death_signal(Some(Signal::KILL)).at(Step::DeathSignal)?;
    if control.is_hung_up() {
        return Err(Failure { step: Step::DeathSignal, errno: Errno::PIPE });
    }
    signal::block_all(copied).at(Step::Signals)?;
    signal::keep_children(copied).at(Step::Signals)?;
    let children = ChildSignal::new().at(Step::Signals)?;

    privileges::map_ids(plan)?;
    mounts::cut_off()?;
    mounts::fresh_proc(&mut notes);
    let descriptors = network::set_up(config, plan.mapped_gid(), copied, &mut notes)?;
    mounts::fresh_sys(&mut notes);
    resolv::set_up(&config.resolvers, &mut notes);
    if !config.root {
        mounts::no_set_user_id(&mut notes);
    }
    if let Some(directory) = &plan.directory {
        // The directory may lie below something that was just mounted over; where it does not,
        // this changes nothing, and where it is not reachable by name, the old one stays.
        let _ = env::set_current_dir(directory);
    }
    if !config.root {
        privileges::give_up()?;
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Step::Capabilities)?;

    for note in notes {
        control.tell_parent(&ToParent::Note(note)).at(Step::SendDescriptors)?;
    }
    control.tell_parent(&ToParent::Ready(descriptors)).at(Step::SendDescriptors)?;
    Ok(children)
}
