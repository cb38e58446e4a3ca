//! Many frames for each system call (recvmmsg), each into a buffer of its own that can hold a
//! super-frame. The buffers are made once; those that small traffic does not reach stay untouched
//! and so take no memory.

use std::os::fd::AsFd;

use crate::batch::{RxBatch, RxDescriptor};
use crate::io::{FRAME_ROOM, Inlet, Port};
use crate::queue::{Closed, Fill, Receive, Wakeup};
use crate::sys::message::Incoming;

/// Receives up to [`Port::batch`] frames at a time.
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
        let messages =
            Incoming::new(port.batch, FRAME_ROOM, port.ask()).with_headroom(port.headroom());
        let frames = Vec::with_capacity(port.batch);
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
        let info = self.messages.packet_info(index);
        let (start, len) = (self.messages.offset(index), self.messages.len(index));
        let message = &mut self.messages.memory()[start..start + len];
        if let Some(meta) = self.inlet.admit_message(message, info) {
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

    fn update_stats(&mut self) {
        self.inlet.drops.count(&self.inlet.port);
    }
}
