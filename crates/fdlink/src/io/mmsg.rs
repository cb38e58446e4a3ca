//! Many frames for each system call (recvmmsg), each into a buffer of its own that can hold a
//! super-frame. The buffers are made once; those that small traffic does not reach stay untouched
//! and so take no memory.

use std::os::fd::{AsFd, OwnedFd};

use crate::batch::{RxBatch, RxDescriptor};
use crate::io::{Channel, FRAME_ROOM, Inlet, Port};
use crate::queue::{Closed, Fill, Receive, Wakeup};
use crate::sys::message::{Incoming, PacketInfo};

/// Messages for each call. At 1500 bytes a frame more than this gains nothing that can be
/// measured, and 32 × 68 KiB is what a second-level cache holds.
const MESSAGES: usize = 32;

/// Receives up to [`MESSAGES`] frames at a time.
#[derive(Debug)]
pub(crate) struct RecvMmsg {
    inlet: Inlet,
    messages: Incoming,
    frames: Vec<RxDescriptor>,
    /// The peer's end was found behind the frames of the last batch.
    ended: bool,
}

impl RecvMmsg {
    pub(crate) fn new(port: Port) -> Self {
        let messages = Incoming::new(MESSAGES, FRAME_ROOM, port.channel.asks());
        let frames = Vec::with_capacity(MESSAGES);
        Self { inlet: Inlet::new(port), messages, frames, ended: false }
    }

    fn take(&mut self, count: usize) -> Fill {
        for index in 0..count {
            // After the peer's close the kernel fills the rest of the vector, and every later one,
            // with messages of no bytes.
            if self.messages.len(index) == 0 && self.inlet.is_end(&self.messages, index) {
                self.ended = true;
                break;
            }
            self.take_one(index);
        }
        match self.inlet.settle() {
            Fill::Frames(0) if self.ended => Fill::Closed(Closed::PeerClosed),
            fill => fill,
        }
    }

    fn take_one(&mut self, index: usize) {
        if self.messages.truncated(index) {
            self.inlet.port.stats.rx.truncated.add(1);
            return;
        }
        let info = match self.inlet.port.channel {
            Channel::Packet => self.messages.packet_info(index),
            _ => PacketInfo::default(),
        };
        let (start, len) = (self.messages.offset(index), self.messages.len(index));
        let message = &self.messages.memory()[start..start + len];
        if let Some(meta) = self.inlet.admit(message, info) {
            let vnet = self.inlet.port.vnet_header;
            self.frames.push(RxDescriptor { offset: start + vnet, len: len - vnet, meta });
        }
    }
}

impl Receive for RecvMmsg {
    fn fill(&mut self) -> std::io::Result<Fill> {
        self.frames.clear();
        if self.ended {
            return Ok(Fill::Closed(Closed::PeerClosed));
        }
        loop {
            self.inlet.called();
            match self.messages.recv_many(self.inlet.port.fd.as_fd()) {
                Ok(count) => return Ok(self.take(count)),
                Err(error) => {
                    if let Some(fill) = self.inlet.failed("recvmmsg", &error) {
                        return Ok(fill);
                    }
                }
            }
        }
    }

    fn batch(&mut self) -> RxBatch<'_> {
        RxBatch::new(self.messages.memory(), &self.frames)
    }

    fn release(&mut self) {
        self.frames.clear();
    }

    fn wakeup(&self) -> Wakeup<'_> {
        self.inlet.wakeup()
    }

    fn into_descriptor(self: Box<Self>) -> Option<std::io::Result<OwnedFd>> {
        Some(self.inlet.port.fd.try_clone())
    }
}
