//! Socket buffers: asking for large ones, and never getting smaller ones for that.

use std::io;
use std::os::fd::AsFd;

use crate::descriptor::Descriptor;
use crate::options::LinkOptions;
use crate::report::DescriptorReport;
use crate::sys::socket as sys;

/// 4 MiB holds some sixty super-frames or, as the kernel accounts them, 1800 frames of 1500 bytes:
/// a few milliseconds at 10 Gbit/s.
const DEFAULT_BUFFER: usize = 4 << 20;

/// Asks for large socket buffers and reads back what was given.
pub(super) fn ask(
    subject: &str,
    descriptor: &mut Descriptor,
    options: &LinkOptions,
    notes: &mut Vec<String>,
) -> DescriptorReport {
    let wanted = options.socket_buffer.unwrap_or(DEFAULT_BUFFER);
    let mut set = |name, force, text| {
        let given = grow(descriptor, (name, force), wanted);
        if options.socket_buffer.is_some() && given < wanted {
            notes.push(format!("{subject}: {text} is {given} of {wanted} bytes"));
        }
        given
    };
    DescriptorReport {
        receive_buffer: set(libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, "SO_RCVBUF"),
        send_buffer: set(libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, "SO_SNDBUF"),
        ..DescriptorReport::default()
    }
}

/// Makes a buffer larger, as far as that can be had; its size then.
fn grow(descriptor: &mut Descriptor, names: (libc::c_int, libc::c_int), wanted: usize) -> usize {
    let (name, force) = names;
    let old = sys::option(descriptor.as_fd(), libc::SOL_SOCKET, name).unwrap_or(0);
    // The kernel doubles what is asked for (sock_setsockopt), so half of what it shows is asked.
    let asked = libc::c_int::try_from(wanted / 2).unwrap_or(libc::c_int::MAX / 2);
    if old / 2 < asked {
        // FORCE needs CAP_NET_ADMIN in the first user namespace.
        let forced = sys::set_option(descriptor.as_fd(), libc::SOL_SOCKET, force, asked);
        let grown = forced.or_else(|error| match most(name, asked)? > old {
            true => sys::set_option(descriptor.as_fd(), libc::SOL_SOCKET, name, asked),
            false => Err(error),
        });
        if grown.is_ok() {
            descriptor.remember_buffer(names, old / 2);
        }
    }
    let got = sys::option(descriptor.as_fd(), libc::SOL_SOCKET, name).unwrap_or(0);
    usize::try_from(got).unwrap_or(0)
}

/// What a socket gets that asks for so much without the right to all of it, found out on one of our
/// own: what lies above a limit (net.core.rmem_max, wmem_max) is cut off, even where the socket has
/// more already, from somebody who had the right.
fn most(name: libc::c_int, asked: libc::c_int) -> io::Result<libc::c_int> {
    let socket = sys::open(libc::AF_UNIX, libc::SOCK_DGRAM)?;
    sys::set_option(socket.as_fd(), libc::SOL_SOCKET, name, asked)?;
    sys::option(socket.as_fd(), libc::SOL_SOCKET, name)
}
