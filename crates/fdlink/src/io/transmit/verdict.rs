//! Giving messages to the kernel, counting what it took, and what its errors mean.

use std::io;

use crate::io::{Channel, Port};
use crate::sys::outgoing::Gathering;

/// What a call took.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gone {
    /// Of one message a part, which was counted. What is missing cannot be sent after it.
    Short,
    /// That many messages.
    Whole(usize),
}

impl Gone {
    /// How many messages are dealt with.
    pub(super) fn count(self) -> usize {
        match self {
            Self::Short => 1,
            Self::Whole(count) => count,
        }
    }
}

/// What is to be done after a send that failed.
#[derive(Debug)]
pub(super) enum Verdict {
    Again,
    /// It was counted.
    Drop,
    Fatal(io::Error),
    Full,
    NoBuffers,
}

/// Whether the kernel does not like the frame itself: EINVAL for one that it cannot cut, EMSGSIZE
/// for one that a socket's buffer cannot hold at once. EIO is none of these: a TUN that is down.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE))
}

impl Port {
    /// Gives the messages of `list` from `at` on to the kernel, in one call; a device takes one.
    pub(super) fn give(&self, list: &mut Gathering<'_, '_>, at: usize) -> io::Result<Gone> {
        self.stats.tx.calls.add(1);
        if self.channel != Channel::Device {
            return list.send(self.fd(), at).map(Gone::Whole);
        }
        let len = list.write(self.fd(), at)?;
        Ok(self.written(len, list.bytes(at)))
    }

    /// What a device took when it was given `len` bytes.
    pub(super) fn written(&self, taken: usize, len: usize) -> Gone {
        if taken < len {
            self.stats.tx.short_write.add(1);
            return Gone::Short;
        }
        Gone::Whole(1)
    }

    pub(in crate::io) fn count_sent(&self, len: usize, is_super_frame: bool) {
        let counters = &self.stats.tx;
        counters.frames.add(1);
        counters.bytes.add(len as u64);
        counters.super_frames.add(u64::from(is_super_frame));
    }

    /// What an error means for the frame at hand; counts it where that is all.
    pub(super) fn verdict(&self, error: io::Error) -> Verdict {
        let counters = &self.stats.tx;
        let reason = match error.raw_os_error().unwrap_or(0) {
            libc::EINTR => return Verdict::Again,
            libc::EAGAIN => {
                counters.would_block.add(1);
                return Verdict::Full;
            }
            libc::ENOBUFS | libc::ENOMEM => return Verdict::NoBuffers,
            libc::EMSGSIZE => &counters.too_long,
            libc::EINVAL => &counters.invalid,
            // EIO: a TUN that is down.
            libc::ENETDOWN | libc::EIO => &counters.link_down,
            libc::EPIPE | libc::ECONNREFUSED | libc::ECONNRESET | libc::ENOTCONN
                if self.channel == Channel::Datagram =>
            {
                &counters.peer_gone
            }
            libc::EPIPE
            | libc::ECONNRESET
            | libc::ENOTCONN
            | libc::EBADF
            | libc::EBADFD
            | libc::ENXIO
            | libc::ENODEV
            | libc::ENOTSOCK => return Verdict::Fatal(error),
            _ => &counters.other_errors,
        };
        reason.add(1);
        Verdict::Drop
    }
}
