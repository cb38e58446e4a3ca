//! Ids going in, capabilities going out.
//!
//! # Theory of operation
//!
//! The first process of a user namespace may map one id by itself: its own effective one, to
//! itself or to 0 (user_namespaces(7)); a group only once `setgroups` is denied. With the user id
//! mapped to itself the command is who it was, files and all.
//!
//! init holds every capability over the new namespaces. They are taken from it before the command
//! is started, so that no later step can forget to: all sets emptied, the bounding set too, and the
//! rules by which user id 0 gets them back on exec switched off and locked (`SECBIT_NOROOT`; a real
//! root keeps user id 0). The bounding set alone would make exec of a file with capabilities fail
//! with EPERM (`ping` has some); [`mounts::no_set_user_id`](crate::mounts::no_set_user_id) makes
//! the kernel ignore them instead.
//!
//! A command that makes user namespaces of its own gets capabilities over those, and over nothing
//! that belongs to this one: its link and routes stay as they are.

use std::fs;

use rustix::{
    io::Errno,
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    },
};

use crate::{
    Step,
    child::Plan,
    error::{At, Failure},
};

impl Plan<'_> {
    /// The command's user id inside.
    pub(crate) fn mapped_uid(&self) -> u32 {
        if self.config.root { 0 } else { self.uid }
    }

    /// The command's group id inside.
    pub(crate) fn mapped_gid(&self) -> u32 {
        if self.config.root { 0 } else { self.gid }
    }
}

/// Maps the caller's user and group.
pub(crate) fn map_ids(plan: &Plan<'_>) -> Result<(), Failure> {
    fs::write("/proc/self/setgroups", "deny").at(Step::SetGroups)?;
    let line = format!("{} {} 1\n", plan.mapped_gid(), plan.gid);
    fs::write("/proc/self/gid_map", line).at(Step::GidMap)?;
    let line = format!("{} {} 1\n", plan.mapped_uid(), plan.uid);
    fs::write("/proc/self/uid_map", line).at(Step::UidMap)
}

/// Gives up every capability, for good.
pub(crate) fn give_up() -> Result<(), Failure> {
    // A kernel from before ambient capabilities (4.3) has none to clear.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(Failure { step: Step::Capabilities, errno }),
    }
    set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
    .at(Step::Capabilities)?;
    empty_bounding_set().at(Step::Capabilities)?;
    let nothing = CapabilitySet::empty();
    let sets = CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing };
    set_capabilities(None, sets).at(Step::Capabilities)
}

fn empty_bounding_set() -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Past the last capability this kernel has.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
