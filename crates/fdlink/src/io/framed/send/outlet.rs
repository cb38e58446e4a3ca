//! The descriptor of a stream, and how a frame looks on it.

use std::io;

use crate::batch::TxFrame;
use crate::io::Port;
use crate::io::framed::FramePrefix;
use crate::io::transmit::lead::Lead;
use crate::io::transmit::way::{Way, byte_of};
use crate::offload::vnet::TxOffload;

/// Takes bytes.
pub(super) struct Outlet {
    pub(super) port: Port,
    pub(super) lead: Lead,
    /// The last call found no memory.
    pub(super) starved: bool,
}

impl Outlet {
    pub(super) fn new(port: Port, prefix: FramePrefix) -> Self {
        Self { lead: Lead::new(Some(prefix), port.vnet_header), port, starved: false }
    }

    /// How a frame of `len` bytes leaves; `byte` gives the one at an offset. A super-frame of which
    /// the prefix cannot say how long it is leaves in pieces.
    pub(super) fn way(
        &self,
        len: usize,
        offload: TxOffload,
        byte: impl Fn(usize) -> Option<u8>,
    ) -> Way<'_> {
        match self.port.way(len, offload, byte) {
            Way::Whole(header) if len > self.lead.limit() && header.is_super_frame() => Way::Cut(1),
            Way::Complete(_) | Way::Whole(_) if len > self.lead.limit() => {
                Way::Refused(&self.port.stats.tx.too_long)
            }
            way => way,
        }
    }

    /// How a frame leaves that is gathered from the caller's buffers.
    pub(super) fn way_of(&self, frame: &TxFrame<'_>) -> Way<'_> {
        self.way(frame.len(), frame.offload(), |at| byte_of(frame, at))
    }

    /// Makes a call that sends bytes; returns how many, 0 where the descriptor takes none now.
    /// Every other error ends the stream: what left of it is not known.
    pub(super) fn call(
        &mut self,
        mut send: impl FnMut(&Port) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let counters = &self.port.stats.tx;
        loop {
            counters.calls.add(1);
            let result = send(&self.port);
            let errno = result.as_ref().map_or_else(io::Error::raw_os_error, |_| None);
            self.starved = matches!(errno, Some(libc::ENOBUFS | libc::ENOMEM));
            match errno {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                    counters.would_block.add(1);
                    return Ok(0);
                }
                _ => return result,
            }
        }
    }
}
