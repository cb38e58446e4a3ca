//! What a descriptor is, read back without changing it, and whether it may be used at all.
//!
//! What is not here: what is particular to a kind (`link/{packet,socket,tun}`), and whether an
//! option goes with it (`link/plan`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::batch::LinkHeader;
use crate::error::SetupError;
use crate::io::cooked::Cooked;
use crate::link::{LinkKind, socket, tun};
use crate::options::LinkOptions;
use crate::sys::descriptor::{self, Object};

/// What a look at a descriptor found. Nothing has been changed by looking.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) kind: LinkKind,
    /// The vnet header that is there, in bytes; 0 for none.
    pub(super) vnet_header: usize,
    pub(super) link_header: LinkHeader,
    /// The interface behind it.
    pub(super) interface: Option<String>,
    /// That interface's index, on AF_PACKET; else 0.
    pub(super) interface_index: libc::c_int,
    /// The network namespace that it is in, on AF_PACKET where the kernel tells.
    pub(super) namespace: Option<u64>,
    /// What a cooked socket is bound to; `None` on everything else.
    pub(super) cooked: Option<Cooked>,
    /// The interface's MTU, where the descriptor tells.
    pub(super) mtu: Option<u32>,
    /// Whether super-frames of UDP may be sent, where looking tells.
    pub(super) uso: bool,
}

impl Found {
    /// A socket between two programs. What they agreed on means all that it can.
    pub(super) fn plain_socket(
        kind: LinkKind,
        link_header: LinkHeader,
        options: &LinkOptions,
    ) -> Self {
        Self {
            kind,
            vnet_header: 0,
            link_header,
            interface: None,
            interface_index: 0,
            namespace: None,
            cooked: None,
            mtu: None,
            uso: options.in_band_vnet_header.is_some(),
        }
    }
}

/// A failed system call.
pub(super) fn call(call: &'static str, subject: String, source: io::Error) -> SetupError {
    SetupError::Call { call, subject, source }
}

/// Reads back what the descriptors are.
pub(super) fn all(fds: &[BorrowedFd<'_>], options: &LinkOptions) -> Result<Vec<Found>, SetupError> {
    let mut found = Vec::with_capacity(fds.len());
    let mut objects = Vec::with_capacity(fds.len());
    for (index, fd) in fds.iter().enumerate() {
        let object = object(index, *fd)?;
        found.push(one(index, *fd, object, options)?);
        objects.push(object);
    }
    all_different(fds, &objects)?;
    Ok(found)
}

const EXPECTED: &str =
    "a datagram or seqpacket socket, an AF_PACKET socket, or a TUN or TAP device";

fn wrong(index: usize, found: String) -> SetupError {
    SetupError::WrongKind { index, found, expected: EXPECTED }
}

fn object(index: usize, fd: BorrowedFd<'_>) -> Result<Object, SetupError> {
    descriptor::object(fd).map_err(|error| match error.raw_os_error() {
        Some(libc::EBADF) => {
            wrong(index, format!("the number {}, which is closed", fd.as_raw_fd()))
        }
        _ => call("fstat", format!("descriptor {index}"), error),
    })
}

fn one(
    index: usize,
    fd: BorrowedFd<'_>,
    object: Object,
    options: &LinkOptions,
) -> Result<Found, SetupError> {
    let found = match object.file_type {
        libc::S_IFSOCK => return socket::examine(index, fd, options),
        libc::S_IFCHR => return tun::examine(index, fd),
        libc::S_IFIFO => "a pipe",
        libc::S_IFREG => "a file",
        libc::S_IFDIR => "a directory",
        libc::S_IFBLK => "a block device",
        _ => return Err(wrong(index, of_no_kind(fd))),
    };
    Err(wrong(index, found.to_owned()))
}

/// What has no kind for fstat has a name in /proc: `anon_inode:[eventpoll]`.
fn of_no_kind(fd: BorrowedFd<'_>) -> String {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_or_else(
        |_| "of an unknown kind".to_owned(),
        |name| format!("of a kind that keeps no frames ({})", name.display()),
    )
}

/// Two queues on one descriptor would take each other's frames, and put back each other's changes.
fn all_different(fds: &[BorrowedFd<'_>], objects: &[Object]) -> Result<(), SetupError> {
    for (index, object) in objects.iter().enumerate() {
        for earlier in 0..index {
            // A socket is one object for each socket; the node of a device is one for all devices.
            let same = objects[earlier] == *object
                && (object.file_type == libc::S_IFSOCK
                    || descriptor::same_description(fds[earlier], fds[index]));
            if same {
                return Err(SetupError::WrongKind {
                    index,
                    found: format!("the same as descriptor {earlier}"),
                    expected: "descriptors that are no duplicates of each other",
                });
            }
        }
    }
    Ok(())
}
