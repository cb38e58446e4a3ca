//! A command in namespaces of its own.

// UNSAFETY: namespaces are changed between fork and exec, and `pre_exec` is unsafe to use.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the command start in a fresh network namespace; without privilege, in a fresh user
/// namespace as well, as its root.
pub(crate) fn unshare_network(command: &mut Command) {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut flags = libc::CLONE_NEWNET;
    let mut files = Vec::new();
    if !uid.is_root() {
        flags |= libc::CLONE_NEWUSER;
        files.push((c"/proc/self/setgroups", "deny".to_owned()));
        files.push((c"/proc/self/uid_map", format!("0 {} 1", uid.as_raw())));
        files.push((c"/proc/self/gid_map", format!("0 {} 1", gid.as_raw())));
    }
    let prepare = move || {
        // SAFETY: unshare takes an integer; after fork this process has one thread, as
        // CLONE_NEWUSER requires.
        if unsafe { libc::unshare(flags) } == -1 {
            return Err(io::Error::last_os_error());
        }
        for (path, text) in &files {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            let file = rustix::fs::open(*path, flags, rustix::fs::Mode::empty())?;
            rustix::io::write(file, text.as_bytes())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls may be made: `prepare` makes
    // system calls on data that was built before the fork, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Moves the calling thread, alone, into a fresh network namespace.
pub(crate) fn unshare_this_thread() -> io::Result<()> {
    // SAFETY: unshare takes an integer; CLONE_NEWNET concerns only the calling thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
