//! Network interfaces, asked for by ioctl through a socket (netdevice(7)). The socket decides the
//! network namespace, so a descriptor from another namespace answers for its own.

// UNSAFETY: these ioctls exchange `struct ifreq`, a union by pointer.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// A `struct ifreq`: an interface's name and one value.
pub(crate) struct Request(libc::ifreq);

impl Request {
    /// No name, and a value of zeros.
    pub(crate) fn empty() -> Self {
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_slave: [0; libc::IFNAMSIZ] };
        Self(libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru })
    }

    /// With a name, and a value of zeros.
    pub(crate) fn named(name: &str) -> io::Result<Self> {
        // One byte stays for the terminating zero.
        if name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            let text = "an interface's name has at most 15 bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut request = Self::empty();
        for (to, from) in request.0.ifr_name.iter_mut().zip(name.bytes()) {
            // c_char is signed on x86_64 and unsigned on aarch64.
            *to = libc::c_char::from_ne_bytes([from]);
        }
        Ok(request)
    }

    pub(crate) fn name(&self) -> String {
        let bytes: Vec<u8> =
            self.0.ifr_name.iter().map(|c| c.to_ne_bytes()[0]).take_while(|c| *c != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn flags(&self) -> libc::c_int {
        // SAFETY: every member of the union is plain data, and all its bytes are initialised
        // (`empty` fills the 16 that any reader of this type looks at).
        libc::c_int::from(unsafe { self.0.ifr_ifru.ifru_flags })
    }

    pub(crate) fn set_flags(&mut self, flags: libc::c_int) {
        #[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits, as the flags")]
        let flags = flags as libc::c_short;
        self.0.ifr_ifru.ifru_flags = flags;
    }

    fn integer(&self) -> libc::c_int {
        // SAFETY: as in `flags`.
        unsafe { self.0.ifr_ifru.ifru_ifindex }
    }

    fn set_integer(&mut self, value: libc::c_int) {
        self.0.ifr_ifru.ifru_ifindex = value;
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::ifreq {
        &raw mut self.0
    }

    fn ask(&mut self, socket: BorrowedFd<'_>, what: libc::c_ulong) -> io::Result<()> {
        // `libc::Ioctl` is c_int on musl.
        let what = what as libc::Ioctl;
        // SAFETY: each `what` of this file reads and writes one ifreq, which is what this holds.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), what, self.as_mut_ptr()) }).map(|_| ())
    }
}

/// The index of the interface of that name.
pub(crate) fn index(socket: BorrowedFd<'_>, name: &str) -> io::Result<libc::c_int> {
    let mut request = Request::named(name)?;
    request.ask(socket, libc::SIOCGIFINDEX)?;
    Ok(request.integer())
}

/// The name of the interface of that index.
pub(crate) fn name(socket: BorrowedFd<'_>, index: libc::c_int) -> io::Result<String> {
    let mut request = Request::empty();
    request.set_integer(index);
    request.ask(socket, libc::SIOCGIFNAME)?;
    Ok(request.name())
}

/// Whether the interface is administratively up (IFF_UP).
pub(crate) fn is_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let mut request = Request::named(name)?;
    request.ask(socket, libc::SIOCGIFFLAGS)?;
    Ok(request.flags() & libc::IFF_UP != 0)
}

/// The interface's MTU.
pub(crate) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = Request::named(name)?;
    request.ask(socket, libc::SIOCGIFMTU)?;
    Ok(request.integer().cast_unsigned())
}

/// The network namespace that a socket is in. CAP_NET_ADMIN there.
pub(crate) fn network_namespace(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // linux/sockios.h
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: SIOCGSKNS takes no argument.
    let namespace = check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) })?;
    // SAFETY: the kernel returned this descriptor just now, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}
