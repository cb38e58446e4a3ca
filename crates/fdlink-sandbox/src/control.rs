//! The socket between P and init, and what crosses it.
//!
//! # Theory of operation
//!
//! A pair of `AF_UNIX` `SOCK_SEQPACKET` sockets, close-on-exec, made before the clone; each side
//! keeps one end, so that the end of either process is a hang-up for the other. One message is one
//! datagram: a tag byte and a body, all of it ours, both ends from the same binary.
//!
//! ```text
//! P → init     Go                        start the command
//!              Signal  i32               send it to the command
//! init → P     Note    utf-8             something was left out
//!              Ready   + SCM_RIGHTS      the outer end of the link
//!              Failed  step u8, errno    a step failed; init ends
//!              Exited  code i32          the command ended by itself
//!              Killed  signal i32        the command was killed
//! CMD  → P     NoExec  errno             execvp failed (sent by the forked child itself)
//! ```
//!
//! A message is never empty: a read of 0 bytes is the hang-up.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use crate::{
    config::MAX_QUEUES,
    error::{Failure, Step},
    sandbox::Exit,
};

/// The longest message; notes are cut to fit.
const MESSAGE_LEN: usize = 1024;

const GO: u8 = 1;
const SIGNAL: u8 = 2;
const NOTE: u8 = 3;
const READY: u8 = 4;
const FAILED: u8 = 5;
const EXITED: u8 = 6;
const KILLED: u8 = 7;
const NO_EXEC: u8 = 8;

/// What P tells init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToInit {
    Go,
    Signal(i32),
}

/// What init tells P.
#[derive(Debug)]
pub(crate) enum ToParent {
    Note(String),
    Ready(Vec<OwnedFd>),
    Failed(Failure),
    Exited(Exit),
    NoExec(Errno),
}

/// One end.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Both ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, true)?)
    }

    /// Whether the other end is closed, without waiting and without taking a message.
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut byte = [0; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(&self.socket, &mut byte, flags), Ok((0, _)))
    }

    pub(crate) fn tell_init(&self, message: ToInit) -> io::Result<()> {
        match message {
            ToInit::Go => self.send(&[GO], &[]),
            ToInit::Signal(signal) => self.send(&with_number(SIGNAL, signal), &[]),
        }
    }

    pub(crate) fn tell_parent(&self, message: &ToParent) -> io::Result<()> {
        match message {
            ToParent::Note(text) => {
                let cut = text.floor_char_boundary(MESSAGE_LEN - 1);
                self.send(&[&[NOTE], &text.as_bytes()[..cut]].concat(), &[])
            }
            ToParent::Ready(descriptors) => {
                let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                self.send(&[READY], &borrowed)
            }
            ToParent::Failed(failure) => {
                let errno = failure.errno.raw_os_error().to_le_bytes();
                self.send(&[&[FAILED, failure.step.number()], errno.as_slice()].concat(), &[])
            }
            ToParent::Exited(Exit::Code(code)) => self.send(&with_number(EXITED, *code), &[]),
            ToParent::Exited(Exit::Signal(signal)) => self.send(&with_number(KILLED, *signal), &[]),
            ToParent::NoExec(errno) => self.send(&with_number(NO_EXEC, errno.raw_os_error()), &[]),
        }
    }

    /// The next message from P; `None` when P is gone.
    pub(crate) fn hear_parent(&self) -> io::Result<Option<ToInit>> {
        let mut buffer = [0; MESSAGE_LEN];
        let (len, _) = self.receive(&mut buffer)?;
        match &buffer[..len] {
            [] => Ok(None),
            [GO] => Ok(Some(ToInit::Go)),
            [SIGNAL, number @ ..] => Ok(Some(ToInit::Signal(read_number(number)?))),
            _ => Err(Errno::PROTO.into()),
        }
    }

    /// The next message from init; `None` when init is gone.
    pub(crate) fn hear_init(&self) -> io::Result<Option<ToParent>> {
        let mut buffer = [0; MESSAGE_LEN];
        let (len, descriptors) = self.receive(&mut buffer)?;
        Ok(Some(match &buffer[..len] {
            [] => return Ok(None),
            [NOTE, text @ ..] => ToParent::Note(String::from_utf8_lossy(text).into_owned()),
            [READY] => ToParent::Ready(descriptors),
            [FAILED, step, errno @ ..] => ToParent::Failed(Failure {
                step: Step::from_number(*step).ok_or(Errno::PROTO)?,
                errno: Errno::from_raw_os_error(read_number(errno)?),
            }),
            [EXITED, code @ ..] => ToParent::Exited(Exit::Code(read_number(code)?)),
            [KILLED, signal @ ..] => ToParent::Exited(Exit::Signal(read_number(signal)?)),
            [NO_EXEC, errno @ ..] => {
                ToParent::NoExec(Errno::from_raw_os_error(read_number(errno)?))
            }
            _ => return Err(Errno::PROTO.into()),
        }))
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::TOOMANYREFS.into());
        }
        // NOSIGNAL: the other end may be gone, and EPIPE is enough.
        let iov = [IoSlice::new(bytes)];
        rustix::io::retry_on_intr(|| {
            sendmsg(&self.socket, &iov, &mut control, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut iov = [IoSliceMut::new(buffer)];
            match recvmsg(&self.socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => return Ok((message.bytes, descriptors_of(&mut control))),
                // ECONNRESET: the peer ended with something of ours unread. The kernel says it
                // once, ahead of messages that the peer had sent and that are still to be read
                // (net/unix/af_unix.c, unix_release_sock; __skb_try_recv_datagram).
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn descriptors_of(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    descriptors
}

fn with_number(tag: u8, number: i32) -> [u8; 5] {
    let [a, b, c, d] = number.to_le_bytes();
    [tag, a, b, c, d]
}

fn read_number(bytes: &[u8]) -> io::Result<i32> {
    Ok(i32::from_le_bytes(bytes.try_into().map_err(|_| Errno::PROTO)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cross() {
        let (parent, init) = Control::pair().unwrap();
        parent.tell_init(ToInit::Go).unwrap();
        parent.tell_init(ToInit::Signal(15)).unwrap();
        assert_eq!(init.hear_parent().unwrap(), Some(ToInit::Go));
        assert_eq!(init.hear_parent().unwrap(), Some(ToInit::Signal(15)));

        let long = "é".repeat(MESSAGE_LEN);
        init.tell_parent(&ToParent::Note(long.clone())).unwrap();
        init.tell_parent(&ToParent::NoExec(Errno::NOENT)).unwrap();
        let (a, b) = (std::fs::File::open("/").unwrap(), std::fs::File::open("/").unwrap());
        init.tell_parent(&ToParent::Ready(vec![a.into(), b.into()])).unwrap();
        init.tell_parent(&ToParent::Failed(Failure { step: Step::UidMap, errno: Errno::PERM }))
            .unwrap();
        let Some(ToParent::Note(note)) = parent.hear_init().unwrap() else { panic!() };
        assert!(long.starts_with(&note) && note.len() > MESSAGE_LEN - 4);
        assert!(matches!(parent.hear_init().unwrap(), Some(ToParent::NoExec(Errno::NOENT))));
        let Some(ToParent::Ready(fds)) = parent.hear_init().unwrap() else { panic!() };
        assert_eq!(fds.len(), 2);
        let Some(ToParent::Failed(failure)) = parent.hear_init().unwrap() else { panic!() };
        assert_eq!((failure.step, failure.errno), (Step::UidMap, Errno::PERM));
    }

    #[test]
    fn what_was_said_before_a_hang_up_is_still_heard() {
        let (parent, init) = Control::pair().unwrap();
        assert!(!parent.is_hung_up());
        // Unread by init when it ends: the kernel answers ECONNRESET first.
        parent.tell_init(ToInit::Signal(15)).unwrap();
        init.tell_parent(&ToParent::Exited(Exit::Code(7))).unwrap();
        drop(init);
        let heard = parent.hear_init().unwrap();
        assert!(matches!(heard, Some(ToParent::Exited(Exit::Code(7)))), "{heard:?}");
        assert!(parent.is_hung_up());
        assert!(parent.hear_init().unwrap().is_none());
        assert!(parent.tell_init(ToInit::Go).is_err());
    }
}
