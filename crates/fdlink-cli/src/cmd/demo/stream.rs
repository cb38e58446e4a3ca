//! What the demo sends: a stream in which no two chunks are equal, and the hash that both ends
//! make of it.
//!
//! A chunk is a piece of a random block with its number stamped into it. So a chunk that is lost,
//! repeated, changed or in the wrong place changes the hash of the whole, and making the stream
//! costs eight bytes of work for each chunk. Hashing it (XXH3) takes a tenth of the time of moving
//! it, so the ends do it on the way.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// Bytes that are written, read and hashed at once: few calls, and it stays in the cache.
const CHUNK: usize = 128 << 10;
/// Chunks of the block that the stream is made of.
const CHUNKS: usize = 8;

/// What one end saw of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// How long the stream is.
    pub(crate) bytes: u64,
    /// XXH3 of all of it, 128 bits in hexadecimal.
    pub(crate) hash: String,
    /// From the first byte to the end.
    pub(crate) seconds: f64,
}

impl Seen {
    /// Whether that is the same stream. When it was seen is no part of it.
    pub(crate) fn same_stream(&self, other: &Self) -> bool {
        (self.bytes, &self.hash) == (other.bytes, &other.hash)
    }

    /// Throughput in Gbit/s.
    pub(crate) fn gbit_per_second(&self) -> f64 {
        match self.seconds > 0.0 {
            true => self.bytes as f64 * 8.0 / self.seconds / 1e9,
            false => 0.0,
        }
    }
}

/// Makes the stream.
pub(crate) struct Source {
    block: Vec<u8>,
    chunks: u64,
}

impl Source {
    /// The stream, from its beginning.
    pub(crate) fn new() -> Self {
        Self { block: noise(CHUNK * CHUNKS), chunks: 0 }
    }

    /// The next chunk.
    pub(crate) fn next_chunk(&mut self) -> &[u8] {
        let number = self.chunks;
        self.chunks += 1;
        let place = usize::try_from(number % CHUNKS as u64).unwrap_or_default() * CHUNK;
        let chunk = &mut self.block[place..place + CHUNK];
        chunk[..8].copy_from_slice(&number.to_le_bytes());
        chunk
    }
}

/// Random enough that no part of it resembles another: xorshift64 (Marsaglia, 2003).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Hashes and measures what passes.
struct Meter<'a> {
    hash: Box<Xxh3>,
    bytes: u64,
    started: Option<Instant>,
    moved: &'a AtomicU64,
}

impl<'a> Meter<'a> {
    fn new(moved: &'a AtomicU64) -> Self {
        Self { hash: Box::default(), bytes: 0, started: None, moved }
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.started.get_or_insert_with(Instant::now);
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.moved.fetch_add(bytes.len() as u64, Relaxed);
    }

    fn seen(&self) -> Seen {
        let elapsed = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        let hash = format!("{:032x}", self.hash.digest128());
        Seen { bytes: self.bytes, hash, seconds: elapsed.as_secs_f64() }
    }
}

/// Sends the stream for that long, whole chunks, at least one. `moved` says meanwhile how far it
/// is.
pub(crate) fn send(to: &mut impl Write, time: Duration, moved: &AtomicU64) -> io::Result<Seen> {
    let mut source = Source::new();
    let mut meter = Meter::new(moved);
    let end = Instant::now() + time;
    loop {
        let chunk = source.next_chunk();
        meter.pass(chunk);
        to.write_all(chunk)?;
        if Instant::now() >= end {
            return Ok(meter.seen());
        }
    }
}

/// Receives a stream to its end.
pub(crate) fn receive(from: &mut impl Read, moved: &AtomicU64) -> io::Result<Seen> {
    let mut buffer = vec![0; CHUNK];
    let mut meter = Meter::new(moved);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(meter.seen()),
            Ok(len) => meter.pass(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(count: usize) -> Vec<Vec<u8>> {
        let mut source = Source::new();
        (0..count).map(|_| source.next_chunk().to_vec()).collect()
    }

    fn seen(chunks: &[Vec<u8>]) -> Seen {
        receive(&mut chunks.concat().as_slice(), &AtomicU64::new(0)).unwrap()
    }

    #[test]
    fn both_ends_see_the_same_stream() {
        let (moved, mut sent) = (AtomicU64::new(0), Vec::new());
        let by_sender = send(&mut sent, Duration::from_millis(20), &moved).unwrap();
        assert_eq!(by_sender.bytes, sent.len() as u64);
        assert_eq!(moved.load(Relaxed), by_sender.bytes);
        let by_receiver = receive(&mut sent.as_slice(), &moved).unwrap();
        assert!(by_sender.same_stream(&by_receiver));
        assert_eq!(by_receiver.hash.len(), 32);
    }

    #[test]
    fn even_no_time_sends_something() {
        let mut sent = Vec::new();
        send(&mut sent, Duration::ZERO, &AtomicU64::new(0)).unwrap();
        assert_eq!(sent.len(), CHUNK);
    }

    /// The block is gone through twice, so that there are chunks that differ in the stamp alone.
    #[test]
    fn whatever_happens_to_a_chunk_is_seen() {
        let whole = chunks(2 * CHUNKS);
        let right = seen(&whole);
        for at in [0, 3, 2 * CHUNKS - 1] {
            let mut lost = whole.clone();
            lost.remove(at);
            assert!(!right.same_stream(&seen(&lost)), "lost {at}");

            let mut repeated = whole.clone();
            repeated.insert(at, whole[at].clone());
            assert!(!right.same_stream(&seen(&repeated)), "repeated {at}");

            let mut flipped = whole.clone();
            flipped[at][CHUNK - 1] ^= 1;
            assert!(!right.same_stream(&seen(&flipped)), "flipped {at}");
        }
        for (one, other) in [(0, 1), (0, CHUNKS), (3, 3 + CHUNKS)] {
            let mut reordered = whole.clone();
            reordered.swap(one, other);
            assert!(!right.same_stream(&seen(&reordered)), "{one} and {other} exchanged");

            let mut replaced = whole.clone();
            replaced[one] = whole[other].clone();
            assert!(!right.same_stream(&seen(&replaced)), "{one} replaced by {other}");
        }
        assert!(right.same_stream(&seen(&whole)));
    }

    #[test]
    fn the_end_of_the_stream_counts() {
        let whole = chunks(2).concat();
        let short = receive(&mut &whole[..whole.len() - 1], &AtomicU64::new(0)).unwrap();
        assert!(!short.same_stream(&seen(&chunks(2))));
    }

    #[test]
    fn throughput_is_in_gbit_per_second() {
        let seen = Seen { bytes: 1_250_000_000, hash: String::new(), seconds: 2.0 };
        assert!((seen.gbit_per_second() - 5.0).abs() < 1e-9);
        assert!(Seen::default().gbit_per_second().abs() < 1e-9);
    }
}
