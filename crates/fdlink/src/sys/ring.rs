//! A TPACKET_V3 receive ring (Documentation/networking/packet_mmap.rst): memory shared with the
//! kernel, cut into blocks. A block belongs to the kernel or to us, by its status word:
//!
//! ```text
//! block:  version  offset_to_priv  block_status  num_pkts  offset_to_first_pkt ...  frames ...
//!                                  ^ kernel: 0 -> 1, we: 1 -> 0
//! ```

// UNSAFETY: the ring is memory that another party writes; only raw pointers and atomics may look
// at a block until its status says that it is ours.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{check, len_of, socket};

const STATUS: usize =
    offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, block_status);

/// How a ring is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// Bytes of a block: a multiple of the page size.
    pub(crate) block_len: u32,
    pub(crate) blocks: u32,
    /// After that many milliseconds a block that has a frame is handed over, full or not.
    pub(crate) retire_millis: u32,
}

/// A mapped ring.
#[derive(Debug)]
pub(crate) struct Ring {
    start: NonNull<u8>,
    block_len: usize,
    blocks: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Sets up a ring on an AF_PACKET socket and maps it. The socket must not have one.
    pub(crate) fn new(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Self> {
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        socket::set_option(fd, libc::SOL_PACKET, libc::PACKET_VERSION, version)?;
        set_ring(fd, geometry)?;
        Self::map(fd, geometry).inspect_err(|_| {
            // Without its mapping the ring is of no use, and without it the socket is as before.
            let _ = Self::remove(fd);
        })
    }

    /// Takes the ring off a socket whose mapping is gone.
    pub(crate) fn remove(fd: BorrowedFd<'_>) -> io::Result<()> {
        set_ring(fd, Geometry { block_len: 0, blocks: 0, retire_millis: 0 })
    }

    fn map(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Self> {
        let (block_len, blocks) = (geometry.block_len as usize, geometry.blocks as usize);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (len, raw) = (block_len * blocks, fd.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, raw, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, block_len, blocks })
    }

    /// How many blocks there are.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of the whole ring.
    pub(crate) fn len(&self) -> usize {
        self.block_len * self.blocks
    }

    /// The block, if it is ours.
    pub(crate) fn block(&mut self, index: usize) -> Option<&mut [u8]> {
        let start = self.block_start(index);
        if self.status(index).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the range lies in the mapping (`block_start` checked the index). The status,
        // loaded with Acquire, says that the kernel has written the block and leaves it alone
        // until `release`, which needs `&mut self` and so waits for this borrow to end.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.block_len) })
    }

    /// Gives the block to the kernel.
    pub(crate) fn release(&mut self, index: usize) {
        self.status(index).store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }

    fn block_start(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.blocks, "block {index} of {}", self.blocks);
        // SAFETY: the assertion keeps the offset inside the mapping.
        unsafe { self.start.add(index * self.block_len) }
    }

    fn status(&self, index: usize) -> &AtomicU32 {
        let block = self.block_start(index);
        // SAFETY: STATUS is inside the block, whose length is at least a page.
        let status = unsafe { block.add(STATUS) };
        // SAFETY: blocks start on pages and STATUS is a multiple of 4, so it is aligned; the
        // mapping lives as long as `self`; both sides use it atomically while it is contended.
        unsafe { AtomicU32::from_ptr(status.cast().as_ptr()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what mmap returned, and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len()) };
    }
}

fn set_ring(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<()> {
    // A V3 ring has no frames of fixed size; the kernel only wants the numbers to agree, and a
    // frame size that divides the block (packet_set_ring, net/packet/af_packet.c).
    const FRAME: u32 = 2048;
    let request = libc::tpacket_req3 {
        tp_block_size: geometry.block_len,
        tp_block_nr: geometry.blocks,
        tp_frame_size: FRAME,
        tp_frame_nr: geometry.block_len / FRAME * geometry.blocks,
        tp_retire_blk_tov: geometry.retire_millis,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    let (at, len) = ((&raw const request).cast(), len_of::<libc::tpacket_req3>());
    let (raw, name) = (fd.as_raw_fd(), libc::PACKET_RX_RING);
    // SAFETY: `at` points to the `len` bytes of `request`.
    check(unsafe { libc::setsockopt(raw, libc::SOL_PACKET, name, at, len) }).map(|_| ())
}

/// Bytes of a page.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf takes an integer and returns one.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
