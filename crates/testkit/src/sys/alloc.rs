//! An allocator that counts, for tests that ask whether memory was given back.

// UNSAFETY: GlobalAlloc is an unsafe trait.
#![expect(unsafe_code, reason = "UNSAFETY, above")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, which also counts the bytes that are in use. To be the
/// `#[global_allocator]` of a test.
#[derive(Debug, Default)]
pub struct CountingAllocator {
    live: AtomicUsize,
}

impl CountingAllocator {
    /// With nothing in use yet.
    pub const fn new() -> Self {
        Self { live: AtomicUsize::new(0) }
    }

    /// Bytes in use now, as they were asked for.
    pub fn live(&self) -> usize {
        self.live.load(Relaxed)
    }
}

// SAFETY: every call is passed on to `System`, which is an allocator; counting touches no block.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is the one that `System` needs.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            self.live.fetch_add(layout.size(), Relaxed);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            self.live.fetch_add(layout.size(), Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.live.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the block is one of ours, so of `System`, and of that layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the block is one of ours, so of `System`, and of that layout; the caller's
        // promise about `size` is the one that `System` needs.
        let moved = unsafe { System.realloc(block, layout, size) };
        if !moved.is_null() {
            self.live.fetch_add(size, Relaxed);
            self.live.fetch_sub(layout.size(), Relaxed);
        }
        moved
    }
}
