//! A framed link under test, and its far end as a plain stream.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use fdlink::link::{FramePrefix, adopt_framed};
use fdlink::stats::LinkStats;
use fdlink::{Link, LinkOptions, Receive, Sent, Transmit, TxFrame};

use crate::common::{PATIENCE, recv};

pub(crate) const PREFIXES: [FramePrefix; 3] =
    [FramePrefix::Be16, FramePrefix::Be32, FramePrefix::Le16];

/// The longest message that may stand behind a length, as QEMU has it (NET_BUFSIZE).
pub(crate) const LONGEST: usize = 68 * 1024;

/// The bytes of a frame on the stream.
pub(crate) fn framed(prefix: FramePrefix, frame: &[u8]) -> Vec<u8> {
    let [a, b, c, d] = u32::try_from(frame.len()).unwrap().to_be_bytes();
    let length = match prefix {
        FramePrefix::Be16 => vec![c, d],
        FramePrefix::Le16 => vec![d, c],
        _ => vec![a, b, c, d],
    };
    [length, frame.to_vec()].concat()
}

pub(crate) fn body(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i ^ (i >> 8) ^ seed) & 0xff).try_into().unwrap()).collect()
}

/// A link under test, and the far end as a plain stream.
pub(crate) struct Rig {
    pub(crate) prefix: FramePrefix,
    pub(crate) rx: Box<dyn Receive>,
    pub(crate) tx: Box<dyn Transmit>,
    pub(crate) stats: LinkStats,
    pub(crate) far: UnixStream,
}

impl Rig {
    pub(crate) fn new(prefix: FramePrefix) -> Self {
        Self::with(prefix, &LinkOptions::new())
    }

    pub(crate) fn with(prefix: FramePrefix, options: &LinkOptions) -> Self {
        let (ours, far) = UnixStream::pair().unwrap();
        Self::on(ours, far, prefix, options)
    }

    /// With a send buffer that a frame or two fill.
    pub(crate) fn narrow(prefix: FramePrefix) -> Self {
        Self::narrow_with(prefix, &LinkOptions::new())
    }

    /// The same with other options.
    pub(crate) fn narrow_with(prefix: FramePrefix, options: &LinkOptions) -> Self {
        let (ours, far) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 8192).unwrap();
        // Buffers only grow.
        Self::on(ours, far, prefix, &options.clone().socket_buffer(1))
    }

    pub(crate) fn on(
        ours: UnixStream,
        far: UnixStream,
        prefix: FramePrefix,
        options: &LinkOptions,
    ) -> Self {
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let link = adopt_framed(ours.into(), prefix, options).unwrap();
        let stats = link.stats();
        let mut pairs = Box::new(link).into_queues().unwrap();
        let pair = pairs.pop().unwrap();
        assert!(pairs.is_empty(), "a stream is one queue");
        Self { prefix, rx: pair.rx.unwrap(), tx: pair.tx, stats, far }
    }

    pub(crate) fn arrive(&mut self, bytes: &[u8]) {
        self.far.write_all(bytes).unwrap();
    }

    pub(crate) fn recv(&mut self, count: usize) -> Vec<Vec<u8>> {
        recv(&mut *self.rx, count, PATIENCE)
    }

    pub(crate) fn send(&mut self, frames: &[Vec<u8>]) -> Sent {
        let parts: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let list: Vec<_> = parts.iter().map(|parts| TxFrame::new(parts)).collect();
        self.tx.send(&list).unwrap()
    }

    /// Reads the next frame at the far end.
    pub(crate) fn far_recv(&mut self) -> Vec<u8> {
        let mut length = vec![0; if self.prefix == FramePrefix::Be32 { 4 } else { 2 }];
        self.far.read_exact(&mut length).unwrap();
        if self.prefix == FramePrefix::Le16 {
            length.reverse();
        }
        let len = length.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        let mut frame = vec![0; len];
        self.far.read_exact(&mut frame).unwrap();
        frame
    }

    /// Reads what is there at the far end, at most `most` bytes.
    pub(crate) fn far_read(&mut self, most: usize) -> Vec<u8> {
        self.far.set_nonblocking(true).unwrap();
        let mut bytes = vec![0; most];
        let len = self.far.read(&mut bytes).unwrap_or(0);
        self.far.set_nonblocking(false).unwrap();
        bytes.truncate(len);
        bytes
    }
}

pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}
