//! /proc and /sys of the new namespaces, and mount flags.
//!
//! # Theory of operation
//!
//! A mount namespace made together with a user namespace is a copy that may add mounts, and flags
//! that restrict, but not take away what it got (mount_namespaces(7)). Nothing of it is seen
//! outside. What the host mounts or unmounts later still arrives (`MS_SLAVE`): automounted homes
//! keep working, and a disk that the host unmounts is not held.
//!
//! A fresh proc or sysfs is refused with EPERM where the one in place is partly hidden by other
//! mounts, as in most containers (fs/namespace.c, mount_too_revealing). Then the host's stays, and
//! a note says so.

use std::{io, path::Path};

use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
        move_mount, open_tree,
    },
};

use crate::{
    Step,
    error::{At, Failure},
    sys::mount::make_nosuid,
};

/// What no file of ours needs.
pub(crate) const PLAIN: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A copy of the mounts at a path, to be put elsewhere. Recursive, because the kernel refuses
/// (EINVAL) to copy a mount without those that hide parts of it.
pub(crate) const COPY: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_RECURSIVE);

/// No mount made from here on reaches the host.
pub(crate) fn cut_off() -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .at(Step::MountPropagation)
}

/// A proc that shows the new PID namespace.
pub(crate) fn fresh_proc(notes: &mut Vec<String>) {
    if let Err(error) = mount("proc", "/proc", "proc", PLAIN, None) {
        notes.push(format!(
            "/proc could not be mounted ({}): the command sees the host's process numbers there",
            io::Error::from(error)
        ));
    }
}

/// A sysfs that shows the new network namespace, with the host's control groups, which a sysfs
/// does not bring along and which programs read their limits from.
pub(crate) fn fresh_sys(notes: &mut Vec<String>) {
    const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
    if !Path::new("/sys/class/net").exists() {
        return;
    }
    let control_groups = open_tree(CWD, CONTROL_GROUPS, COPY);
    if let Err(error) = mount("sysfs", "/sys", "sysfs", PLAIN, None) {
        notes.push(format!(
            "/sys could not be mounted ({}): the command sees the host's interfaces there",
            io::Error::from(error)
        ));
        return;
    }
    if let Ok(groups) = control_groups {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        if let Err(error) = move_mount(groups, "", CWD, CONTROL_GROUPS, flags) {
            let error = io::Error::from(error);
            notes.push(format!("{CONTROL_GROUPS} could not be put back: {error}"));
        }
    }
}

/// Has the kernel ignore set-user-id bits and file capabilities everywhere. Without this the
/// command could not even execute a file with capabilities, `ping` for one: with an empty bounding
/// set that is EPERM (security/commoncap.c, bprm_caps_from_vfs_caps).
pub(crate) fn no_set_user_id(notes: &mut Vec<String>) {
    if let Err(error) = make_nosuid(c"/") {
        notes.push(format!(
            "the mounts could not be made nosuid ({error}): programs with file capabilities, such \
             as ping, may be refused"
        ));
    }
}
