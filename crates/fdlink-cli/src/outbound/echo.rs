//! Pings: echo requests go on from a ping socket of the host, and the replies come back.
//!
//! A ping socket (SOCK_DGRAM, IPPROTO_ICMP; Documentation/networking/ip-sysctl.rst,
//! ping_group_range) needs no privilege where the sysctl includes the user's group. The kernel puts
//! its own identifier and checksum into requests, and gives only replies to them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fdlink_stack::{EchoFlow, IncomingEcho, Refusal};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use super::{Outbound, Verdict};

/// A flow is over when nothing has come for that long; ping asks once a second.
const IDLE: Duration = Duration::from_secs(30);
/// The ICMP header (RFC 792, RFC 4443): type, code, checksum, identifier, sequence number.
const HEADER_LEN: usize = 8;
/// The longest data of an echo request.
const MAX_DATA: usize = 65_507;

/// Takes a flow: refuses it at once, or gives it a task.
pub(super) fn take(outbound: &Arc<Outbound>, incoming: IncomingEcho) {
    let counters = &outbound.counters;
    match outbound.policy.judge(SocketAddr::new(incoming.destination(), 0)) {
        Verdict::Allowed(address) => match open(address.ip()) {
            Ok(host) => {
                counters.echo_flows.add(1);
                let flow = incoming.accept();
                tokio::spawn(serve(Arc::clone(outbound), flow, host, address.ip()));
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::PermissionDenied {
                    counters.echo_denied.add(1);
                    outbound.note(
                        "the host lets this user send no echo requests (sysctl \
                         net.ipv4.ping_group_range): pings go no further than 10.0.2.2",
                    );
                }
                incoming.refuse(outbound.refusal(&error));
            }
        },
        Verdict::Denied(reason) => {
            outbound.count_denied(reason);
            incoming.refuse(Refusal::Prohibited);
        }
        // The stack answers for these itself.
        Verdict::Closed | Verdict::Dns | Verdict::HostLoopback(_) => {
            incoming.refuse(Refusal::HostUnreachable);
        }
    }
}

/// A ping socket of the host, connected. Reading and writing it is as with UDP.
fn open(to: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
    connect(&socket, &SocketAddr::new(to, 0))?;
    UdpSocket::from_std(socket.into())
}

async fn serve(outbound: Arc<Outbound>, flow: EchoFlow, host: UdpSocket, to: IpAddr) {
    let (request, reply) = match to {
        IpAddr::V4(_) => (8, 0),
        IpAddr::V6(_) => (128, 129),
    };
    let counters = &outbound.counters;
    // Grows to what is pinged with; most never need more.
    let mut data = vec![0; MAX_DATA];
    let mut packet = vec![0; HEADER_LEN + MAX_DATA];
    let mut due = Instant::now() + IDLE;
    loop {
        tokio::select! {
            received = flow.recv(&mut data) => {
                let Ok((sequence, len)) = received else { return };
                let out = &mut packet[..HEADER_LEN + len];
                out[..6].copy_from_slice(&[request, 0, 0, 0, 0, 0]);
                out[6..8].copy_from_slice(&sequence.to_be_bytes());
                out[8..].copy_from_slice(&data[..len]);
                // The first error may be about an earlier request (an ICMP message came back), and
                // is gone with the telling; one that stays is a request without a reply.
                if host.send(out).await.is_ok() || host.send(out).await.is_ok() {
                    counters.echo_requests.add(1);
                }
            }
            received = host.recv(&mut packet) => {
                let Ok(len) = received else { continue };
                let Some((header, answer)) = packet[..len].split_at_checked(HEADER_LEN) else {
                    continue;
                };
                if header[0] == reply {
                    counters.echo_replies.add(1);
                    flow.reply(u16::from_be_bytes([header[6], header[7]]), answer);
                }
            }
            () = sleep_until(due) => return,
        }
        due = Instant::now() + IDLE;
    }
}
