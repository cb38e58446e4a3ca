//! [`FdLink`]: a link over descriptors of one kind, and how it is put together: look at every
//! descriptor first, decide, and only then change anything; what was changed is undone when a
//! later step fails.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::batch::LinkHeader;
use crate::error::SetupError;
use crate::io::mmsg::RecvMmsg;
use crate::io::packet_mmap::PacketMmap;
use crate::io::readv::Readv;
use crate::io::transmit::Sender;
use crate::io::{Channel, Port};
use crate::link::plan::{self, Plan};
use crate::link::{Link, LinkKind, LinkProperties, packet, ring, socket, tun};
use crate::options::{LinkOptions, Mode};
use crate::queue::{QueuePair, Receive};
use crate::report::{DescriptorReport, Report};
use crate::stats::LinkStats;
use crate::sys::ring::{Geometry, Ring};
use crate::sys::socket as sys;

/// A link over one or more descriptors of one kind, which it owns.
#[derive(Debug)]
pub struct FdLink {
    // Rings before descriptors: a ring is unmapped before its socket is closed.
    rings: Vec<Option<Ring>>,
    fds: Vec<OwnedFd>,
    interface: Option<String>,
    vnet_header: usize,
    properties: LinkProperties,
    report: Report,
    stats: LinkStats,
}

/// What a look at a descriptor found. Nothing has been changed by looking.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) kind: LinkKind,
    /// The vnet header that is there, in bytes; 0 for none.
    pub(super) vnet_header: usize,
    pub(super) link_header: LinkHeader,
    /// The interface behind it.
    pub(super) interface: Option<String>,
    /// The interface's MTU, where the descriptor tells.
    pub(super) mtu: Option<u32>,
    /// Whether super-frames of UDP may be sent, where looking tells.
    pub(super) uso: bool,
}

/// Makes a link of descriptors that somebody else opened. Their kind is read back and checked.
///
/// All of them must be of one kind. A datagram or seqpacket socket must be connected to be sent
/// on. An AF_PACKET socket must be bound to an interface, and may have been made in another
/// network namespace.
///
/// # Errors
///
/// Where a descriptor is no base for a link or an option does not go with it. What had been
/// changed is undone by then, O_NONBLOCK included; the descriptors are closed.
pub fn adopt(fds: Vec<OwnedFd>, options: &LinkOptions) -> Result<FdLink, SetupError> {
    let mut found = Vec::with_capacity(fds.len());
    for (index, fd) in fds.iter().enumerate() {
        found.push(examine(index, fd.as_fd(), options)?);
    }
    FdLink::build(fds, &found, options)
}

/// Reads back what a descriptor is.
fn examine(index: usize, fd: BorrowedFd<'_>, options: &LinkOptions) -> Result<Found, SetupError> {
    const EXPECTED: &str =
        "a datagram or seqpacket socket, an AF_PACKET SOCK_RAW socket, or a TUN or TAP device";
    let subject = || format!("descriptor {index}");
    let wrong = |found: &str| {
        Err(SetupError::WrongKind { index, found: found.to_owned(), expected: EXPECTED })
    };
    let file_type = sys::file_type(fd).map_err(|e| call("fstat", subject(), e))?;
    match file_type {
        libc::S_IFSOCK => socket::examine(index, fd, options),
        libc::S_IFCHR => tun::examine(index, fd),
        libc::S_IFIFO => wrong("a pipe"),
        libc::S_IFREG => wrong("a file"),
        libc::S_IFDIR => wrong("a directory"),
        libc::S_IFBLK => wrong("a block device"),
        _ => wrong("of an unknown kind"),
    }
}

impl FdLink {
    /// Puts a link together. `found` has one entry for each descriptor.
    pub(super) fn build(
        fds: Vec<OwnedFd>,
        found: &[Found],
        options: &LinkOptions,
    ) -> Result<Self, SetupError> {
        let mut plan = plan::make(found, options)?;
        let layout = ring::layout(&plan, options)?;
        let mut changes = Changes::default();
        match Self::apply(&fds, &mut plan, layout, options, &mut changes) {
            Ok((rings, descriptors)) => {
                Ok(Self::assemble(fds, found, rings, descriptors, plan, options))
            }
            Err(error) => {
                changes.undo(&fds);
                Err(error)
            }
        }
    }

    /// The steps that change something.
    fn apply(
        fds: &[OwnedFd],
        plan: &mut Plan,
        layout: Option<Geometry>,
        options: &LinkOptions,
        changes: &mut Changes,
    ) -> Result<(Vec<Option<Ring>>, Vec<DescriptorReport>), SetupError> {
        for (index, fd) in fds.iter().enumerate() {
            changes.set_nonblocking(index, fd.as_fd())?;
            if plan.kind == LinkKind::Packet {
                packet::configure(index, fd.as_fd(), plan, options, changes)?;
            }
        }
        let mut descriptors: Vec<_> = fds
            .iter()
            .enumerate()
            .map(|(index, fd)| buffers(index, fd.as_fd(), plan, options, changes))
            .collect();
        if plan.kind == LinkKind::Packet && fds.len() > 1 {
            let group = packet::join_fanout(fds)?;
            descriptors.iter_mut().for_each(|report| report.fanout_group = Some(group));
        }
        if matches!(plan.kind, LinkKind::Tap | LinkKind::Tun) && plan.capabilities.tx_checksum {
            // One descriptor speaks for the device.
            match tun::accept_offloads(fds[0].as_fd()) {
                Ok(uso) => plan.capabilities.uso = uso,
                Err(error) => plan.notes.push(format!("no super-frames come in: {error}")),
            }
        }
        let rings = ring::map(fds, layout, plan, options)?;
        for (descriptor, ring) in descriptors.iter_mut().zip(&rings) {
            if let Some(ring) = ring {
                ring::report(ring, descriptor);
            }
            descriptor.vnet_header_len = plan.vnet_header;
        }
        Ok((rings, descriptors))
    }

    fn assemble(
        fds: Vec<OwnedFd>,
        found: &[Found],
        rings: Vec<Option<Ring>>,
        descriptors: Vec<DescriptorReport>,
        plan: Plan,
        options: &LinkOptions,
    ) -> Self {
        let queue_bytes = |report: &DescriptorReport| match plan.kind {
            LinkKind::Packet if report.ring > 0 => ring::queue_bytes(report, plan.max_frame_len),
            LinkKind::Packet => report.receive_buffer,
            _ => 0,
        };
        let properties = LinkProperties {
            kind: plan.kind,
            mode: plan.mode,
            mtu: plan.mtu,
            max_frame_len: plan.max_frame_len,
            link_header: plan.link_header,
            address: plan.address,
            capabilities: plan.capabilities,
            gso_max_size: plan.gso_max_size,
            queues: fds.len(),
            rx_queue_bytes: descriptors.first().map_or(0, queue_bytes),
        };
        let report = Report {
            kind: plan.kind,
            asked_mode: options.mode,
            mode: plan.mode,
            descriptors,
            notes: plan.notes,
        };
        Self {
            rings,
            interface: found.first().and_then(|first| first.interface.clone()),
            vnet_header: plan.vnet_header,
            stats: LinkStats::new(fds.len()),
            fds,
            properties,
            report,
        }
    }

    /// The name of the interface behind the descriptors, in the network namespace they belong to.
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// Gives the descriptors back. They stay as the link has set them up, without rings.
    pub fn into_fds(self) -> Vec<OwnedFd> {
        ring::take_off(&self.fds, self.rings);
        self.fds
    }

    fn port(&self, index: usize, fd: OwnedFd) -> Port {
        let properties = &self.properties;
        Port {
            fd: Arc::new(fd),
            stats: Arc::clone(&self.stats.queues()[index]),
            channel: match properties.kind {
                LinkKind::Packet => Channel::Packet,
                LinkKind::SocketDatagram => Channel::Datagram,
                LinkKind::SocketSeqpacket => Channel::Seqpacket,
                LinkKind::Tap | LinkKind::Tun => Channel::Device,
            },
            vnet_header: self.vnet_header,
            link_header: properties.link_header,
            max_len: properties.max_frame_len.max(properties.gso_max_size),
        }
    }
}

impl Link for FdLink {
    fn properties(&self) -> &LinkProperties {
        &self.properties
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn stats(&self) -> LinkStats {
        self.stats.clone()
    }

    fn into_queues(mut self: Box<Self>) -> Result<Vec<QueuePair>, SetupError> {
        let fds = std::mem::take(&mut self.fds);
        let rings = std::mem::take(&mut self.rings);
        let pairs = fds.into_iter().zip(rings).enumerate().map(|(index, (fd, ring))| {
            let port = self.port(index, fd);
            let tx = Box::new(Sender::new(port.clone()));
            let rx: Box<dyn Receive> = match (ring, self.properties.mode) {
                (Some(ring), _) => Box::new(PacketMmap::new(port, ring)),
                (None, Mode::RecvMmsg) => Box::new(RecvMmsg::new(port)),
                (None, _) => Box::new(Readv::new(port)),
            };
            QueuePair { rx: Some(rx), tx }
        });
        Ok(pairs.collect())
    }
}

/// What has been changed on descriptors that may be shared with others, to be put back.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<Change>);

#[derive(Debug)]
enum Change {
    Flags { index: usize, old: libc::c_int },
    Option { index: usize, level: libc::c_int, name: libc::c_int, old: libc::c_int },
}

impl Changes {
    fn set_nonblocking(&mut self, index: usize, fd: BorrowedFd<'_>) -> Result<(), SetupError> {
        let failed = |source| call("fcntl", format!("descriptor {index}"), source);
        sys::set_close_on_exec(fd).map_err(failed)?;
        let old = sys::status_flags(fd).map_err(failed)?;
        if old & libc::O_NONBLOCK == 0 {
            sys::set_status_flags(fd, old | libc::O_NONBLOCK).map_err(failed)?;
            self.0.push(Change::Flags { index, old });
        }
        Ok(())
    }

    /// Sets an option, if it has another value now.
    pub(super) fn set_option(
        &mut self,
        index: usize,
        fd: BorrowedFd<'_>,
        (level, name): (libc::c_int, libc::c_int),
        value: libc::c_int,
    ) -> io::Result<()> {
        let old = sys::option(fd, level, name)?;
        if old != value {
            sys::set_option(fd, level, name, value)?;
            self.0.push(Change::Option { index, level, name, old });
        }
        Ok(())
    }

    fn undo(&self, fds: &[OwnedFd]) {
        for change in self.0.iter().rev() {
            // The descriptors are closed next; whoever shares them gets what can be put back.
            match *change {
                Change::Flags { index, old } => {
                    drop(sys::set_status_flags(fds[index].as_fd(), old));
                }
                Change::Option { index, level, name, old } => {
                    drop(sys::set_option(fds[index].as_fd(), level, name, old));
                }
            }
        }
    }
}

/// Asks for large socket buffers and reads back what was given.
fn buffers(
    index: usize,
    fd: BorrowedFd<'_>,
    plan: &mut Plan,
    options: &LinkOptions,
    changes: &mut Changes,
) -> DescriptorReport {
    if matches!(plan.kind, LinkKind::Tap | LinkKind::Tun) {
        return DescriptorReport::default();
    }
    let wanted = options.socket_buffer.unwrap_or(DEFAULT_BUFFER);
    let mut set = |name, force, text| {
        let given = grow(index, fd, (name, force), wanted, changes);
        if options.socket_buffer.is_some() && given < wanted {
            plan.notes.push(format!("descriptor {index}: {text} is {given} of {wanted} bytes"));
        }
        given
    };
    DescriptorReport {
        receive_buffer: set(libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, "SO_RCVBUF"),
        send_buffer: set(libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, "SO_SNDBUF"),
        ..DescriptorReport::default()
    }
}

/// 4 MiB holds some sixty super-frames or, as the kernel accounts them, 1800 frames of 1500 bytes:
/// a few milliseconds at 10 Gbit/s.
const DEFAULT_BUFFER: usize = 4 << 20;

fn grow(
    index: usize,
    fd: BorrowedFd<'_>,
    (name, force): (libc::c_int, libc::c_int),
    wanted: usize,
    changes: &mut Changes,
) -> usize {
    let read = || sys::option(fd, libc::SOL_SOCKET, name).unwrap_or(0);
    let old = read();
    // The kernel doubles what is asked for (sock_setsockopt), so half of what it shows is asked.
    let asked = libc::c_int::try_from(wanted / 2).unwrap_or(libc::c_int::MAX / 2);
    if old / 2 < asked {
        // FORCE needs CAP_NET_ADMIN in the first user namespace; without, rmem_max is the limit.
        let forced = sys::set_option(fd, libc::SOL_SOCKET, force, asked);
        if forced.or_else(|_| sys::set_option(fd, libc::SOL_SOCKET, name, asked)).is_ok() {
            let change = Change::Option { index, level: libc::SOL_SOCKET, name, old: old / 2 };
            changes.0.push(change);
        }
    }
    usize::try_from(read()).unwrap_or(0)
}

/// A failed system call.
pub(super) fn call(call: &'static str, subject: String, source: io::Error) -> SetupError {
    SetupError::Call { call, subject, source }
}
