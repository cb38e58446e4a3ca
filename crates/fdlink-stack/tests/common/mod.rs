//! Two stacks back to back over a socket pair, and the few verbs that the tests share.
#![allow(dead_code, reason = "each test binary uses its own part of this; one uses all of it")]
#![allow(clippy::allow_attributes, reason = "so there is nothing to expect in every one of them")]

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use fdlink::link::adopt;
use fdlink::stats::LinkStats;
use fdlink::{Closed, Link, LinkOptions, Mode};
use fdlink_stack::{Cidr, NicId, Stack, StackConfig, TcpListener, TcpStream};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// Long enough for a busy machine, short enough for a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const V4: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
pub(crate) const V6: [&str; 2] = ["fd00::1", "fd00::2"];

/// What the link between the two is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) datagram: bool,
    pub(crate) ethernet: bool,
    pub(crate) mtu: u32,
    /// Bytes of vnet header in front of each frame; with it, super-frames and partial checksums.
    pub(crate) vnet: usize,
    pub(crate) mode: Mode,
    /// Bytes of socket buffer; 0 for as many as there may be.
    pub(crate) buffer: usize,
}

pub(crate) const PLAIN: Shape =
    Shape { datagram: false, ethernet: true, mtu: 1500, vnet: 0, mode: Mode::Readv, buffer: 0 };
pub(crate) const OFFLOAD: Shape = Shape { vnet: 10, ..PLAIN };

/// One of the two stacks.
pub(crate) struct End {
    pub(crate) stack: Stack,
    pub(crate) driver: JoinHandle<io::Result<Closed>>,
    pub(crate) link: LinkStats,
}

pub(crate) fn socket_pair(datagram: bool) -> (OwnedFd, OwnedFd) {
    if datagram {
        let (a, b) = UnixDatagram::pair().unwrap();
        return (a.into(), b.into());
    }
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

pub(crate) fn options(shape: Shape) -> LinkOptions {
    let mut options = LinkOptions::new().ethernet(shape.ethernet).mtu(shape.mtu).mode(shape.mode);
    if shape.vnet > 0 {
        options = options.in_band_vnet_header(shape.vnet);
    }
    if shape.buffer > 0 {
        options = options.socket_buffer(shape.buffer);
    }
    options
}

/// A stack on a socket, with the addresses 10.0.0.`host`/24 and fd00::`host`/64.
pub(crate) fn end(fd: OwnedFd, shape: Shape, config: StackConfig, host: usize) -> End {
    if shape.buffer > 0 {
        // What is asked of a link only makes buffers larger.
        rustix::net::sockopt::set_socket_send_buffer_size(&fd, shape.buffer).unwrap();
    }
    let link = adopt(vec![fd], &options(shape)).unwrap();
    let stats = link.stats();
    let (stack, driver) = Stack::new(config);
    let addresses: [Cidr; 2] =
        [format!("10.0.0.{host}/24").parse().unwrap(), format!("fd00::{host}/64").parse().unwrap()];
    stack.create_nic(NicId(1), Box::new(link), &addresses).unwrap();
    End { stack, driver: tokio::spawn(driver.run()), link: stats }
}

/// Two stacks, of which the second usually serves.
pub(crate) fn pair(shape: Shape) -> (End, End) {
    pair_with(shape, StackConfig::new(), StackConfig::new())
}

pub(crate) fn pair_with(shape: Shape, first: StackConfig, second: StackConfig) -> (End, End) {
    let (a, b) = socket_pair(shape.datagram);
    (end(a, shape, first, 1), end(b, shape, second, 2))
}

pub(crate) fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}

pub(crate) fn any(port: u16) -> SocketAddr {
    at("0.0.0.0", port)
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Waits for something that no event tells.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A connection and its other end.
pub(crate) async fn connected(a: &End, b: &End, ip: &str, port: u16) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(&b.stack, any(port)).unwrap();
    let (ours, theirs) = within(async {
        tokio::join!(TcpStream::connect(&a.stack, at(ip, port)), listener.accept())
    })
    .await;
    (ours.unwrap(), theirs.unwrap().0)
}

/// Serves until the listener fails.
pub(crate) fn serve<F>(stack: &Stack, port: u16, service: impl Fn(TcpStream) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(stack, any(port)).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(service(stream));
        }
    });
}

pub(crate) async fn echo(mut stream: TcpStream) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(len @ 1..) = stream.read(&mut chunk).await {
        if stream.write_all(&chunk[..len]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// A prime number of bytes that repeat nothing: a piece that is lost, doubled or moved shows.
pub(crate) struct Pattern(Vec<u8>);

const PERIOD: usize = 1_048_573;

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33).to_le_bytes()[0]
        };
        Self((0..PERIOD).map(|_| next()).collect())
    }

    /// Bytes of the endless repetition from `from` on; at most `len`.
    pub(crate) fn piece(&self, from: usize, len: usize) -> &[u8] {
        let start = from % PERIOD;
        &self.0[start..(start + len).min(PERIOD)]
    }
}

/// Writes that many bytes of the pattern, then shuts writing down.
pub(crate) async fn send_pattern(
    to: &mut (impl AsyncWriteExt + Unpin),
    pattern: &Pattern,
    total: usize,
) {
    let mut sent = 0;
    while sent < total {
        let piece = pattern.piece(sent, (total - sent).min(100_000));
        to.write_all(piece).await.unwrap();
        sent += piece.len();
    }
    to.shutdown().await.unwrap();
}

/// Reads to the end; it must be that many bytes of the pattern.
pub(crate) async fn expect_pattern(
    from: &mut (impl AsyncReadExt + Unpin),
    pattern: &Pattern,
    total: usize,
) {
    let (mut chunk, mut got) = (vec![0; 100_000], 0);
    loop {
        let len = from.read(&mut chunk).await.unwrap();
        if len == 0 {
            break;
        }
        let mut rest = &chunk[..len];
        while !rest.is_empty() {
            let piece = pattern.piece(got, rest.len());
            assert!(rest.starts_with(piece), "other bytes at {got}");
            (rest, got) = (&rest[piece.len()..], got + piece.len());
        }
    }
    assert_eq!(got, total);
}
