//! TCP behind a small trait: segments in, segments out, bytes in, bytes out, the next deadline.
//!
//! The stack knows only what stands here, so that another TCP can take smoltcp's place in one
//! line (`SmolTcp` below). Addresses, link headers, checksums and routing are not TCP's business:
//! a connection sees segments, whatever IP version carried them.

mod smoltcp;

use std::num::NonZeroU16;
use std::time::Instant;

pub(crate) use self::smoltcp::{ConnectionPool, SmolTcp};

/// Bytes that [`Connection::segment_arrived`] may overwrite in front of a segment, and that a
/// [`SegmentSink`] must lend in front of one: the room of the IPv4 header without options, which
/// every frame has there anyway.
pub(crate) const SEGMENT_HEADROOM: usize = 20;

/// Flags in byte 13 of the TCP header (RFC 9293, section 3.1).
pub(crate) mod flags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;
}

/// What a connection is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionSpec {
    /// Our port.
    pub(crate) local_port: u16,
    /// The peer's port.
    pub(crate) remote_port: u16,
    /// Payload bytes of the largest segment that goes out uncut.
    pub(crate) mss: usize,
    /// Payload bytes of the largest super-frame; `None` where segments leave one by one.
    pub(crate) super_segment: Option<usize>,
    /// Capacity of each of the two buffers, in bytes.
    pub(crate) buffer: usize,
    /// Whether the path needs congestion control; a link inside one machine does not.
    pub(crate) congestion_control: bool,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Over: nothing is sent or taken any more (a last RST may still be due).
    Closed,
    /// The handshake is under way.
    Opening,
    /// Established, or closing in either direction.
    Open,
    /// Both sides have closed and the peer has heard of it; only stray segments could come.
    TimeWait,
}

/// Where a connection's segments go.
pub(crate) trait SegmentSink {
    /// Whether a segment of any size can be taken now. A connection asks before each one, and
    /// waits for the next call to `emit` where the answer is no: nothing is dropped on the way out.
    fn room(&mut self) -> bool;

    /// Takes one segment of `len` bytes, header included: `write` is called once, with
    /// [`SEGMENT_HEADROOM`] bytes in front of the segment's. With `mss` it is a super-segment, to
    /// be cut into segments of that much payload. The checksum field is left for the sink.
    fn segment(&mut self, len: usize, mss: Option<NonZeroU16>, write: &mut dyn FnMut(&mut [u8]));
}

/// One TCP connection.
pub(crate) trait Connection {
    /// A verified segment of this connection has arrived: `packet` holds [`SEGMENT_HEADROOM`]
    /// bytes that may be overwritten, then the segment.
    fn segment_arrived(&mut self, now: Instant, packet: &mut [u8], sink: &mut dyn SegmentSink);

    /// Sends what is due: data, acknowledgements, window updates, retransmissions. Returns whether
    /// it stopped for want of room.
    fn emit(&mut self, now: Instant, sink: &mut dyn SegmentSink) -> bool;

    /// When `emit` must be called next although nothing happens.
    fn deadline(&mut self, now: Instant) -> Option<Instant>;

    /// How far it is.
    fn phase(&self) -> Phase;

    /// Bytes that have arrived in order and wait to be read.
    fn readable(&self) -> usize;

    /// Whether the peer has sent its last byte, and it is here.
    fn peer_closed(&self) -> bool;

    /// Bytes that were written and not acknowledged yet.
    fn unsent(&self) -> usize;

    /// Whether bytes can come still, or wait.
    fn may_read(&self) -> bool;

    /// Bytes that would be taken for sending now.
    fn writable(&self) -> usize;

    /// Whether bytes can be sent still.
    fn may_write(&self) -> bool;

    /// Lends the first run of readable bytes; `take` says how many it used.
    fn read(&mut self, take: &mut dyn FnMut(&[u8]) -> usize) -> usize;

    /// Lends the first run of free space; `fill` says how many bytes it wrote.
    fn write(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> usize;

    /// No more bytes will be written: a FIN follows what is queued.
    fn close(&mut self);

    /// Ends it at once, with an RST.
    fn abort(&mut self);
}
