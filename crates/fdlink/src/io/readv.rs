//! One frame for each system call, into one buffer that is used again and again and so stays in
//! the cache. Works on every descriptor, and is the best general policy: at 64 KiB a frame, the
//! call is noise.

use crate::batch::{RxBatch, RxDescriptor};
use crate::io::{Channel, FRAME_ROOM, Inlet, Port};
use crate::queue::{Closed, Fill, Receive, Wakeup};
use crate::sys::message::{self, Incoming, PacketInfo};

/// Receives one frame at a time.
#[derive(Debug)]
pub(crate) struct Readv {
    inlet: Inlet,
    buffer: Incoming,
    /// The frame in the buffer, if there is one.
    frame: Option<RxDescriptor>,
}

/// What a call brought.
struct Arrived {
    len: usize,
    truncated: bool,
    info: PacketInfo,
}

impl Readv {
    pub(crate) fn new(port: Port) -> Self {
        let buffer = Incoming::new(1, FRAME_ROOM, port.ask()).with_headroom(port.headroom());
        Self { inlet: Inlet::new(port), buffer, frame: None }
    }

    fn receive(&mut self) -> std::io::Result<Arrived> {
        let Self { inlet, buffer, .. } = self;
        let (fd, info) = (inlet.port.fd(), PacketInfo::default());
        Ok(match inlet.port.channel {
            Channel::Device => {
                let len = message::read(fd, buffer.memory())?;
                // A device cuts off in silence; FRAME_ROOM has room to spare for any frame.
                Arrived { len, truncated: len == FRAME_ROOM, info }
            }
            Channel::Datagram | Channel::Seqpacket if !inlet.port.timestamps => {
                let len = message::recv(fd, buffer.memory())?;
                Arrived { len, truncated: len > FRAME_ROOM, info }
            }
            _ => {
                buffer.recv_one(fd)?;
                let (len, truncated) = (buffer.len(0), buffer.truncated(0));
                Arrived { len, truncated, info: buffer.packet_info(0) }
            }
        })
    }

    fn call(&self) -> &'static str {
        match self.inlet.port.channel {
            Channel::Device => "read",
            Channel::Datagram | Channel::Seqpacket => "recv",
            Channel::Packet | Channel::UnixSeqpacket => "recvmsg",
        }
    }

    fn take(&mut self, arrived: &Arrived) -> Fill {
        if arrived.truncated {
            self.inlet.port.stats.rx.truncated.add(1);
            return Fill::Frames(0);
        }
        if arrived.len == 0 && self.inlet.is_end(&self.buffer, 0) {
            return Fill::Closed(Closed::PeerClosed);
        }
        let message = &mut self.buffer.memory()[..arrived.len];
        self.frame = self.inlet.admit_message(message, arrived.info).map(|meta| {
            let offset = self.inlet.port.vnet_header;
            RxDescriptor { offset, len: arrived.len - offset, meta }
        });
        self.inlet.settle()
    }
}

impl Receive for Readv {
    fn fill(&mut self) -> std::io::Result<Fill> {
        self.frame = None;
        loop {
            self.inlet.called();
            match self.receive() {
                Ok(arrived) => return Ok(self.take(&arrived)),
                Err(error) => {
                    if let Some(fill) = self.inlet.failed(self.call(), &error) {
                        return Ok(fill);
                    }
                }
            }
        }
    }

    fn batch(&mut self) -> RxBatch<'_> {
        RxBatch::new(self.buffer.memory(), self.frame.as_slice())
    }

    fn release(&mut self) {
        self.frame = None;
    }

    fn wakeup(&self) -> Wakeup<'_> {
        self.inlet.wakeup()
    }

    fn update_stats(&mut self) {
        self.inlet.drops.count(&self.inlet.port);
    }
}
