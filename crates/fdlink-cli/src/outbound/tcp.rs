//! TCP: the host is dialled first, and the command's SYN answered when the host's was.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fdlink_stack::{IncomingTcp, Refusal};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::relay::{self, End};
use super::{Outbound, Verdict};

/// How long a dial may take. The kernel's own patience is 127 s with six repeated SYNs
/// (tcp_syn_retries); ours is a backstop for a host that was told to have more.
const DIAL_TIMEOUT: Duration = Duration::from_secs(130);
/// How long one name server may take to answer a SYN before the next is tried.
const DNS_DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes a connection request: refuses it at once, or gives it a task.
pub(super) fn take(outbound: &Arc<Outbound>, incoming: IncomingTcp) {
    let counters = &outbound.counters;
    let (addresses, patience) = match outbound.policy.judge(incoming.destination()) {
        Verdict::Allowed(address) | Verdict::HostLoopback(address) => (vec![address], DIAL_TIMEOUT),
        Verdict::Dns => {
            counters.dns_tcp.add(1);
            (outbound.resolvers.now(), DNS_DIAL_TIMEOUT)
        }
        Verdict::Closed => {
            counters.closed_ports.add(1);
            return incoming.refuse(Refusal::Refused);
        }
        Verdict::Denied(reason) => {
            outbound.count_denied(reason);
            return incoming.refuse(Refusal::Prohibited);
        }
    };
    tokio::spawn(serve(Arc::clone(outbound), incoming, addresses, patience));
}

async fn serve(
    outbound: Arc<Outbound>,
    incoming: IncomingTcp,
    addresses: Vec<SocketAddr>,
    patience: Duration,
) {
    let counters = &outbound.counters;
    counters.tcp_dialled.add(1);
    let host = match dial(&outbound, &addresses, patience).await {
        Ok(host) => host,
        Err(error) => {
            let refusal = outbound.refusal(&error);
            match (refusal, error.kind()) {
                (Refusal::Refused, _) => counters.tcp_refused.add(1),
                (_, io::ErrorKind::TimedOut) => counters.tcp_timed_out.add(1),
                (
                    _,
                    io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::PermissionDenied,
                ) => counters.tcp_unreachable.add(1),
                _ => counters.tcp_dial_errors.add(1),
            }
            return incoming.refuse(refusal);
        }
    };
    counters.tcp_connected.add(1);
    // Gone meanwhile, or no memory for it: the host's side is closed as it is dropped.
    let Ok(guest) = incoming.accept() else { return };
    match relay::run(&outbound, &guest, &host).await {
        End::Finished => counters.tcp_finished.add(1),
        End::Guest => {
            counters.tcp_reset_inside.add(1);
            // The next close, which is the drop below, sends an RST.
            let _ = host.set_zero_linger();
        }
        End::Host => {
            counters.tcp_reset_outside.add(1);
            // What came before the RST gets a chance to leave before it: the stack's driver, which
            // was woken by it, runs before this task does again.
            tokio::task::yield_now().await;
            guest.reset();
        }
    }
}

/// The first of `addresses` that answers.
async fn dial(
    outbound: &Outbound,
    addresses: &[SocketAddr],
    patience: Duration,
) -> io::Result<TcpStream> {
    // Never closed.
    let _permit = outbound.dials.acquire().await;
    let mut last = io::ErrorKind::HostUnreachable.into();
    for address in addresses {
        match timeout(patience, connect(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // The command's kernel has done what Nagle's rule asks for, or was told not to.
    socket.set_nodelay(true)?;
    socket.connect(address).await
}
