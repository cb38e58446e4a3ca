//! A receive ring of an AF_PACKET socket (Documentation/networking/packet_mmap.rst): memory shared
//! with the kernel, cut into slots of equal length. A slot belongs to the kernel or to us, by its
//! status word; what a slot holds depends on the version:
//!
//! ```text
//! V2, a frame:    status  len  snaplen  mac ...  sockaddr_ll ...  frame
//! V3, a block:    version  offset_to_priv  status  num_pkts  offset_to_first_pkt ...  frames ...
//! ```
//!
//! [`cursor`] decides which slots are ours. What is not here: how many slots a ring has and what
//! is in them (`io/packet_mmap`).

// UNSAFETY: the ring is memory that another party writes; only raw pointers and atomics may look
// at a slot until its status says that it is ours.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

mod cursor;

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{check, len_of, socket};
use crate::options::RingVersion;
use cursor::{Cursor, StatusWords};

/// How a ring is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) version: RingVersion,
    /// Bytes of a slot: a multiple of the page size.
    pub(crate) slot_len: u32,
    /// At least one.
    pub(crate) slots: u32,
    /// V3: after that many milliseconds a block that has a frame is handed over, full or not.
    pub(crate) retire_millis: u32,
}

/// A mapped ring, of which a run of slots may be held.
#[derive(Debug)]
pub(crate) struct Ring {
    mapping: Mapping,
    cursor: Cursor,
    geometry: Geometry,
    on_socket: OnSocket,
}

/// What a ring is to its socket, which keeps it when it is unmapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnSocket {
    version: RingVersion,
    /// The version that the socket had before.
    old_version: libc::c_int,
}

impl OnSocket {
    /// Takes the ring, which must be unmapped, off its socket, which is then as before.
    pub(crate) fn take_off(self, fd: BorrowedFd<'_>) {
        restore(fd, self.version, self.old_version);
    }
}

impl Ring {
    /// Sets up a ring on an AF_PACKET socket and maps it. The socket must not have one. Where it
    /// fails, the socket is as before.
    pub(crate) fn new(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Self> {
        let version = match geometry.version {
            RingVersion::V2 => libc::tpacket_versions::TPACKET_V2,
            RingVersion::V3 => libc::tpacket_versions::TPACKET_V3,
        };
        let old_version = socket::option(fd, libc::SOL_PACKET, libc::PACKET_VERSION)?;
        set_version(fd, version as libc::c_int)?;
        let mapped = set_ring(fd, geometry).and_then(|()| Mapping::of_socket(fd, geometry));
        match mapped {
            Ok(mapping) => {
                let cursor = Cursor::new(mapping.slots);
                let on_socket = OnSocket { version: geometry.version, old_version };
                Ok(Self { mapping, cursor, geometry, on_socket })
            }
            Err(error) => {
                restore(fd, geometry.version, old_version);
                Err(error)
            }
        }
    }

    /// Unmaps the ring and takes it off its socket, which is then as before.
    pub(crate) fn take_off(self, fd: BorrowedFd<'_>) {
        let on_socket = self.on_socket;
        drop(self);
        on_socket.take_off(fd);
    }

    /// What remains of it on its socket when it is unmapped.
    pub(crate) fn on_socket(&self) -> OnSocket {
        self.on_socket
    }

    /// How it is laid out.
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes of the whole ring.
    pub(crate) fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Gives back what is held and takes, of the slots that the kernel has handed over, a run of at
    /// most so many. How many.
    pub(crate) fn take(&mut self, most: usize) -> usize {
        self.cursor.take(&self.mapping, most)
    }

    /// Gives the slots that are held to the kernel.
    pub(crate) fn release(&mut self) {
        self.cursor.give_back(&self.mapping);
    }

    /// The memory of the slots that are held, one behind the other.
    pub(crate) fn held(&mut self) -> &mut [u8] {
        let held = self.cursor.held();
        if held.is_empty() {
            return &mut [];
        }
        let len = held.len() * self.mapping.slot_len;
        let start = self.mapping.slot(held.start);
        // SAFETY: the range lies in the mapping: the cursor holds no slot past the last. The
        // status of each, loaded with Acquire, said that the kernel has written the slot and leaves
        // it alone until it is given back, which needs `&mut self` and so waits for this borrow to
        // end.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }
}

/// Whether an AF_PACKET socket has a ring already, which takes all of its frames. Changes nothing:
/// the version is set to what it is, which the kernel refuses while there is a ring
/// (packet_setsockopt, net/packet/af_packet.c).
pub(crate) fn has_ring(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let version = socket::option(fd, libc::SOL_PACKET, libc::PACKET_VERSION)?;
    match set_version(fd, version) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        result => result.map(|()| false),
    }
}

/// Bytes of a page.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf takes an integer and returns one.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The memory of a ring.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    slot_len: usize,
    slots: usize,
    /// Where in a slot its status word is.
    status: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn of_socket(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Self> {
        Self::new(libc::MAP_SHARED, fd.as_raw_fd(), geometry)
    }

    fn new(flags: libc::c_int, fd: libc::c_int, geometry: Geometry) -> io::Result<Self> {
        let (slot_len, slots) = (geometry.slot_len as usize, geometry.slots as usize);
        let status = match geometry.version {
            RingVersion::V2 => offset_of!(libc::tpacket2_hdr, tp_status),
            RingVersion::V3 => {
                offset_of!(libc::tpacket_block_desc, hdr)
                    + offset_of!(libc::tpacket_hdr_v1, block_status)
            }
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let len = slot_len * slots;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A ring comes off its socket only when nobody has it mapped, so a process that is forked
        // gets no mapping of it; where that cannot be had, the ring stays as long as that process.
        // SAFETY: the range is exactly what mmap returned, and this changes nothing about it here.
        unsafe { libc::madvise(start, len, libc::MADV_DONTFORK) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, slot_len, slots, status })
    }

    fn len(&self) -> usize {
        self.slot_len * self.slots
    }

    fn slot(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.slots, "slot {index} of {}", self.slots);
        // SAFETY: the assertion keeps the offset inside the mapping.
        unsafe { self.start.add(index * self.slot_len) }
    }

    fn word(&self, slot: usize) -> &AtomicU32 {
        let slot = self.slot(slot);
        // SAFETY: `status` is inside the slot, whose length is at least a page.
        let status = unsafe { slot.add(self.status) };
        // SAFETY: slots start on pages and `status` is a multiple of 4, so it is aligned; the
        // mapping lives as long as `self`; both sides use it atomically while it is contended.
        unsafe { AtomicU32::from_ptr(status.cast().as_ptr()) }
    }
}

impl StatusWords for Mapping {
    fn load(&self, slot: usize, order: Ordering) -> u32 {
        self.word(slot).load(order)
    }

    fn store(&self, slot: usize, status: u32, order: Ordering) {
        self.word(slot).store(status, order);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what mmap returned, and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len()) };
    }
}

fn set_version(fd: BorrowedFd<'_>, version: libc::c_int) -> io::Result<()> {
    socket::set_option(fd, libc::SOL_PACKET, libc::PACKET_VERSION, version)
}

/// A socket without a ring, and with the version that it had.
fn restore(fd: BorrowedFd<'_>, version: RingVersion, old: libc::c_int) {
    let none = Geometry { version, slot_len: 0, slots: 0, retire_millis: 0 };
    // Neither can fail on a socket whose ring is not mapped.
    drop(set_ring(fd, none));
    drop(set_version(fd, old));
}

fn set_ring(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<()> {
    // A V3 ring has no frames of fixed size; the kernel only wants the numbers to agree, and a
    // frame size that divides the block (packet_set_ring, net/packet/af_packet.c).
    const V3_FRAME: u32 = 2048;
    let frame_len = match geometry.version {
        RingVersion::V2 => geometry.slot_len,
        RingVersion::V3 => V3_FRAME,
    };
    let frames_per_block = geometry.slot_len.checked_div(frame_len).unwrap_or(0);
    // The structure of V2 is the beginning of this one.
    let request = libc::tpacket_req3 {
        tp_block_size: geometry.slot_len,
        tp_block_nr: geometry.slots,
        tp_frame_size: frame_len,
        tp_frame_nr: frames_per_block * geometry.slots,
        tp_retire_blk_tov: geometry.retire_millis,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    let (at, len) = ((&raw const request).cast(), len_of::<libc::tpacket_req3>());
    let (raw, name) = (fd.as_raw_fd(), libc::PACKET_RX_RING);
    // SAFETY: `at` points to the `len` bytes of `request`.
    check(unsafe { libc::setsockopt(raw, libc::SOL_PACKET, name, at, len) }).map(|_| ())
}

#[cfg(test)]
impl Ring {
    /// A ring over anonymous memory, whose kernel is the test ([`put`](Self::put)).
    pub(crate) fn anonymous(geometry: Geometry) -> Self {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let mapping = Mapping::new(flags, -1, geometry).expect("anonymous memory");
        let cursor = Cursor::new(mapping.slots);
        let on_socket = OnSocket { version: geometry.version, old_version: 0 };
        Self { mapping, cursor, geometry, on_socket }
    }

    /// Whether the slot is the kernel's.
    pub(crate) fn is_kernels(&self, slot: usize) -> bool {
        self.mapping.load(slot, Ordering::Acquire) == libc::TP_STATUS_KERNEL
    }

    /// Writes a whole slot, status word included, as the kernel does with one of its own.
    pub(crate) fn put(&mut self, slot: usize, bytes: &[u8]) {
        assert!(self.is_kernels(slot) && bytes.len() <= self.mapping.slot_len);
        let to = self.mapping.slot(slot);
        // SAFETY: the slot is as long as `bytes` at least, and is not held: `&mut self` sees to it
        // that no borrow of the ring is alive.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_process_does_not_get_the_mapping() {
        let slot_len = u32::try_from(page_size()).unwrap();
        let version = RingVersion::V2;
        let ring = Ring::anonymous(Geometry { version, slot_len, slots: 2, retire_millis: 1 });
        // proc_pid_smaps(5): "dc", do not copy on fork.
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", ring.mapping.start.as_ptr().addr());
        let own = maps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = own.skip(1).find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split_whitespace().any(|flag| flag == "dc"), "{flags}");
    }
}
