//! Single messages in and out (read, recv, write, send), and many in (recvmsg, recvmmsg).
//!
//! [`Incoming`] owns its buffers and the arrays that describe them. The pointers in these arrays are
//! written anew before each call, so moving the owner is harmless.
//!
//! What is not here: lists out (`outgoing`).

// UNSAFETY: the kernel takes messages as arrays of pointers to arrays of pointers, and recvmmsg and
// PACKET_AUXDATA are not in std.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{address, check, check_len, len_of};

/// Reads one message from a device.
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one exclusively borrowed slice.
    check_len(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// Receives one message; the length is the message's own, which may be more than the buffer's.
pub(crate) fn recv(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    let (at, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the pointer and the length are those of one exclusively borrowed slice; MSG_TRUNC
    // makes the result longer, not what is written.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), at, len, flags) })
}

/// Receives one message of a socket's error queue.
pub(crate) fn recv_error(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE;
    let (at, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the pointer and the length are those of one exclusively borrowed slice.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), at, len, flags) })
}

/// Receives what there is of a stream, as far as it fits; 0 at its end.
pub(crate) fn recv_some(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (at, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the pointer and the length are those of one exclusively borrowed slice.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), at, len, libc::MSG_DONTWAIT) })
}

/// Writes one message to a device.
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one live slice.
    check_len(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// Sends one message to a socket; of a stream, as much as it takes.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and the length are those of one live slice.
    check_len(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// What a socket is asked to say of each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Its bytes only.
    Bytes,
    /// Whether it came with credentials (SO_PASSCRED), which every message on a unix socket does
    /// and the end of the peer does not.
    Credentials,
    /// The sender's address and PACKET_AUXDATA (AF_PACKET), and what else is switched on.
    PacketInfo,
    /// SO_TIMESTAMPNS.
    Timestamp,
}

impl Ask {
    /// Room for control messages. A stamp comes first (`__unix_dgram_recvmsg`, `sock_recv_cmsgs`)
    /// and fills its room, so that descriptors which a peer on a unix socket sends along unasked have
    /// none: the kernel closes them.
    const fn control_len(self) -> usize {
        match self {
            Self::Bytes | Self::Credentials => 0,
            Self::PacketInfo => CONTROL_LEN,
            // CMSG_SPACE(sizeof(struct timespec)).
            Self::Timestamp => size_of::<libc::cmsghdr>() + size_of::<libc::timespec>(),
        }
    }
}

/// What a socket says of a frame: AF_PACKET by PACKET_AUXDATA and `sll_pkttype`, any by
/// SO_TIMESTAMPNS.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PacketInfo {
    /// `sll_pkttype`.
    pub(crate) packet_type: u8,
    /// `sll_protocol`, host byte order.
    pub(crate) protocol: u16,
    /// `sll_addr`, where it is an Ethernet address.
    pub(crate) source: [u8; 6],
    /// `TP_STATUS_*`; 0 where PACKET_AUXDATA is off.
    pub(crate) status: u32,
    /// The frame's length on the link.
    pub(crate) len: u32,
    pub(crate) vlan_tci: u16,
    pub(crate) vlan_tpid: u16,
    /// When the kernel took it in, where it was asked.
    pub(crate) timestamp: Option<SystemTime>,
}

/// Room for control messages. PACKET_AUXDATA takes CMSG_SPACE(20) = 40 bytes, SO_TIMESTAMPNS
/// CMSG_SPACE(16) = 32; the rest is for others that the owner of an adopted socket may have switched on.
const CONTROL_LEN: usize = 256;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// Buffers for a number of messages, and the arrays that describe them to the kernel.
pub(crate) struct Incoming {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_ll]>,
    controls: Box<[Control]>,
    memory: Box<[u8]>,
    /// Bytes of `memory` for each message.
    stride: usize,
    /// Of these, bytes in front of the message that are left free.
    headroom: usize,
    ask: Ask,
}

// SAFETY: the raw pointers in `headers` and `iovecs` are only followed by the kernel, during calls
// that hold `&mut self`, and `prepare` has just written them to point into this value's own boxes.
unsafe impl Send for Incoming {}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Incoming");
        out.field("messages", &self.headers.len()).field("stride", &self.stride);
        out.finish_non_exhaustive()
    }
}

impl Incoming {
    /// Room for `messages` of up to `stride` bytes.
    pub(crate) fn new(messages: usize, stride: usize, ask: Ask) -> Self {
        let empty = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Self {
            headers: (0..messages).map(|_| empty_header()).collect(),
            iovecs: vec![empty; messages].into(),
            names: vec![address::empty(); messages].into(),
            controls: vec![Control([0; CONTROL_LEN]); messages].into(),
            memory: vec![0; messages * stride].into(),
            stride,
            headroom: 0,
            ask,
        }
    }

    /// The same with that many bytes left free in front of each message, where the link header goes
    /// that the kernel took off: offsets and lengths include them.
    pub(crate) fn with_headroom(self, headroom: usize) -> Self {
        Self { headroom, ..self }
    }

    /// Receives one message (recvmsg).
    pub(crate) fn recv_one(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.prepare();
        let Some(header) = self.headers.first_mut() else { return Ok(0) };
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: `prepare` made the header describe buffers of this value that live on and that
        // nobody else touches while `&mut self` is held.
        let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header.msg_hdr, flags) };
        header.msg_len = u32::try_from(check_len(len)?).unwrap_or(u32::MAX);
        Ok(1)
    }

    /// Receives as many messages as there are and as fit (recvmmsg); returns how many.
    pub(crate) fn recv_many(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.prepare();
        let count = libc::c_uint::try_from(self.headers.len()).unwrap_or(libc::c_uint::MAX);
        let flags = (libc::MSG_DONTWAIT | libc::MSG_TRUNC) as MsgFlags;
        let (raw, at) = (fd.as_raw_fd(), self.headers.as_mut_ptr());
        // SAFETY: as in `recv_one`, for each of the `count` headers; no timeout is given.
        let received = check(unsafe { libc::recvmmsg(raw, at, count, flags, ptr::null_mut()) })?;
        Ok(usize::try_from(received).unwrap_or(0))
    }

    /// The length of message `index`, which is more than the stride if it was cut off.
    pub(crate) fn len(&self, index: usize) -> usize {
        self.headroom + self.headers[index].msg_len as usize
    }

    /// Whether message `index` did not fit.
    pub(crate) fn truncated(&self, index: usize) -> bool {
        self.headers[index].msg_hdr.msg_flags & libc::MSG_TRUNC != 0
            || self.len(index) > self.stride
    }

    /// Whether message `index` came with credentials. Where nothing else is asked for there is no
    /// room for them, and the kernel says that it left them out (`__scm_recv_common`,
    /// net/core/scm.c): cheaper than taking them.
    pub(crate) fn has_credentials(&self, index: usize) -> bool {
        let header = &self.headers[index].msg_hdr;
        header.msg_flags & libc::MSG_CTRUNC != 0 || header.msg_controllen > 0
    }

    /// What the socket said of message `index`.
    pub(crate) fn packet_info(&self, index: usize) -> PacketInfo {
        let filled = self.headers[index].msg_hdr.msg_controllen;
        let control = &self.controls[index].0;
        let mut info = control_messages(&control[..filled.min(CONTROL_LEN)]);
        let name = &self.names[index];
        info.packet_type = name.sll_pkttype;
        info.protocol = u16::from_be(name.sll_protocol);
        info.source = address::ethernet_address(name);
        info
    }

    /// Where message `index` starts in [`memory`](Self::memory).
    pub(crate) fn offset(&self, index: usize) -> usize {
        index * self.stride
    }

    /// All the buffers, one after the other.
    pub(crate) fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Writes all pointers and lengths anew: the kernel changed the lengths, and the boxes may
    /// have been borrowed or moved since.
    fn prepare(&mut self) {
        let buffers = self.memory.chunks_exact_mut(self.stride).zip(self.iovecs.iter_mut());
        let infos = self.names.iter_mut().zip(self.controls.iter_mut());
        for ((header, (buffer, iovec)), (name, control)) in
            self.headers.iter_mut().zip(buffers).zip(infos)
        {
            let (_, buffer) = buffer.split_at_mut(self.headroom);
            iovec.iov_base = buffer.as_mut_ptr().cast();
            iovec.iov_len = buffer.len();
            let message = &mut header.msg_hdr;
            message.msg_iov = iovec;
            message.msg_iovlen = 1;
            message.msg_flags = 0;
            if self.ask == Ask::PacketInfo {
                message.msg_name = (&raw mut *name).cast();
                message.msg_namelen = len_of::<libc::sockaddr_ll>();
            }
            let room = self.ask.control_len();
            if room > 0 {
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = room;
            }
        }
    }
}

/// The type of recvmmsg's and sendmmsg's flags.
#[cfg(target_env = "musl")]
pub(super) type MsgFlags = libc::c_uint;
/// The type of recvmmsg's and sendmmsg's flags.
#[cfg(not(target_env = "musl"))]
pub(super) type MsgFlags = libc::c_int;

pub(super) fn empty_header() -> libc::mmsghdr {
    // SAFETY: a mmsghdr is integers and pointers, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// What control messages say. Layout of each (`struct cmsghdr` on the 64-bit targets this builds
/// for): length of header and data as usize, level, type, data; padded to 8.
fn control_messages(mut control: &[u8]) -> PacketInfo {
    let mut info = PacketInfo::default();
    while let Some((level, kind, data, rest)) = control_message(control) {
        match (level, kind) {
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) => drop(auxdata(data, &mut info)),
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => info.timestamp = timespec(data),
            _ => {}
        }
        control = rest;
    }
    info
}

/// Level, type and data of the first control message, and what follows it.
fn control_message(control: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let len = usize::from_ne_bytes(*control.first_chunk()?);
    let level = i32::from_ne_bytes(*control.get(8..)?.first_chunk()?);
    let kind = i32::from_ne_bytes(*control.get(12..)?.first_chunk()?);
    let data = control.get(HEADER..len)?;
    let rest = control.get(len.checked_next_multiple_of(8)?..).unwrap_or(&[]);
    Some((level, kind, data, rest))
}

/// A `struct tpacket_auxdata`.
fn auxdata(data: &[u8], info: &mut PacketInfo) -> Option<()> {
    let word = |at: usize| Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_ne_bytes(*data.get(at..)?.first_chunk()?));
    *info = PacketInfo {
        status: word(offset_of!(libc::tpacket_auxdata, tp_status))?,
        len: word(offset_of!(libc::tpacket_auxdata, tp_len))?,
        vlan_tci: half(offset_of!(libc::tpacket_auxdata, tp_vlan_tci))?,
        vlan_tpid: half(offset_of!(libc::tpacket_auxdata, tp_vlan_tpid))?,
        ..*info
    };
    Some(())
}

/// A `struct timespec` since 1970: seconds and nanoseconds as i64.
fn timespec(data: &[u8]) -> Option<SystemTime> {
    let seconds = i64::from_ne_bytes(*data.first_chunk()?);
    let nanos = i64::from_ne_bytes(*data.get(8..)?.first_chunk()?);
    let since = Duration::from_secs(seconds.try_into().ok()?);
    UNIX_EPOCH.checked_add(since)?.checked_add(Duration::from_nanos(nanos.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn auxdata_is_found_behind_other_control_messages() {
        let mut data = Vec::new();
        for word in [0x51_u32, 1500, 1400] {
            data.extend(word.to_ne_bytes());
        }
        for half in [0_u16, 14, 7, 0x8100] {
            data.extend(half.to_ne_bytes());
        }
        let mut control = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMP, &[0; 15]);
        assert_eq!(control_messages(&control).len, 0);
        control.extend(message(libc::SOL_PACKET, libc::PACKET_AUXDATA, &data));
        let info = control_messages(&control);
        assert_eq!((info.status, info.len), (0x51, 1500));
        assert_eq!((info.vlan_tci, info.vlan_tpid), (7, 0x8100));
        for cut in 0..control.len() - 4 {
            assert_eq!(control_messages(&control[..cut]).len, 0, "cut to {cut}");
        }
    }

    #[test]
    fn time_stamps_are_found_and_strange_ones_are_none() {
        let stamp = |seconds: i64, nanos: i64| {
            let data = [seconds, nanos].map(i64::to_ne_bytes);
            let control = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, data.as_flattened());
            control_messages(&control).timestamp
        };
        assert_eq!(stamp(7, 9), Some(UNIX_EPOCH + Duration::new(7, 9)));
        assert_eq!(stamp(-1, 0), None);
        assert_eq!(stamp(1, -1), None);
        assert_eq!(stamp(i64::MAX, i64::MAX), None);
    }

    #[test]
    fn control_messages_with_impossible_lengths_end_the_search() {
        for len in [0, 15, usize::MAX, usize::MAX - 7] {
            let mut control = message(1, 1, &[0; 64]);
            control[..8].copy_from_slice(&len.to_ne_bytes());
            assert!(control_message(&control).is_none(), "{len}");
        }
    }
}
