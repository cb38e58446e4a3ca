//! Frames on a stream: each stands behind its length. This is the way in and the prefix itself; the
//! way out is in `framed/send.rs`.
//!
//! # Theory of operation
//!
//! A stream keeps no boundaries: what one call brings starts and ends anywhere. So the queue owns
//! one buffer that takes what is there, and frames are cut out of it where they lie:
//!
//! ```text
//! buffer:  | len frame | len frame | len fra        |    free     |
//!            the batch               pending          recv puts more here
//! ```
//!
//! Only an incomplete frame at the end is ever moved, to the buffer's start, and at most once for
//! each batch. The buffer is longer than the longest frame, so there is always room for the rest.
//! A length that no frame has means that the stream is out of step, or that the peer means harm;
//! where the next frame starts is not known then, and the queue ends.
//!
//! What is not here: which descriptors are such a stream (`link/framed.rs`).

pub(crate) mod send;

use std::io;
use std::ops::Range;

use crate::batch::{RxBatch, RxDescriptor};
use crate::io::{FRAME_ROOM, Inlet, Port};
use crate::queue::{Closed, Fill, Receive, Wakeup};
use crate::sys::message::{self, PacketInfo};

/// How the length of a frame is written before it on a stream. It counts what follows it: the vnet
/// header, if there is one, and the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FramePrefix {
    /// 2 bytes, most significant first: many VPNs that run over TCP.
    Be16,
    /// 4 bytes, most significant first: QEMU (`-netdev stream`, `-netdev socket`) and passt.
    Be32,
    /// 2 bytes, least significant first: vpnkit's protocol, which gvproxy speaks as well.
    Le16,
}

impl FramePrefix {
    /// The longest prefix, in bytes.
    pub(super) const LONGEST: usize = 4;

    /// Its own length in bytes.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Be16 | Self::Le16 => 2,
            Self::Be32 => 4,
        }
    }

    /// The greatest length that may be sent behind it, in bytes.
    pub(crate) fn limit(self) -> usize {
        match self {
            Self::Be16 | Self::Le16 => u16::MAX.into(),
            Self::Be32 => FRAME_ROOM,
        }
    }

    /// The length at the start of `bytes`; `None` where it is not whole yet.
    fn read(self, bytes: &[u8]) -> Option<usize> {
        Some(match self {
            Self::Be16 => u16::from_be_bytes(*bytes.first_chunk()?).into(),
            // Where a usize is shorter the length is as impossible as the one that it becomes.
            Self::Be32 => {
                usize::try_from(u32::from_be_bytes(*bytes.first_chunk()?)).unwrap_or(usize::MAX)
            }
            Self::Le16 => u16::from_le_bytes(*bytes.first_chunk()?).into(),
        })
    }

    /// Writes the prefix of `len` bytes, of which there are no more than [`limit`](Self::limit),
    /// to the start of `out`.
    pub(super) fn write(self, len: usize, out: &mut [u8]) {
        let [.., a, b, c, d] = len.to_be_bytes();
        match self {
            Self::Be16 => out[..2].copy_from_slice(&[c, d]),
            Self::Be32 => out[..4].copy_from_slice(&[a, b, c, d]),
            Self::Le16 => out[..2].copy_from_slice(&[d, c]),
        }
    }
}

/// What one call takes at most: some 170 frames of 1500 bytes, and what a second-level cache holds.
/// In any case more than the longest frame behind its prefix.
const BUFFER: usize = 256 * 1024;
const _: () = assert!(BUFFER > FramePrefix::LONGEST + FRAME_ROOM);

/// Frames in one batch; what the buffer holds beyond is the next batch, without a call.
const FRAMES: usize = 256;

/// Receives from a stream as many frames as there are.
#[derive(Debug)]
pub(crate) struct StreamReceiver {
    inlet: Inlet,
    prefix: FramePrefix,
    buffer: Box<[u8]>,
    /// What has been received and was not cut into frames yet.
    pending: Range<usize>,
    frames: Vec<RxDescriptor>,
    /// Why nothing comes any more behind what the buffer holds.
    ended: Option<Closed>,
}

impl StreamReceiver {
    pub(crate) fn new(port: Port, prefix: FramePrefix) -> Self {
        Self {
            inlet: Inlet::new(port),
            prefix,
            buffer: vec![0; BUFFER].into(),
            pending: 0..0,
            frames: Vec::with_capacity(FRAMES),
            ended: None,
        }
    }

    /// Cuts frames out of what is pending, until the batch is full or the next one is not whole;
    /// whether there was any.
    fn cut(&mut self) -> bool {
        let begin = self.pending.start;
        while self.frames.len() < FRAMES && self.ended.is_none() {
            let Some(len) = self.prefix.read(&self.buffer[self.pending.clone()]) else { break };
            if len > FRAME_ROOM {
                self.inlet.port.stats.rx.malformed.add(1);
                self.ended = Some(Closed::OutOfStep { len });
                break;
            }
            let at = self.pending.start + self.prefix.len();
            let Some(message) = self.buffer[..self.pending.end].get(at..at + len) else { break };
            if let Some(meta) = self.inlet.admit(message, PacketInfo::default()) {
                let vnet = self.inlet.port.vnet_header;
                self.frames.push(RxDescriptor { offset: at + vnet, len: len - vnet, meta });
            }
            self.pending.start = at + len;
        }
        self.pending.start != begin
    }

    /// One call, behind what is pending.
    fn receive(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.pending.clone(), 0);
        self.pending = 0..self.pending.len();
        self.inlet.called();
        message::recv_some(self.inlet.port.fd(), &mut self.buffer[self.pending.end..])
    }

    /// The stream is at its end. A frame that has begun will not be whole any more.
    fn end(&mut self, why: Closed) -> Fill {
        if !self.pending.is_empty() {
            self.inlet.port.stats.rx.malformed.add(1);
            self.pending = 0..0;
        }
        self.ended = Some(why.clone());
        Fill::Closed(why)
    }

    /// What the visit brought, or that it was the last one.
    fn outcome(&mut self) -> Fill {
        match (self.inlet.settle(), &self.ended) {
            (Fill::Frames(0), Some(why)) => Fill::Closed(why.clone()),
            (fill, _) => fill,
        }
    }
}

impl Receive for StreamReceiver {
    fn fill(&mut self) -> io::Result<Fill> {
        self.frames.clear();
        // The last call may have brought more than went into its batch.
        if self.cut() || self.ended.is_some() {
            return Ok(self.outcome());
        }
        loop {
            match self.receive() {
                Ok(0) => return Ok(self.end(Closed::PeerClosed)),
                Ok(len) => {
                    self.pending.end += len;
                    self.cut();
                    return Ok(self.outcome());
                }
                Err(error) => match self.inlet.failed("recv", &error) {
                    None => {}
                    Some(Fill::Closed(why)) => return Ok(self.end(why)),
                    Some(fill) => return Ok(fill),
                },
            }
        }
    }

    fn batch(&mut self) -> RxBatch<'_> {
        RxBatch::new(&mut self.buffer, &self.frames)
    }

    fn release(&mut self) {
        self.frames.clear();
    }

    fn wakeup(&self) -> Wakeup<'_> {
        self.inlet.wakeup()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_written_as_they_are_read() {
        for (prefix, bytes) in [
            (FramePrefix::Be16, &[0x12, 0x34][..]),
            (FramePrefix::Be32, &[0, 0, 0x12, 0x34]),
            (FramePrefix::Le16, &[0x34, 0x12]),
        ] {
            let mut out = [0xff; 4];
            prefix.write(0x1234, &mut out);
            assert_eq!(&out[..prefix.len()], bytes);
            assert_eq!(prefix.read(&out), Some(0x1234));
            assert_eq!(prefix.read(&bytes[..prefix.len() - 1]), None);
            prefix.write(prefix.limit(), &mut out);
            assert_eq!(prefix.read(&out), Some(prefix.limit()));
        }
        assert_eq!(FramePrefix::Be32.read(&[0xff; 4]), Some(0xffff_ffff));
    }
}
