//! Lists of outgoing messages: sendmsg, sendmmsg, writev. [`Outgoing`] owns only the arrays that
//! describe them, and borrows the bytes for the time between `begin` and the call; the pointers are
//! written anew before each call, so moving the owner is harmless.

// UNSAFETY: the kernel takes messages as arrays of pointers to arrays of pointers.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::Destinations;
use super::message::{MsgFlags, empty_header};
use super::{check, check_len, len_of};

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
