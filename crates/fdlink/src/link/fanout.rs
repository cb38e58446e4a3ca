//! Several AF_PACKET sockets that share what comes in (PACKET_FANOUT).
//!
//! A group cannot be left but by closing the socket, so joining comes last in a set-up. Until it
//! joins, a socket would receive what the first does, too; so all the others are closed by a filter
//! from early on, and opened when they have joined. Of a flow that is theirs, what comes in between
//! is lost, as what came before the link was there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::descriptor::Descriptor;
use crate::error::SetupError;
use crate::link::examine::call;
use crate::options::{BpfInstruction, Fanout, FanoutMode};
use crate::sys::socket as sys;

/// A program that keeps nothing (BPF_RET | BPF_K, linux/bpf_common.h).
const NOTHING: [BpfInstruction; 1] = [BpfInstruction { code: 0x06, jt: 0, jf: 0, k: 0 }];

/// Keeps all but the first from receiving what the first receives.
pub(super) fn close(descriptors: &mut [Descriptor], notes: &mut Vec<String>) {
    for (index, descriptor) in descriptors.iter_mut().enumerate().skip(1) {
        if let Err(error) = descriptor.set_filter(&NOTHING) {
            // A locked filter, or one that is no classic BPF.
            notes.push(format!(
                "descriptor {index}: frames of the time before it joined the group may come \
                 twice (SO_ATTACH_FILTER: {error})"
            ));
        }
    }
}

/// Joins all of them to a new group, and takes [`close`] back; returns the group's number, which the
/// kernel chose.
pub(super) fn join(
    descriptors: &mut [Descriptor],
    fanout: Fanout,
    filter: Option<&[BpfInstruction]>,
) -> Result<u16, SetupError> {
    let subject = |index| format!("descriptor {index}");
    let failed = |index, error| call("setsockopt(PACKET_FANOUT)", subject(index), error);
    let mut argument = 0;
    for (index, descriptor) in descriptors.iter_mut().enumerate() {
        if index == 0 {
            argument = found(descriptor.as_fd(), fanout).map_err(|e| failed(index, e))?;
            continue;
        }
        let fd = descriptor.as_fd();
        // What came before it was closed, and what of that was dropped, is the first one's.
        sys::discard_waiting(fd);
        drop(sys::packet_drops(fd));
        sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, argument)
            .map_err(|e| failed(index, e))?;
        match filter {
            Some(program) => descriptor
                .set_filter(program)
                .map_err(|e| call("setsockopt(SO_ATTACH_FILTER)", subject(index), e))?,
            None => descriptor.restore_filter(),
        }
    }
    // The number is the low half.
    Ok(u16::try_from(argument & 0xffff).unwrap_or(0))
}

/// Makes a group of one, and returns what the others join it by.
fn found(fd: BorrowedFd<'_>, fanout: Fanout) -> io::Result<libc::c_int> {
    // The group has a hook of its own, which knows nothing of the sockets' PACKET_IGNORE_OUTGOING.
    // The flag is newer (5.10); without it outgoing frames are told apart by their packet type.
    let outgoing = libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    found_with(fd, flags(fanout) | outgoing).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => found_with(fd, flags(fanout)),
        _ => Err(error),
    })
}

fn found_with(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<libc::c_int> {
    let unique = (flags | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16;
    sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, unique.cast_signed())?;
    let group = sys::option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT)? & 0xffff;
    Ok((flags << 16).cast_signed() | group)
}

fn flags(fanout: Fanout) -> libc::c_uint {
    let mode = match fanout.mode {
        FanoutMode::Cpu => libc::PACKET_FANOUT_CPU,
        FanoutMode::Hash => libc::PACKET_FANOUT_HASH,
        FanoutMode::LoadBalance => libc::PACKET_FANOUT_LB,
        FanoutMode::Rollover => libc::PACKET_FANOUT_ROLLOVER,
    };
    mode | if fanout.defragment { libc::PACKET_FANOUT_FLAG_DEFRAG } else { 0 }
}
