//! Classic BPF filters (linux/filter.h), on sockets and on TAP devices.

// UNSAFETY: a program is handed over as a structure with a pointer to its instructions.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::{check, len_of, socket};
use crate::options::BpfInstruction;

// `BpfInstruction` is repr(C) with the fields of the kernel's structure, in its order.
const _: () = assert!(size_of::<BpfInstruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(align_of::<BpfInstruction>() == align_of::<libc::sock_filter>());

/// Attaches a program to a socket, in place of any that is there (SO_ATTACH_FILTER).
pub(crate) fn attach(fd: BorrowedFd<'_>, program: &[BpfInstruction]) -> io::Result<()> {
    let program = description(program)?;
    let (at, len) = ((&raw const program).cast(), len_of::<libc::sock_fprog>());
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: `at` points to the `len` bytes of a sock_fprog, whose pointer and length are those
    // of a slice that lives through the call; the kernel copies both and writes neither.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, at, len) }).map(|_| ())
}

/// Attaches a program to the TAP device behind a descriptor (TUNATTACHFILTER).
pub(crate) fn attach_to_tap(fd: BorrowedFd<'_>, program: &[BpfInstruction]) -> io::Result<()> {
    let program = description(program)?;
    // SAFETY: TUNATTACHFILTER reads a sock_fprog, whose pointer and length are those of a slice
    // that lives through the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNATTACHFILTER, &raw const program) })
        .map(|_| ())
}

/// Takes off a socket's program (SO_DETACH_FILTER).
pub(crate) fn detach(fd: BorrowedFd<'_>) -> io::Result<()> {
    socket::set_option(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
}

/// The program that is attached to a socket; empty for none. An error where it is none of classic
/// BPF, which cannot be read back.
pub(crate) fn attached(fd: BorrowedFd<'_>) -> io::Result<Vec<BpfInstruction>> {
    // sk_get_filter, net/core/filter.c: lengths are in instructions, and with 0 it only tells.
    let len = get(fd, &mut [])?;
    let mut program = vec![BpfInstruction::default(); len];
    if len > 0 {
        let len = get(fd, &mut program)?;
        program.truncate(len);
    }
    Ok(program)
}

/// Whether the kernel takes the program, found out on a socket of our own.
pub(crate) fn check_program(program: &[BpfInstruction]) -> io::Result<()> {
    let socket = socket::open(libc::AF_UNIX, libc::SOCK_DGRAM)?;
    attach(socket.as_fd(), program)
}

fn get(fd: BorrowedFd<'_>, program: &mut [BpfInstruction]) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(program.len()).unwrap_or(0);
    let (raw, at) = (fd.as_raw_fd(), program.as_mut_ptr().cast());
    let (level, name) = (libc::SOL_SOCKET, libc::SO_GET_FILTER);
    // SAFETY: `at` points to `len` writable instructions; the kernel writes a whole program of no
    // more than `len` or, where that is 0 or too few, nothing. Every bit pattern is an instruction.
    check(unsafe { libc::getsockopt(raw, level, name, at, &raw mut len) })?;
    Ok(len as usize)
}

fn description(program: &[BpfInstruction]) -> io::Result<libc::sock_fprog> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_program_is_read_back_as_it_was_attached() {
        let (socket, _) = UnixDatagram::pair().unwrap();
        let fd = socket.as_fd();
        assert_eq!(attached(fd).unwrap(), []);
        // Load a half word, then accept everything.
        let program =
            [(0x28, 12), (0x06, 0xffff)].map(|(code, k)| BpfInstruction { code, jt: 0, jf: 0, k });
        attach(fd, &program).unwrap();
        assert_eq!(attached(fd).unwrap(), program);
        attach(fd, &program[1..]).unwrap();
        assert_eq!(attached(fd).unwrap(), program[1..]);
        detach(fd).unwrap();
        assert_eq!(attached(fd).unwrap(), []);
        // A program must end with a return.
        assert!(check_program(&program[..1]).is_err() && check_program(&program).is_ok());
        assert!(check_program(&[]).is_err());
    }
}
