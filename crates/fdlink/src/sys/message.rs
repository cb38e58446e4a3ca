//! Messages in and out: read, recv, recvmsg, recvmmsg; write, send, sendmsg, sendmmsg, writev.
//!
//! [`Incoming`] owns its buffers and the arrays that describe them; [`Outgoing`] owns only the
//! arrays and borrows the bytes for the time between `begin` and the call. The pointers in these
//! arrays are written anew before each call, so moving the owner is harmless.

// UNSAFETY: the kernel takes messages as arrays of pointers to arrays of pointers, and recvmmsg,
// sendmmsg and PACKET_AUXDATA are not in std.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::address::{self, Destinations};
use super::{check, check_len, len_of};

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
const CONTROL_LEN: usize = 128;

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
            if matches!(self.ask, Ask::PacketInfo | Ask::Timestamp) {
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = CONTROL_LEN;
            }
        }
    }
}

/// The type of recvmmsg's and sendmmsg's flags.
#[cfg(target_env = "musl")]
type MsgFlags = libc::c_uint;
/// The type of recvmmsg's and sendmmsg's flags.
#[cfg(not(target_env = "musl"))]
type MsgFlags = libc::c_int;

fn empty_header() -> libc::mmsghdr {
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

/// The arrays that describe a list of outgoing messages.
pub(crate) struct Outgoing {
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    /// For each message, where its iovecs end and how many bytes they hold.
    ends: Vec<(usize, usize)>,
    /// Where they go, on a cooked socket.
    destinations: Option<Destinations>,
}

// SAFETY: the raw pointers are only followed by the kernel, during calls of a `Gathering`, which
// borrows both this and the bytes; between gatherings they are dead.
unsafe impl Send for Outgoing {}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("capacity", &self.headers.capacity()).finish()
    }
}

impl Outgoing {
    /// Room for that many messages of a few parts each; more parts make it grow once.
    pub(crate) fn with_capacity(messages: usize) -> Self {
        Self {
            headers: Vec::with_capacity(messages),
            iovecs: Vec::with_capacity(messages * 4),
            ends: Vec::with_capacity(messages),
            destinations: None,
        }
    }

    /// The same for a cooked socket on that interface: the first 14 bytes of each message are an
    /// Ethernet header, of which the kernel is told destination and protocol.
    pub(crate) fn cooked(messages: usize, interface: libc::c_int) -> Self {
        let destinations = Some(Destinations::with_capacity(messages, interface));
        Self { destinations, ..Self::with_capacity(messages) }
    }

    /// Starts an empty list whose bytes live for `'bytes`.
    pub(crate) fn begin<'bytes>(&mut self) -> Gathering<'_, 'bytes> {
        self.iovecs.clear();
        self.ends.clear();
        if let Some(destinations) = &mut self.destinations {
            destinations.clear();
        }
        Gathering { arrays: self, bytes: PhantomData }
    }
}

/// A list of messages, made of borrowed parts.
#[derive(Debug)]
pub(crate) struct Gathering<'arrays, 'bytes> {
    arrays: &'arrays mut Outgoing,
    bytes: PhantomData<&'bytes [u8]>,
}

impl<'bytes> Gathering<'_, 'bytes> {
    /// Adds a part to the message being made.
    pub(crate) fn part(&mut self, bytes: &'bytes [u8]) {
        let destinations = self.arrays.destinations.as_mut();
        let bytes = destinations.map_or(bytes, |destinations| destinations.take(bytes));
        if !bytes.is_empty() {
            let iov_base = bytes.as_ptr().cast_mut().cast();
            self.arrays.iovecs.push(libc::iovec { iov_base, iov_len: bytes.len() });
        }
    }

    /// Ends the message being made.
    pub(crate) fn end_message(&mut self) {
        let begin = self.arrays.ends.last().map_or(0, |(end, _)| *end);
        let end = self.arrays.iovecs.len();
        let bytes = self.arrays.iovecs[begin..].iter().map(|iovec| iovec.iov_len).sum();
        self.arrays.ends.push((end, bytes));
        if let Some(destinations) = &mut self.arrays.destinations {
            destinations.end_message();
        }
    }

    /// Bytes of message `index`.
    pub(crate) fn bytes(&self, index: usize) -> usize {
        self.arrays.ends[index].1
    }

    /// Sends messages `from..` to a socket; returns how many left.
    pub(crate) fn send(&mut self, fd: BorrowedFd<'_>, from: usize) -> io::Result<usize> {
        let Outgoing { headers, iovecs, ends, destinations } = &mut *self.arrays;
        headers.clear();
        let mut begin = if from == 0 { 0 } else { ends[from - 1].0 };
        for (end, _) in &ends[from..] {
            let mut header = empty_header();
            header.msg_hdr.msg_iov = iovecs[begin..*end].as_mut_ptr();
            header.msg_hdr.msg_iovlen = end - begin;
            headers.push(header);
            begin = *end;
        }
        let names = destinations.as_ref().map_or(&[][..], Destinations::names);
        for (header, name) in headers.iter_mut().zip(names.iter().skip(from)) {
            // sendmsg and sendmmsg only read it; the field is one for receiving as well.
            header.msg_hdr.msg_name = (&raw const *name).cast_mut().cast();
            header.msg_hdr.msg_namelen = len_of::<libc::sockaddr_ll>();
        }
        let (raw, flags) = (fd.as_raw_fd(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        if let [only] = headers.as_slice() {
            // SAFETY: the header was written above; its iovecs come from slices that `'bytes`
            // keeps alive, its name is one of `arrays`, and sendmsg only reads them.
            check_len(unsafe { libc::sendmsg(raw, &raw const only.msg_hdr, flags) })?;
            return Ok(1);
        }
        let count = libc::c_uint::try_from(headers.len()).unwrap_or(libc::c_uint::MAX);
        // SAFETY: as above, for each of the `count` headers; sendmmsg writes their msg_len only.
        let sent = unsafe { libc::sendmmsg(raw, headers.as_mut_ptr(), count, flags as MsgFlags) };
        Ok(usize::try_from(check(sent)?).unwrap_or(0))
    }

    /// Sends message `index` on a stream, or as much of it as goes; returns the bytes it took.
    pub(crate) fn send_some(&mut self, fd: BorrowedFd<'_>, index: usize) -> io::Result<usize> {
        let begin = if index == 0 { 0 } else { self.arrays.ends[index - 1].0 };
        let iovecs = &mut self.arrays.iovecs[begin..self.arrays.ends[index].0];
        let mut header = empty_header().msg_hdr;
        header.msg_iov = iovecs.as_mut_ptr();
        header.msg_iovlen = iovecs.len();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the header was written above; its iovecs come from slices that `'bytes` keeps
        // alive, and sendmsg only reads them.
        check_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, flags) })
    }

    /// Writes message `index` to a device; returns the bytes it took.
    pub(crate) fn write(&self, fd: BorrowedFd<'_>, index: usize) -> io::Result<usize> {
        let begin = if index == 0 { 0 } else { self.arrays.ends[index - 1].0 };
        let iovecs = &self.arrays.iovecs[begin..self.arrays.ends[index].0];
        let count = libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the pointer and the count are those of one live slice, whose entries come from
        // slices that `'bytes` keeps alive.
        check_len(unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr(), count) })
    }
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
