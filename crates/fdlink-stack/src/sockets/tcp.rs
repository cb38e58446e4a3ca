//! TCP: listeners and streams.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::core::{Core, Listener};
use crate::flows::{FlowKey, FlowKind, Owner, Path, TcpFailure, TcpFlow};
use crate::packet;
use crate::stack::{Shared, Stack};
use crate::tcp::{Connection, Phase};
use crate::timers::FlowId;

/// A listening port.
#[derive(Debug)]
pub struct TcpListener {
    shared: Arc<Shared>,
    number: usize,
    local: SocketAddr,
}

impl TcpListener {
    /// Listens on `local`; the unspecified address stands for all of the stack's.
    ///
    /// # Errors
    ///
    /// `AddrInUse` where somebody listens there already; `InvalidInput` for port 0.
    pub fn bind(stack: &Stack, local: SocketAddr) -> io::Result<Self> {
        if local.port() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a listener needs a port"));
        }
        let address = Some(local.ip()).filter(|ip| !ip.is_unspecified());
        let mut core = stack.shared.core();
        if core.listeners.iter().any(|(_, l)| l.port == local.port() && l.address == address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let number = core.listeners.insert(Listener {
            address,
            port: local.port(),
            ready: VecDeque::new(),
            handshakes: VecDeque::new(),
            backlog: 0,
            waker: None,
        });
        Ok(Self { shared: Arc::clone(&stack.shared), number, local })
    }

    /// The next established connection, and who made it. One task at a time.
    ///
    /// # Errors
    ///
    /// `ConnectionAborted` when the stack has stopped.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`accept`](Self::accept). One task at a time.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let mut guard = self.shared.core();
        let core = &mut *guard;
        let listener = &mut core.listeners[self.number];
        while let Some(id) = listener.ready.pop_front() {
            listener.backlog -= 1;
            if let Some((tcp, path)) = core.flows.tcp_mut(id) {
                tcp.owner = Owner::Stream;
                let stream = TcpStream::new(&self.shared, id, path);
                return Poll::Ready(Ok((stream, path.remote)));
            }
        }
        if core.stopped {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        set_waker(&mut listener.waker, cx);
        Poll::Pending
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        let number = self.number;
        let handshakes = std::mem::take(&mut core.listeners[number].handshakes);
        let ready = std::mem::take(&mut core.listeners[number].ready);
        let waiting = handshakes.into_iter().filter(|id| core.is_handshake_of(*id, number));
        // Nobody will take them: they are reset, as a kernel does.
        for id in waiting.chain(ready).collect::<Vec<_>>() {
            core.fail(id, TcpFailure::Aborted);
            core.abandon(Instant::now(), id);
        }
        core.listeners.remove(number);
        core.driver.wake();
    }
}

/// A TCP connection.
///
/// Dropped, it closes as a kernel's would: with a FIN after what was written, or with an RST where
/// bytes were left unread.
pub struct TcpStream {
    shared: Arc<Shared>,
    id: FlowId,
    local: SocketAddr,
    remote: SocketAddr,
}

impl TcpStream {
    pub(crate) fn new(shared: &Arc<Shared>, id: FlowId, path: &Path) -> Self {
        Self { shared: Arc::clone(shared), id, local: path.local, remote: path.remote }
    }

    /// Connects to `remote`.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused`, `TimedOut`, `HostUnreachable` (no route, or the neighbour does not
    /// answer, or a router says so), `NetworkUnreachable` (a router says so), `AddrNotAvailable`
    /// (no free port), `OutOfMemory` (the buffer budget, or the table of flows, is used up),
    /// `ConnectionAborted` (the link or the stack has ended).
    pub async fn connect(stack: &Stack, remote: SocketAddr) -> io::Result<Self> {
        let stream = Self::start(&stack.shared, remote)?;
        poll_fn(|cx| stream.poll_established(cx)).await?;
        stream.shared.core().stats.tcp_connected.add(1);
        Ok(stream)
    }

    fn start(shared: &Arc<Shared>, remote: SocketAddr) -> io::Result<Self> {
        let now = Instant::now();
        let mut guard = shared.core();
        let core = &mut *guard;
        if core.stopped {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if core.flows.tcp >= core.config.max_tcp_flows {
            core.stats.flows_over_cap.add(1);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let (nic, source) = core.way_to(remote.ip()).ok_or(io::ErrorKind::HostUnreachable)?;
        let key = |port| FlowKey::new(nic, packet::TCP, SocketAddr::new(source, port), remote);
        let port = core
            .free_port(|core, port| core.flows.find(&key(port)).is_some())
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        let local = SocketAddr::new(source, port);
        let mut path = Path { nic, queue: 0, local, remote, peer: None };
        path.peer = core.resolve(now, nic, remote.ip()).ok();
        let connection = core.connection(&path, true).ok_or(io::ErrorKind::OutOfMemory)?;
        let tcp = TcpFlow::new(connection, Owner::Stream);
        let id = core.flows.insert(key(port), path, FlowKind::Tcp(Box::new(tcp)));
        if path.peer.is_none() {
            core.unresolved.push(id);
        }
        core.touch_and_wake(id);
        Ok(Self::new(shared, id, &path))
    }

    fn poll_established(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.shared.core();
        let tcp = self.flow(&mut core)?;
        match tcp.connection.phase() {
            Phase::Opening => {
                tcp.write_waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Phase::Open | Phase::TimeWait => Poll::Ready(Ok(())),
            Phase::Closed => Poll::Ready(Err(failure(tcp.failure))),
        }
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.remote
    }

    /// Lends what has arrived, without a copy: `take` gets the first run of bytes and says how
    /// many it used; its result is passed on, an error too. `Ok(0)` without a call of `take` is
    /// the end of the stream.
    ///
    /// `take` runs with the stack's lock held: it may read and write other descriptors, and must
    /// not use this stack.
    ///
    /// # Errors
    ///
    /// Those of `take`; `ConnectionReset`, `TimedOut`, `ConnectionAborted` where the connection
    /// ended so.
    pub fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut core = self.shared.core();
        let tcp = self.flow(&mut core)?;
        if tcp.connection.readable() == 0 {
            if tcp.connection.may_read() {
                set_waker(&mut tcp.read_waker, cx);
                return Poll::Pending;
            }
            // All that the peer had to say has been read: how it ended later does not matter here.
            let failed = tcp.failure.filter(|_| !tcp.peer_closed);
            return Poll::Ready(failed.map_or(Ok(0), |why| Err(failure(Some(why)))));
        }
        let mut result = Ok(0);
        let used = tcp.connection.read(&mut |bytes| {
            result = take(bytes);
            result.as_ref().copied().unwrap_or(0)
        });
        if used > 0 {
            core.stats.tcp_rx_bytes.add(u64::try_from(used).unwrap_or(0));
            // The window has opened: the driver may have to say so.
            core.touch_and_wake(self.id);
        }
        Poll::Ready(result)
    }

    /// Lends free space of the send buffer, without a copy: `fill` gets the first run of it and
    /// says how many bytes it wrote; its result is passed on.
    ///
    /// `fill` runs with the stack's lock held, as in [`poll_read_with`](Self::poll_read_with).
    ///
    /// # Errors
    ///
    /// Those of `fill`; `BrokenPipe` after a shutdown; `ConnectionReset`, `TimedOut`,
    /// `ConnectionAborted` where the connection ended so.
    pub fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        mut fill: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut core = self.shared.core();
        let tcp = self.flow(&mut core)?;
        if tcp.connection.writable() == 0 {
            if tcp.connection.may_write() && !tcp.close_wanted {
                set_waker(&mut tcp.write_waker, cx);
                return Poll::Pending;
            }
            return Poll::Ready(Err(match tcp.failure {
                None => io::ErrorKind::BrokenPipe.into(),
                why => failure(why),
            }));
        }
        let mut result = Ok(0);
        let written = tcp.connection.write(&mut |space| {
            result = fill(space);
            result.as_ref().copied().unwrap_or(0)
        });
        if written > 0 {
            core.stats.tcp_tx_bytes.add(u64::try_from(written).unwrap_or(0));
            core.touch_and_wake(self.id);
        }
        Poll::Ready(result)
    }

    /// No more bytes will be written; what was written is delivered, then a FIN. The other
    /// direction stays open.
    pub fn close_write(&self) {
        self.shared.core().close_write(self.id);
    }

    /// Ends the connection with an RST; what was not delivered is lost.
    pub fn reset(self) {
        let mut core = self.shared.core();
        core.fail(self.id, TcpFailure::Aborted);
        core.driver.wake();
    }

    fn flow<'a>(&self, core: &'a mut Core) -> io::Result<&'a mut TcpFlow> {
        // The entry lives as long as its owner; a missing one would be an error of ours.
        core.flows
            .tcp_mut(self.id)
            .map(|(tcp, _)| tcp)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

fn set_waker(slot: &mut Option<std::task::Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

fn failure(why: Option<TcpFailure>) -> io::Error {
    match why {
        None => io::ErrorKind::NotConnected,
        Some(TcpFailure::Aborted | TcpFailure::LinkClosed) => io::ErrorKind::ConnectionAborted,
        Some(TcpFailure::NetworkUnreachable) => io::ErrorKind::NetworkUnreachable,
        Some(TcpFailure::Refused) => io::ErrorKind::ConnectionRefused,
        Some(TcpFailure::Reset) => io::ErrorKind::ConnectionReset,
        Some(TcpFailure::TimedOut) => io::ErrorKind::TimedOut,
        Some(TcpFailure::Unreachable) => io::ErrorKind::HostUnreachable,
    }
    .into()
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = self.poll_read_with(cx, |bytes| {
            let len = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..len]);
            Ok(len)
        });
        read.map_ok(|_| ())
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_write_with(cx, |space| {
            let len = space.len().min(buf.len());
            space[..len].copy_from_slice(&buf[..len]);
            Ok(len)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close_write();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.shared.core().abandon(Instant::now(), self.id);
    }
}

impl std::fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpStream")
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}
