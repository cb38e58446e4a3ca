//! [`FdLink`]: a link over descriptors of one kind, and how it is put together: look at every
//! descriptor first, decide, and only then change anything; what was changed is undone when a
//! later step fails.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::descriptor::Descriptor;
use crate::error::SetupError;
use crate::io::cooked::Cooked;
use crate::io::framed::send::StreamSender;
use crate::io::framed::{FramePrefix, StreamReceiver};
use crate::io::mmsg::RecvMmsg;
use crate::io::packet_mmap::PacketMmap;
use crate::io::readv::Readv;
use crate::io::transmit::Sender;
use crate::io::{Channel, Port};
use crate::link::counters::DeviceCounters;
use crate::link::examine::{self, Found, call};
use crate::link::plan::{self, Plan};
use crate::link::{
    Link, LinkKind, LinkProperties, buffers, extras, fanout, framed, packet, ring, socket, tun,
};
use crate::options::{LinkOptions, Mode, Offload};
use crate::queue::{QueuePair, Receive};
use crate::report::{DescriptorReport, Report};
use crate::stats::LinkStats;
use crate::sys::ring::{Geometry, Ring};
use crate::sys::socket as sys;

/// A link over one or more descriptors of one kind.
#[derive(Debug)]
pub struct FdLink {
    // Rings before descriptors: a ring is unmapped before it is taken off, or its socket closed.
    rings: Vec<Option<Ring>>,
    descriptors: Vec<Descriptor>,
    interface: Option<String>,
    vnet_header: usize,
    /// On a framed stream, how the length is written.
    prefix: Option<FramePrefix>,
    cooked: Option<Cooked>,
    batch: usize,
    /// What each descriptor's counter of drops said when the link was built; 0 where it has none.
    drops_before: Vec<u32>,
    properties: LinkProperties,
    report: Report,
    stats: LinkStats,
}

/// Makes a link of descriptors that somebody else opened. Their kind is read back and checked.
///
/// All of them must be of one kind. A datagram or seqpacket socket must be connected to be sent
/// on. An AF_PACKET socket must be bound to an interface, and may have been made in another
/// network namespace; it may be in no fanout group, which it could not leave, and have no ring.
///
/// A cooked AF_PACKET socket (SOCK_DGRAM) gives frames with Ethernet headers like any other on its
/// interface, though the kernel takes them off and makes them. What comes to this host has the
/// interface's own address as destination, as it was when the link was built; what goes to a group
/// the address that belongs to its IP address, or the group bit alone; what goes to somebody else
/// zeros. What leaves has the destination and the type it was given, and always the interface's
/// own address as source. Such a socket has no vnet header and no ring: prefer a raw one.
///
/// What is on a socket's error queue (IP_RECVERR, SO_TIMESTAMPING) is thrown away now and then: it
/// would keep whoever waits for frames awake.
///
/// Frames that wait on a descriptor are the link's, but where it begins with a ring (which starts
/// empty) or a filter, and where several AF_PACKET sockets have the same frames: then only those of
/// the first.
///
/// # Errors
///
/// Where a descriptor is no base for a link or an option does not go with it. What had been
/// changed is undone by then, O_NONBLOCK included; the descriptors are closed. Only two things
/// cannot be undone: membership in a fanout group, which is the last step and so fails alone, and
/// what a TUN or TAP device was told of offloads.
pub fn adopt(fds: Vec<OwnedFd>, options: &LinkOptions) -> Result<FdLink, SetupError> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let found = examine::all(&borrowed, options)?;
    let descriptors = fds.into_iter().map(Descriptor::from).collect();
    FdLink::build(descriptors, &found, options)
}

/// As [`adopt`], but of descriptors that stay the caller's: the link works on duplicates.
///
/// What a duplicate refers to is shared. So as long as the link or one of its queues is there, the
/// caller's descriptor is non-blocking too, and what arrives goes to whoever receives first. When
/// they are gone, everything that was changed is put back: status flags, options, buffers,
/// filters, memberships, rings. What cannot be is said at [`adopt`]; and what AF_PACKET has counted
/// (PACKET_STATISTICS) is then known to the link alone, and a unix seqpacket socket without a name
/// has got one where frames were sent (SO_PASSCRED binds it, unix(7)).
///
/// # Errors
///
/// As [`adopt`], and where there are no descriptors left; the caller's stay open.
pub fn adopt_borrowed(fds: &[BorrowedFd<'_>], options: &LinkOptions) -> Result<FdLink, SetupError> {
    let found = examine::all(fds, options)?;
    let mut descriptors = Vec::with_capacity(fds.len());
    for (index, fd) in fds.iter().enumerate() {
        let duplicate = fd
            .try_clone_to_owned()
            .map_err(|e| call("fcntl(F_DUPFD_CLOEXEC)", format!("descriptor {index}"), e))?;
        descriptors.push(duplicate.into());
    }
    FdLink::build_borrowed(descriptors, &found, options)
}

impl FdLink {
    /// Puts a link together. `found` has one entry for each descriptor.
    pub(super) fn build(
        descriptors: Vec<Descriptor>,
        found: &[Found],
        options: &LinkOptions,
    ) -> Result<Self, SetupError> {
        let mut link = Self::build_borrowed(descriptors, found, options)?;
        link.descriptors.iter_mut().for_each(Descriptor::keep);
        Ok(link)
    }

    /// Puts a link together whose descriptors go back to what they were.
    fn build_borrowed(
        mut descriptors: Vec<Descriptor>,
        found: &[Found],
        options: &LinkOptions,
    ) -> Result<Self, SetupError> {
        let mut plan = plan::make(found, options)?;
        let layout = ring::layout(&plan, options)?;
        // Where this fails, the descriptors put back what was changed as they are dropped.
        let (rings, reports) = Self::apply(&mut descriptors, found, &mut plan, layout, options)?;
        Ok(Self::assemble(descriptors, found, rings, reports, plan, options))
    }

    /// The steps that change something.
    fn apply(
        descriptors: &mut [Descriptor],
        found: &[Found],
        plan: &mut Plan,
        layout: Option<Geometry>,
        options: &LinkOptions,
    ) -> Result<(Vec<Option<Ring>>, Vec<DescriptorReport>), SetupError> {
        let mut reports = Vec::with_capacity(descriptors.len());
        for (index, (descriptor, found)) in descriptors.iter_mut().zip(found).enumerate() {
            let subject = format!("descriptor {index}");
            descriptor.set_nonblocking().map_err(|e| call("fcntl", subject.clone(), e))?;
            match plan.kind {
                LinkKind::Framed => framed::configure(descriptor),
                LinkKind::Packet | LinkKind::PacketCooked => {
                    packet::configure(index, descriptor, plan, options)?;
                }
                LinkKind::SocketSeqpacket => socket::configure(descriptor),
                LinkKind::SocketDatagram => {
                    socket::keep_boundaries(descriptor);
                    plan.notes.extend(socket::lonely(index, descriptor.as_fd()));
                }
                LinkKind::Other | LinkKind::Tap | LinkKind::Tun => {}
            }
            let mut report = match plan.kind {
                LinkKind::Tap | LinkKind::Tun => DescriptorReport::default(),
                LinkKind::Framed => framed::buffers(&subject, descriptor, options, &mut plan.notes),
                _ => buffers::ask(&subject, descriptor, options, &mut plan.notes),
            };
            extras::apply(index, descriptor, found, &plan.extras, options, &mut report)?;
            reports.push(report);
        }
        if plan.kind == LinkKind::Tap {
            extras::apply_to_device(descriptors, options)?;
        }
        if matches!(plan.kind, LinkKind::Tap | LinkKind::Tun) && plan.capabilities.tx_checksum {
            // One descriptor speaks for the device.
            match tun::accept_offloads(descriptors[0].as_fd()) {
                Ok(uso) => plan.capabilities.uso = uso,
                Err(source) if options.offload == Offload::Required && !options.fallback => {
                    return Err(call("ioctl(TUNSETOFFLOAD)", "descriptor 0".to_owned(), source));
                }
                Err(error) => plan.notes.push(format!("no super-frames come in: {error}")),
            }
        }
        if plan.extras.fanout.is_some() {
            fanout::close(descriptors, &mut plan.notes);
        }
        let rings = ring::map(descriptors, layout, plan, options)?;
        if let Some(fanout) = plan.extras.fanout {
            let group = fanout::join(descriptors, fanout, options.filter.as_deref())?;
            for report in &mut reports {
                report.fanout_group = Some(group);
                report.fanout = Some(fanout);
            }
        }
        for (report, ring) in reports.iter_mut().zip(&rings) {
            if let Some(ring) = ring {
                ring::report(ring, report);
            }
            report.vnet_header_len = plan.vnet_header;
        }
        Ok((rings, reports))
    }

    fn assemble(
        descriptors: Vec<Descriptor>,
        found: &[Found],
        rings: Vec<Option<Ring>>,
        reports: Vec<DescriptorReport>,
        plan: Plan,
        options: &LinkOptions,
    ) -> Self {
        let queue_bytes = |report: &DescriptorReport| match plan.kind {
            LinkKind::Packet if report.ring > 0 => ring::queue_bytes(report, plan.max_frame_len),
            LinkKind::Packet | LinkKind::PacketCooked => report.receive_buffer,
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
            queues: descriptors.len(),
            rx_queue_bytes: reports.first().map_or(0, queue_bytes),
        };
        let report = Report {
            kind: plan.kind,
            asked_mode: options.mode,
            mode: plan.mode,
            descriptors: reports,
            far_end: None,
            notes: plan.notes,
        };
        Self {
            rings,
            interface: found.first().and_then(|first| first.interface.clone()),
            vnet_header: plan.vnet_header,
            prefix: None,
            cooked: found.first().and_then(|first| first.cooked),
            batch: plan.extras.batch,
            drops_before: descriptors
                .iter()
                .map(|d| sys::dropped(d.as_fd()).unwrap_or(0))
                .collect(),
            stats: LinkStats::new(descriptors.len()),
            descriptors,
            properties,
            report,
        }
    }

    /// The same link with frames behind their lengths.
    pub(super) fn with_prefix(self, prefix: FramePrefix) -> Self {
        Self { prefix: Some(prefix), ..self }
    }

    /// The name of the interface behind the descriptors, in the network namespace they belong to.
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// A handle on the counters of the TUN or TAP device behind the descriptors, which the kernel
    /// has for the device only. It goes on after the link, from any thread.
    ///
    /// # Errors
    ///
    /// Where there is no such device behind them ([`io::ErrorKind::Unsupported`]), where it is in
    /// another network namespace than the calling thread ([`io::ErrorKind::NotFound`]), and without
    /// CAP_NET_ADMIN, which it takes to find that out.
    pub fn device_counters(&self) -> io::Result<DeviceCounters> {
        match self.descriptors.first() {
            Some(first) if matches!(self.properties.kind, LinkKind::Tap | LinkKind::Tun) => {
                DeviceCounters::new(first.as_fd())
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Frames that the device has dropped until now ([`DeviceCounters::dropped`]).
    ///
    /// # Errors
    ///
    /// As [`device_counters`](Self::device_counters).
    pub fn device_drops(&self) -> io::Result<u64> {
        self.device_counters()?.dropped()
    }

    /// Gives the descriptors back. They stay as the link has set them up, without rings and
    /// without a filter on a device; those of [`adopt_borrowed`] are duplicates, of which everything
    /// has been put back.
    pub fn into_fds(self) -> Vec<OwnedFd> {
        ring::take_off(&self.descriptors, self.rings);
        self.descriptors.into_iter().map(Descriptor::into_fd).collect()
    }

    /// Where `open_*` says what it could not have.
    pub(super) fn notes(&mut self) -> &mut Vec<String> {
        &mut self.report.notes
    }

    pub(super) fn set_far_end(&mut self, report: DescriptorReport) {
        self.report.far_end = Some(report);
    }

    fn port(&self, index: usize, descriptor: Descriptor) -> Port {
        let properties = &self.properties;
        Port {
            stats: Arc::clone(&self.stats.queues()[index]),
            channel: match properties.kind {
                LinkKind::Packet | LinkKind::PacketCooked => Channel::Packet,
                // No descriptor is of another kind.
                LinkKind::Other | LinkKind::SocketDatagram => Channel::Datagram,
                LinkKind::SocketSeqpacket if socket::marks_messages(descriptor.as_fd()) => {
                    Channel::UnixSeqpacket
                }
                LinkKind::Framed | LinkKind::SocketSeqpacket => Channel::Seqpacket,
                LinkKind::Tap | LinkKind::Tun => Channel::Device,
            },
            cooked: self.cooked,
            vnet_header: self.vnet_header,
            link_header: properties.link_header,
            max_len: properties.max_frame_len.max(properties.gso_max_size),
            batch: self.batch,
            drops_before: self.drops_before[index],
            timestamps: self.report.descriptors[index].timestamps,
            fd: Arc::new(descriptor),
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
        let descriptors = std::mem::take(&mut self.descriptors);
        let rings = std::mem::take(&mut self.rings);
        let pairs =
            descriptors.into_iter().zip(rings).enumerate().map(|(index, (descriptor, ring))| {
                let port = self.port(index, descriptor);
                if let Some(prefix) = self.prefix {
                    let rx = Box::new(StreamReceiver::new(port.clone(), prefix));
                    return QueuePair {
                        rx: Some(rx),
                        tx: Box::new(StreamSender::new(port, prefix)),
                    };
                }
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
