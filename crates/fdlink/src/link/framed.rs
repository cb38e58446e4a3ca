//! Framed streams: stream sockets on which each frame stands behind its length, as QEMU, passt,
//! gvproxy and VPNs over TCP have them. What such a descriptor must be, and setting one up.
//!
//! What is not here: how frames are cut out of the stream (`io/framed.rs`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::batch::LinkHeader;
use crate::descriptor::Descriptor;
use crate::error::SetupError;
use crate::link::examine::{self, Found, call};
use crate::link::fd::FdLink;
use crate::link::{LinkKind, buffers};
use crate::options::LinkOptions;
use crate::report::DescriptorReport;
use crate::sys::socket as sys;

pub use crate::io::framed::FramePrefix;

/// Makes a link of a connected stream socket (AF_UNIX, TCP, VSOCK) on which each frame stands behind
/// its length, written as `prefix` says.
///
/// Frames start with an Ethernet header unless [`ethernet(false)`](LinkOptions::ethernet) says
/// otherwise. With [`in_band_vnet_header`](LinkOptions::in_band_vnet_header) a vnet header stands
/// between the length, which counts it, and the frame. A stream is one queue, and the only mode is
/// `readv`. TCP is told to send at once (TCP_NODELAY), and sizes its buffers itself unless
/// [`socket_buffer`](LinkOptions::socket_buffer) asks for a size.
///
/// The kernel may take a part of a frame and say that it is full. The rest then stays with the
/// transmit queue, which counts the frame as sent and as [`queued`](crate::Transmit::queued), and
/// leaves with the next flush or send. An [`Endpoint`](crate::Endpoint) that does not wait for room
/// has it leave with its next packet: that frame comes late instead of being lost. A length that no
/// frame has closes the way in ([`Closed::OutOfStep`](crate::Closed::OutOfStep)).
///
/// Without a vnet header the work that a frame leaves to the other side is done here, as on every
/// kind ([`Transmit::send`](crate::Transmit::send)); with one a super-frame is cut where the length
/// prefix cannot say how long it is.
///
/// The place in the stream is known here only, so such a link cannot be handed over
/// ([`save_restore`](LinkOptions::save_restore) is an error).
///
/// # Errors
///
/// Where the descriptor is no connected stream socket, or an option does not go with it. What had
/// been changed is undone by then, O_NONBLOCK included; the descriptor is closed.
pub fn adopt_framed(
    fd: OwnedFd,
    prefix: FramePrefix,
    options: &LinkOptions,
) -> Result<FdLink, SetupError> {
    let found = examine(fd.as_fd(), options)?;
    must_fit(prefix, found.link_header, options)?;
    must_stay(options)?;
    Ok(FdLink::build(vec![fd.into()], &[found], options)?.with_prefix(prefix))
}

/// Reads back whether a descriptor is a stream that frames can be on.
fn examine(fd: BorrowedFd<'_>, options: &LinkOptions) -> Result<Found, SetupError> {
    const EXPECTED: &str = "a connected stream socket for length-prefixed frames";
    const INDEX: usize = 0;
    let subject = || format!("descriptor {INDEX}");
    let wrong = |found| Err(SetupError::WrongKind { index: INDEX, found, expected: EXPECTED });
    let option = |name| sys::option(fd, libc::SOL_SOCKET, name);
    if option(libc::SO_TYPE).ok() != Some(libc::SOCK_STREAM) {
        return match examine::all(&[fd], options) {
            Ok(other) => {
                let kind = other.first().map_or("descriptor", |first| first.kind.name());
                wrong(format!("a {kind}, which keeps boundaries"))
            }
            Err(SetupError::WrongKind { found, .. }) => wrong(found),
            Err(error) => Err(error),
        };
    }
    let listens =
        option(libc::SO_ACCEPTCONN).map_err(|e| call("getsockopt(SO_ACCEPTCONN)", subject(), e))?;
    if listens != 0 {
        return wrong("a stream socket that listens".to_owned());
    }
    if !sys::is_connected(fd).map_err(|e| call("getpeername", subject(), e))? {
        return wrong("a stream socket that is not connected".to_owned());
    }
    Ok(Found::plain_socket(LinkKind::Framed, LinkHeader::Ethernet, options))
}

/// The prefix must be able to say how long the longest frame is.
fn must_fit(
    prefix: FramePrefix,
    link_header: LinkHeader,
    options: &LinkOptions,
) -> Result<(), SetupError> {
    let vnet_header = options.in_band_vnet_header.unwrap_or(0);
    let most = prefix.limit().saturating_sub(vnet_header);
    let header = if options.ethernet == Some(false) { 0 } else { link_header.len() };
    let checked = [
        ("mtu", options.mtu.map(|mtu| mtu as usize), most.saturating_sub(header)),
        ("gso_max_size", options.gso_max_size, most),
    ];
    for (option, asked, most) in checked {
        if let Some(asked) = asked.filter(|asked| *asked > most) {
            let expected = format!("at most {most} bytes with this length prefix");
            return Err(SetupError::Option { option, expected, found: asked.to_string() });
        }
    }
    Ok(())
}

/// What has been received or begun of a frame is in this process, so the rest of the stream means
/// nothing to another one.
fn must_stay(options: &LinkOptions) -> Result<(), SetupError> {
    if !options.save_restore {
        return Ok(());
    }
    let expected = "a descriptor that keeps boundaries, to be handed over".to_owned();
    let found = "a framed stream".to_owned();
    Err(SetupError::Option { option: "save_restore", expected, found })
}

/// Sets up one stream. Frames do not wait for an acknowledgement of those before them.
pub(super) fn configure(descriptor: &mut Descriptor) {
    if is_tcp(descriptor.as_fd()) {
        // It can only fail where the connection has ended, which receiving tells.
        drop(descriptor.set_option((libc::IPPROTO_TCP, libc::TCP_NODELAY), 1));
    }
}

/// Asks for large socket buffers, but on TCP only where the caller does: as long as nobody sets
/// their size, the kernel grows them with the path's delay (tcp_rmem, tcp_wmem).
pub(super) fn buffers(
    subject: &str,
    descriptor: &mut Descriptor,
    options: &LinkOptions,
    notes: &mut Vec<String>,
) -> DescriptorReport {
    if options.socket_buffer.is_some() || !is_tcp(descriptor.as_fd()) {
        return buffers::ask(subject, descriptor, options, notes);
    }
    let option = |name| sys::option(descriptor.as_fd(), libc::SOL_SOCKET, name).unwrap_or(0);
    DescriptorReport {
        receive_buffer: usize::try_from(option(libc::SO_RCVBUF)).unwrap_or(0),
        send_buffer: usize::try_from(option(libc::SO_SNDBUF)).unwrap_or(0),
        ..DescriptorReport::default()
    }
}

fn is_tcp(fd: BorrowedFd<'_>) -> bool {
    sys::option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY).is_ok()
}
