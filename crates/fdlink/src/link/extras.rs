//! What may be asked of a link beside the shape of its frames: promiscuous mode, a filter, time
//! stamps, how descriptors share, how many frames a call brings. Whether it goes with the kind, and
//! setting it.

use std::os::fd::AsFd;

use crate::descriptor::Descriptor;
use crate::error::SetupError;
use crate::link::LinkKind;
use crate::link::examine::{Found, call};
use crate::options::{Fanout, LinkOptions};
use crate::report::DescriptorReport;
use crate::sys::{filter, socket as sys, tun};

/// What will be set.
#[derive(Clone, Debug)]
pub(super) struct Extras {
    /// Frames for each recvmmsg.
    pub(super) batch: usize,
    pub(super) fanout: Option<Fanout>,
    pub(super) promiscuous: bool,
    pub(super) timestamps: bool,
}

/// At 1500 bytes a frame more than this gains nothing that can be measured, and 32 × 68 KiB is what
/// a second-level cache holds.
const BATCH: usize = 32;

/// The kernel takes no more messages in one call (UIO_MAXIOV, linux/uio.h).
const MOST_BATCH: usize = 1024;

/// Stamps in other forms, of which a socket has one at a time: SO_TIMESTAMPNS_NEW, SO_TIMESTAMP_NEW
/// (which reads as on where that is) and SO_TIMESTAMP (asm-generic/socket.h).
const OTHER_STAMPS: [libc::c_int; 3] = [64, 63, libc::SO_TIMESTAMP];

/// BPF_MAXINSNS, linux/bpf_common.h.
const MOST_INSTRUCTIONS: usize = 4096;

/// Decides, or says what does not go together.
pub(super) fn plan(
    found: &[Found],
    options: &LinkOptions,
    notes: &mut Vec<String>,
) -> Result<Extras, SetupError> {
    let Some(first) = found.first() else { return Err(SetupError::NoDescriptors) };
    let packet = first.kind.is_packet();
    let (stamped, stamps) = match first.kind {
        LinkKind::Framed => (false, "a socket that keeps boundaries"),
        LinkKind::Tap | LinkKind::Tun => (false, "a socket"),
        _ => (true, ""),
    };
    let mut given = |asked, possible, option, expected| {
        wanted(asked, possible, (option, expected), first.kind, options.fallback, notes)
    };
    let promiscuous = given(options.promiscuous, packet, "promiscuous", "an AF_PACKET socket")?;
    let timestamps = given(options.timestamps, stamped, "timestamps", stamps)?;
    given(options.fanout.is_some(), packet, "fanout", "AF_PACKET sockets")?;
    if options.fanout.is_some() && packet && found.len() == 1 {
        notes.push("fanout: one descriptor has nothing to share".to_owned());
    }
    let fanout = (packet && found.len() > 1).then(|| options.fanout.unwrap_or_default());
    check_filter(first.kind, options)?;
    Ok(Extras { batch: batch(options)?, fanout, promiscuous, timestamps })
}

/// Whether something that was asked for will be: an error where it cannot, or a note.
fn wanted(
    asked: bool,
    possible: bool,
    (option, expected): (&'static str, &str),
    kind: LinkKind,
    fallback: bool,
    notes: &mut Vec<String>,
) -> Result<bool, SetupError> {
    if !asked || possible {
        return Ok(asked);
    }
    let found = format!("a {}", kind.name());
    if fallback {
        notes.push(format!("no {option}: expected {expected}, found {found}"));
        return Ok(false);
    }
    Err(SetupError::Option { option, expected: expected.to_owned(), found })
}

fn batch(options: &LinkOptions) -> Result<usize, SetupError> {
    let batch = options.batch.unwrap_or(BATCH);
    if (1..=MOST_BATCH).contains(&batch) {
        return Ok(batch);
    }
    let expected = format!("1 to {MOST_BATCH} frames");
    Err(SetupError::Option { option: "batch", expected, found: batch.to_string() })
}

/// A filter is never left out: what it is to keep away would come in.
fn check_filter(kind: LinkKind, options: &LinkOptions) -> Result<(), SetupError> {
    let Some(program) = &options.filter else { return Ok(()) };
    let refused = |expected: &str, found| {
        Err(SetupError::Option { option: "filter", expected: expected.to_owned(), found })
    };
    if kind == LinkKind::Framed {
        // It would take pieces out of the stream.
        return refused("a socket that keeps boundaries", "a framed stream".to_owned());
    }
    if kind == LinkKind::Tun {
        // The kernel says EINVAL to TUNATTACHFILTER.
        return refused("a socket or a TAP device", "a tun".to_owned());
    }
    if !(1..=MOST_INSTRUCTIONS).contains(&program.len()) {
        return refused("1 to 4096 instructions", program.len().to_string());
    }
    match filter::check_program(program) {
        Ok(()) => Ok(()),
        Err(error) => refused("a classic BPF program", format!("what the kernel refuses: {error}")),
    }
}

/// Sets on one descriptor what can be set before it has a ring.
pub(super) fn apply(
    index: usize,
    descriptor: &mut Descriptor,
    found: &Found,
    extras: &Extras,
    options: &LinkOptions,
    report: &mut DescriptorReport,
) -> Result<(), SetupError> {
    let failed = |text| move |error| call(text, format!("descriptor {index}"), error);
    if extras.promiscuous {
        descriptor
            .set_promiscuous(found.interface_index)
            .map_err(failed("setsockopt(PACKET_ADD_MEMBERSHIP)"))?;
        report.promiscuous = true;
    }
    if extras.timestamps {
        // Taken off by name, so that they come back by name.
        for other in OTHER_STAMPS {
            drop(descriptor.set_option((libc::SOL_SOCKET, other), 0));
        }
        descriptor
            .set_option((libc::SOL_SOCKET, libc::SO_TIMESTAMPNS), 1)
            .map_err(failed("setsockopt(SO_TIMESTAMPNS)"))?;
        report.timestamps = true;
    }
    if let Some(program) = &options.filter {
        report.filter = program.len();
        if found.kind != LinkKind::Tap {
            descriptor.set_filter(program).map_err(failed("setsockopt(SO_ATTACH_FILTER)"))?;
            sys::discard_waiting(descriptor.as_fd());
        }
    }
    Ok(())
}

/// Sets what is the device's and not a descriptor's: one speaks for all.
pub(super) fn apply_to_device(
    descriptors: &mut [Descriptor],
    options: &LinkOptions,
) -> Result<(), SetupError> {
    if let (Some(first), Some(program)) = (descriptors.first(), &options.filter) {
        let filter = first
            .attach_to_device(program)
            .map_err(|e| call("ioctl(TUNATTACHFILTER)", "descriptor 0".to_owned(), e))?;
        for descriptor in descriptors {
            descriptor.remember_device_filter(filter.clone());
            tun::discard_waiting(descriptor.as_fd());
        }
    }
    Ok(())
}
