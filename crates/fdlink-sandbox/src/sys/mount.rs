//! `mount_setattr`, which rustix does not have.

// UNSAFETY: the raw call takes a path and a structure by pointer.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

use std::{ffi::CStr, io};

/// `struct mount_attr` of linux/mount.h, version 0.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes the mount at `path`, and every mount below it, nosuid. Linux 5.12.
pub(crate) fn make_nosuid(path: &CStr) -> io::Result<()> {
    const MOUNT_ATTR_NOSUID: u64 = 2;
    let attr = MountAttr { attr_set: MOUNT_ATTR_NOSUID, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` is NUL-terminated, `attr` is a version 0 mount_attr of the size given, both
    // live across the call, and the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
