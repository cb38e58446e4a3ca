//! A descriptor that a link uses, and what was changed on what it refers to. Others may share that,
//! so a change is remembered together with what was there before, and put back when the descriptor
//! goes, unless the link keeps it.
//!
//! What is not here: which changes a link makes and when (`link/`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::options::BpfInstruction;
use crate::sys::ring::OnSocket;
use crate::sys::{descriptor, filter, socket, tun};

/// A descriptor, and what is to be put back on it.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// Always there, but for the moment in which `into_fd` consumes the rest.
    fd: Option<OwnedFd>,
    changes: Vec<Change>,
}

/// A filter on the device behind several descriptors, which goes with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct DeviceFilter(Arc<()>);

/// What was there before a change.
#[derive(Debug)]
enum Change {
    Buffer {
        name: libc::c_int,
        force: libc::c_int,
        value: libc::c_int,
    },
    /// Nobody tells which filter the device had.
    DeviceFilter(DeviceFilter),
    /// Empty: none.
    Filter(Vec<BpfInstruction>),
    Flags(libc::c_int),
    Option {
        level: libc::c_int,
        name: libc::c_int,
        value: libc::c_int,
    },
    Promiscuous {
        interface: libc::c_int,
    },
    Ring(OnSocket),
}

impl Descriptor {
    /// Makes it non-blocking, and closed on exec: the latter is a property of this number alone.
    pub(crate) fn set_nonblocking(&mut self) -> io::Result<()> {
        descriptor::set_close_on_exec(self.as_fd())?;
        let old = descriptor::status_flags(self.as_fd())?;
        if old & libc::O_NONBLOCK == 0 {
            descriptor::set_status_flags(self.as_fd(), old | libc::O_NONBLOCK)?;
            self.changes.push(Change::Flags(old));
        }
        Ok(())
    }

    /// Sets a socket option that is an integer, if it has another value now.
    pub(crate) fn set_option(
        &mut self,
        (level, name): (libc::c_int, libc::c_int),
        value: libc::c_int,
    ) -> io::Result<()> {
        let old = socket::option(self.as_fd(), level, name)?;
        if old != value {
            socket::set_option(self.as_fd(), level, name, value)?;
            self.changes.push(Change::Option { level, name, value: old });
        }
        Ok(())
    }

    /// Remembers what a buffer that is made larger elsewhere is to be set to, by its option and the
    /// option that exceeds limits (SO_RCVBUF and SO_RCVBUFFORCE, or those for sending).
    pub(crate) fn remember_buffer(
        &mut self,
        (name, force): (libc::c_int, libc::c_int),
        value: libc::c_int,
    ) {
        self.changes.push(Change::Buffer { name, force, value });
    }

    /// Remembers that there is a ring now, which can only be taken off once it is unmapped.
    pub(crate) fn remember_ring(&mut self, ring: OnSocket) {
        self.changes.push(Change::Ring(ring));
    }

    /// Takes off the ring, which must be unmapped.
    pub(crate) fn remove_ring(&mut self) {
        self.put_back(|change| matches!(change, Change::Ring(_)));
    }

    /// Attaches a filter to a socket.
    pub(crate) fn set_filter(&mut self, program: &[BpfInstruction]) -> io::Result<()> {
        // Only what somebody else had attached is to be put back.
        let known = self.changes.iter().any(|change| matches!(change, Change::Filter(_)));
        let old = if known { None } else { Some(filter::attached(self.as_fd())?) };
        filter::attach(self.as_fd(), program)?;
        self.changes.extend(old.map(Change::Filter));
        Ok(())
    }

    /// Puts back the filter that a socket had before [`set_filter`](Self::set_filter).
    pub(crate) fn restore_filter(&mut self) {
        self.put_back(|change| matches!(change, Change::Filter(_)));
    }

    /// Attaches a filter to the TAP device behind the descriptor, in place of any that is there.
    pub(crate) fn attach_to_device(&self, program: &[BpfInstruction]) -> io::Result<DeviceFilter> {
        filter::attach_to_tap(self.as_fd(), program)?;
        Ok(DeviceFilter(Arc::new(())))
    }

    /// Keeps the filter on the device as long as this descriptor is there.
    pub(crate) fn remember_device_filter(&mut self, filter: DeviceFilter) {
        self.changes.push(Change::DeviceFilter(filter));
    }

    /// Has an AF_PACKET socket make its interface receive everyone's frames.
    pub(crate) fn set_promiscuous(&mut self, interface: libc::c_int) -> io::Result<()> {
        socket::add_promiscuous(self.as_fd(), interface)?;
        self.changes.push(Change::Promiscuous { interface });
        Ok(())
    }

    /// Leaves what was changed as it is, but for what would outlive this descriptor on a device.
    pub(crate) fn keep(&mut self) {
        self.changes.retain(|change| matches!(change, Change::DeviceFilter(_)));
    }

    /// The descriptor itself; what was not kept is put back.
    pub(crate) fn into_fd(mut self) -> OwnedFd {
        self.undo();
        self.fd.take().expect("taken out only here, by value")
    }

    fn put_back(&mut self, which: impl Fn(&Change) -> bool) {
        let (gone, kept) = std::mem::take(&mut self.changes).into_iter().partition(which);
        self.changes = gone;
        self.undo();
        self.changes = kept;
    }

    fn undo(&mut self) {
        while let Some(change) = self.changes.pop() {
            // Nobody is left to be told; whoever shares it gets what can be put back.
            drop(self.undo_one(change));
        }
    }

    fn undo_one(&self, change: Change) -> io::Result<()> {
        let fd = self.as_fd();
        match change {
            Change::Buffer { name, force, value } => {
                let set = |name| socket::set_option(fd, libc::SOL_SOCKET, name, value);
                set(force).or_else(|_| set(name))
            }
            Change::DeviceFilter(shared) => match Arc::into_inner(shared.0) {
                Some(()) => tun::detach_filter(fd),
                None => Ok(()),
            },
            Change::Filter(old) if old.is_empty() => filter::detach(fd),
            Change::Filter(old) => filter::attach(fd, &old),
            Change::Flags(old) => descriptor::set_status_flags(fd, old),
            Change::Option { level, name, value } => socket::set_option(fd, level, name, value),
            Change::Promiscuous { interface } => socket::drop_promiscuous(fd, interface),
            Change::Ring(ring) => {
                ring.take_off(fd);
                Ok(())
            }
        }
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), changes: Vec::new() }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("taken out only by into_fd").as_fd()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // None after `into_fd`, which has left no changes.
        self.undo();
    }
}
