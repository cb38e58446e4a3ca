//! UDP sockets.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::core::UdpBinding;
use crate::datagrams::DatagramQueue;
use crate::nic::Outcome;
use crate::stack::{Shared, Stack};

/// The most a UDP datagram can carry over IPv4: 65535 less both headers.
pub const MAX_DATAGRAM: usize = 65_507;

/// A bound UDP port.
pub struct UdpSocket {
    shared: Arc<Shared>,
    number: usize,
    local: SocketAddr,
}

impl UdpSocket {
    /// Binds to `local`; the unspecified address stands for all of the stack's, port 0 for a free
    /// one.
    ///
    /// # Errors
    ///
    /// `AddrInUse` where the port is taken, `AddrNotAvailable` where none is free.
    pub fn bind(stack: &Stack, local: SocketAddr) -> io::Result<Self> {
        let address = Some(local.ip()).filter(|ip| !ip.is_unspecified());
        let mut guard = stack.shared.core();
        let core = &mut *guard;
        let port = match local.port() {
            0 => core
                .free_port(|core, port| core.udp_ports.contains_key(&(address, port)))
                .ok_or(io::ErrorKind::AddrNotAvailable)?,
            port => port,
        };
        if core.udp_ports.contains_key(&(address, port)) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let queue = DatagramQueue::new(core.config.datagram_queue);
        let number = core.udp.insert(UdpBinding { address, port, queue, waker: None });
        core.udp_ports.insert((address, port), number);
        let local = SocketAddr::new(local.ip(), port);
        Ok(Self { shared: Arc::clone(&stack.shared), number, local })
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next datagram, cut to `buf` where it is longer, and who sent it.
    ///
    /// # Errors
    ///
    /// `ConnectionAborted` when the stack has stopped.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|cx| self.poll_recv_from(cx, buf)).await
    }

    /// As [`recv_from`](Self::recv_from). One task at a time.
    pub fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut core = self.shared.core();
        let stopped = core.stopped;
        let binding = &mut core.udp[self.number];
        let received = binding.queue.pop(|source, bytes| {
            let len = bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&bytes[..len]);
            (len, source)
        });
        match received {
            Some(received) => Poll::Ready(Ok(received)),
            None if stopped => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            None => {
                binding.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Sends a datagram; in IP fragments where it is longer than the MTU.
    ///
    /// # Errors
    ///
    /// `HostUnreachable` without a route, `InvalidInput` over [`MAX_DATAGRAM`] bytes.
    pub async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        poll_fn(|cx| self.poll_send_to(cx, bytes, to)).await
    }

    /// As [`send_to`](Self::send_to); pending while the link's transmit queue is full.
    pub fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        if bytes.len() > MAX_DATAGRAM {
            let message = "a UDP datagram carries at most 65507 bytes";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidInput, message)));
        }
        let mut guard = self.shared.core();
        let core = &mut *guard;
        let (nic, source) = core.way_to(to.ip()).ok_or_else(|| {
            core.stats.tx_no_route.add(1);
            io::Error::from(io::ErrorKind::HostUnreachable)
        })?;
        let bound = core.udp[self.number].address.unwrap_or(source);
        let local = SocketAddr::new(bound, self.local.port());
        let outcome = core.send_datagram(Instant::now(), nic, local, to, bytes);
        match outcome {
            Outcome::Full => {
                core.nics[nic].wait_for_room(cx.waker());
                Poll::Pending
            }
            Outcome::Queued | Outcome::Dropped => Poll::Ready(Ok(bytes.len())),
        }
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        let binding = core.udp.remove(self.number);
        core.udp_ports.remove(&(binding.address, binding.port));
    }
}

impl std::fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpSocket").field("local", &self.local).finish_non_exhaustive()
    }
}
