//! What the ways of receiving share: what errors mean, what is counted, what is known of a received
//! frame, and what is to be done where none comes.
//!
//! What is not here: the calls that receive (`io/{readv,mmsg,packet_mmap,framed}`), and when the
//! kernel is asked for what it dropped (`io/drops.rs`).

use std::io;
use std::time::Duration;

use crate::batch::{LinkHeader, PacketType, RxMeta, VlanTag};
use crate::io::drops::Drops;
use crate::io::{Channel, Port};
use crate::offload::vnet::{ChecksumField, RxChecksum, VnetHeader};
use crate::queue::{Closed, Fill, Wakeup};
use crate::sys::message::{Incoming, PacketInfo};
use crate::sys::{interface, poll, socket, tun};

/// What the ways of receiving share.
#[derive(Debug)]
pub(super) struct Inlet {
    pub(super) port: Port,
    /// The link was found down, and not up again since.
    pub(super) down: bool,
    /// Nothing shows on the descriptor when its device is removed.
    vanishes: bool,
    /// The kernel had no memory to hand over what waits; no readiness tells when it has again.
    starved: bool,
    /// Visits in a row that found nothing, since somebody asked why.
    empty_visits: u32,
    pub(super) drops: Drops,
    /// Frames of this visit, not yet in the counters.
    frames: u64,
    bytes: u64,
    super_frames: u64,
}

/// How often a link that is down is looked at. An interface that was taken down and is then removed
/// gives no second edge (packet_notifier, net/packet/af_packet.c), so somebody must look.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often a device is looked at that vanishes without a sign.
const LOOK_NOW_AND_THEN: Duration = Duration::from_secs(1);

/// How long to wait where the kernel has no memory: the descriptor is readable all the while.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(1);

/// How often a queue that stays empty is asked why: it may be ready all the same, and asking costs a
/// system call.
const EMPTY_VISITS_BETWEEN_CHECKS: u32 = 16;

impl Inlet {
    pub(super) fn new(port: Port) -> Self {
        // A macvtap's node. A TUN's has one number, whatever device is behind it.
        let vanishes = port.channel == Channel::Device && !tun::is_tun_node(port.fd());
        let drops = Drops::new(&port);
        Self {
            port,
            down: false,
            vanishes,
            starved: false,
            empty_visits: 0,
            drops,
            frames: 0,
            bytes: 0,
            super_frames: 0,
        }
    }

    pub(super) fn wakeup(&self) -> Wakeup<'_> {
        if self.starved {
            return Wakeup { descriptor: None, after: Some(NO_MEMORY_PAUSE) };
        }
        let after = match (self.down, self.vanishes) {
            (true, _) => Some(LOOK_AGAIN),
            (false, true) => Some(LOOK_NOW_AND_THEN),
            (false, false) => None,
        };
        Wakeup { descriptor: Some(self.port.fd()), after }
    }

    /// A system call was made.
    pub(super) fn called(&mut self) {
        self.port.stats.rx.calls.add(1);
        self.drops.visited(1);
        self.starved = false;
    }

    /// What becomes of a visit whose call failed; `None` for one that is to be made again.
    pub(super) fn failed(&mut self, call: &'static str, error: &io::Error) -> Option<Fill> {
        let errno = error.raw_os_error().unwrap_or(0);
        Some(match errno {
            libc::EINTR => return None,
            libc::EAGAIN => self.empty(),
            // Told once, and before what had come until then.
            libc::ENETDOWN => {
                self.found_down();
                Fill::Frames(0)
            }
            // A TUN whose device is about to be unregistered.
            libc::EIO => {
                self.found_down();
                self.empty()
            }
            // The kernel could not describe the frame in a vnet header, and has dropped it
            // (virtio_net_hdr_from_skb).
            libc::EINVAL => {
                self.port.stats.rx.malformed.add(1);
                Fill::Frames(0)
            }
            // Told once, because of an earlier send: a peer that is gone, or an ICMP message on UDP
            // (icmp_err_convert, net/ipv4/icmp.c; icmpv6_err_convert, net/ipv6/icmp.c), which
            // anybody on the way may send.
            libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::EHOSTDOWN
            | libc::ENETUNREACH
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EPROTO
            | libc::EACCES
            | libc::EMSGSIZE
                if self.port.channel == Channel::Datagram =>
            {
                Fill::Frames(0)
            }
            libc::ENOBUFS | libc::ENOMEM => {
                self.starved = true;
                Fill::Empty
            }
            // The peer closed its end without having read everything. That is told first, and only
            // then what it had sent, and its end.
            libc::ECONNRESET if self.port.channel == Channel::UnixSeqpacket => Fill::Frames(0),
            libc::ECONNRESET => Fill::Closed(Closed::PeerClosed),
            libc::EBADFD | libc::ENXIO | libc::ENODEV => Fill::Closed(Closed::Removed),
            errno => Fill::Closed(Closed::Failed { call, errno }),
        })
    }

    pub(super) fn found_down(&mut self) {
        self.port.stats.rx.link_down.add(1);
        self.down = true;
    }

    /// Nothing there: now and then, ask why.
    pub(super) fn empty(&mut self) -> Fill {
        if self.is_time_to_ask() { self.ask() } else { Fill::Empty }
    }

    /// Whether to [`ask`](Self::ask), now that one more visit has found nothing.
    pub(super) fn is_time_to_ask(&mut self) -> bool {
        self.empty_visits += 1;
        self.empty_visits >= EMPTY_VISITS_BETWEEN_CHECKS
            || self.down
            || self.vanishes
            || self.drops.are_due()
    }

    /// Does, where nothing is there, what is not done with every visit.
    pub(super) fn ask(&mut self) -> Fill {
        self.empty_visits = 0;
        if self.drops.are_due() {
            self.drops.count(&self.port);
        }
        if (self.down || self.vanishes) && self.removed() {
            return Fill::Closed(Closed::Removed);
        }
        self.why_ready()
    }

    /// What makes a socket ready for ever although nothing is there to be received: messages on its
    /// error queue, which whoever made it asked for (IP_RECVERR, SO_TIMESTAMPING) and nobody reads
    /// now; and on a datagram socket an end of receiving, which recv does not tell.
    pub(super) fn why_ready(&self) -> Fill {
        let fd = self.port.fd();
        if self.port.channel == Channel::Device {
            return Fill::Empty;
        }
        let events = poll::events(fd, libc::POLLRDHUP);
        if events & libc::POLLERR != 0 {
            socket::discard_errors(fd);
        }
        if events & libc::POLLRDHUP != 0 && self.port.channel == Channel::Datagram {
            return Fill::Closed(Closed::Stopped);
        }
        Fill::Empty
    }

    pub(super) fn removed(&self) -> bool {
        match self.port.channel {
            Channel::Packet => {
                socket::packet_name(self.port.fd()).is_ok_and(|name| name.interface == -1)
            }
            // ENOLINK, where the device was a macvtap.
            Channel::Device => self.vanishes && tun::interface(self.port.fd()).is_err(),
            Channel::Datagram | Channel::Seqpacket | Channel::UnixSeqpacket => false,
        }
    }

    /// Whether a link that was down is up again. A frame alone does not say so: it may have waited in
    /// the socket's queue, of which the kernel tells only after the error.
    pub(super) fn is_up(&self) -> bool {
        let fd = self.port.fd();
        self.port.channel != Channel::Packet
            || socket::packet_name(fd)
                .and_then(|name| interface::name(fd, name.interface))
                .and_then(|name| interface::is_up(fd, &name))
                .unwrap_or(false)
    }

    /// Whether a message of no bytes is the end of the peer. Where messages do not say that they are
    /// one (seqpacket sockets of other families than unix), it is taken for the end if the peer has
    /// hung up and no byte waits: its last messages, if they are empty, are lost.
    pub(super) fn is_end(&self, messages: &Incoming, index: usize) -> bool {
        let hung_up = libc::POLLRDHUP | libc::POLLHUP;
        match self.port.channel {
            Channel::UnixSeqpacket => !messages.has_credentials(index),
            Channel::Seqpacket => {
                poll::events(self.port.fd(), libc::POLLRDHUP) & hung_up != 0
                    && socket::bytes_waiting(self.port.fd()).unwrap_or(0) == 0
            }
            Channel::Datagram | Channel::Device | Channel::Packet => false,
        }
    }

    /// As [`admit`](Self::admit), of a message whose link header may be missing: there is headroom
    /// for it in front then, which is part of `message`.
    pub(super) fn admit_message(&mut self, message: &mut [u8], info: PacketInfo) -> Option<RxMeta> {
        let cooked = self.port.cooked;
        let info = cooked.map_or(info, |cooked| cooked.add_header(info, message));
        self.admit(message, info)
    }

    /// Decides about one message: what is known of its frame, or `None` where it was counted as
    /// dropped. `message` starts with the vnet header, if there is one.
    pub(super) fn admit(&mut self, message: &[u8], info: PacketInfo) -> Option<RxMeta> {
        let counters = &self.port.stats.rx;
        let packet_type = packet_type(info.packet_type);
        if packet_type == PacketType::Outgoing {
            counters.outgoing.add(1);
            return None;
        }
        // A filter, or a slot that is too short, has left a part of it.
        if info.len as usize > message.len().saturating_sub(self.port.vnet_header) {
            counters.truncated.add(1);
            return None;
        }
        let Some(meta) = self.describe(message, info) else {
            counters.malformed.add(1);
            return None;
        };
        self.frames += 1;
        self.bytes += (message.len() - self.port.vnet_header) as u64;
        self.super_frames += u64::from(meta.gso.is_some());
        Some(RxMeta { packet_type, ..meta })
    }

    pub(super) fn describe(&self, message: &[u8], info: PacketInfo) -> Option<RxMeta> {
        let (vnet, frame) = message.split_at_checked(self.port.vnet_header)?;
        let mut meta = RxMeta {
            link_header: self.port.link_header,
            original_len: info.len,
            vlan: vlan(info),
            timestamp: info.timestamp,
            ..RxMeta::default()
        };
        if vnet.is_empty() {
            meta.checksum = checksum_of_status(info.status, self.port.link_header, frame);
        } else {
            let header = VnetHeader::parse(vnet)?;
            meta.checksum = header.checksum(frame.len()).ok()?;
            meta.gso = header.gso(frame.len()).ok()?;
        }
        Some(meta)
    }

    /// Puts what this visit brought into the counters.
    pub(super) fn settle(&mut self) -> Fill {
        let frames = std::mem::take(&mut self.frames);
        let counters = &self.port.stats.rx;
        if frames > 0 {
            self.empty_visits = 0;
            self.down = self.down && !self.is_up();
            counters.frames.add(frames);
            counters.bytes.add(std::mem::take(&mut self.bytes));
            counters.super_frames.add(std::mem::take(&mut self.super_frames));
            counters.batches.add(1);
        }
        if self.drops.are_overdue() {
            self.drops.count(&self.port);
        }
        Fill::Frames(usize::try_from(frames).unwrap_or(usize::MAX))
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.drops.count(&self.port);
    }
}

pub(super) fn packet_type(value: u8) -> PacketType {
    match value {
        libc::PACKET_BROADCAST => PacketType::Broadcast,
        libc::PACKET_MULTICAST => PacketType::Multicast,
        libc::PACKET_OTHERHOST => PacketType::OtherHost,
        libc::PACKET_OUTGOING => PacketType::Outgoing,
        _ => PacketType::Host,
    }
}

fn vlan(info: PacketInfo) -> Option<VlanTag> {
    // Before Linux 3.14 the kernel did not tell which kind of tag it was; then it is 802.1Q.
    let known = info.status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    (info.status & libc::TP_STATUS_VLAN_VALID != 0).then_some(VlanTag {
        tpid: if known { info.vlan_tpid } else { 0x8100 },
        tci: info.vlan_tci,
    })
}

/// The checksum state where AF_PACKET has no vnet header: the status says whether, but not where,
/// so the place is looked up in the headers.
fn checksum_of_status(status: u32, link_header: LinkHeader, frame: &[u8]) -> RxChecksum {
    if status & libc::TP_STATUS_CSUMNOTREADY != 0 {
        return transport_checksum(link_header, frame)
            .map_or(RxChecksum::Unverified, RxChecksum::Partial);
    }
    if status & libc::TP_STATUS_CSUM_VALID != 0 {
        RxChecksum::Valid
    } else {
        RxChecksum::Unverified
    }
}

/// Where the checksum of a TCP or UDP packet lies, for IPv4 and for IPv6 without extensions.
fn transport_checksum(link_header: LinkHeader, frame: &[u8]) -> Option<ChecksumField> {
    let packet = frame.get(link_header.len()..)?;
    let (header, protocol) = match packet.first()? >> 4 {
        4 => (usize::from(packet[0] & 0xf) * 4, *packet.get(9)?),
        6 => (40, *packet.get(6)?),
        _ => return None,
    };
    // Offsets of the checksum in the TCP (RFC 9293) and UDP (RFC 768) headers.
    let offset = match i32::from(protocol) {
        libc::IPPROTO_TCP => 16,
        libc::IPPROTO_UDP => 6,
        _ => return None,
    };
    let start = u16::try_from(link_header.len() + header).ok()?;
    Some(ChecksumField { start, offset }).filter(|field| field.fits(frame.len()))
}
