//! A global allocator that counts while it is told to.
//!
//! Off, it costs one relaxed load for each allocation, the same for everybody. Timings are taken with it off, counts
//! in rounds of their own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

static ON: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicI64 = AtomicI64::new(0);
static LIVE: AtomicI64 = AtomicI64::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(calls: i64, bytes: i64) {
    if ON.load(Relaxed) {
        CALLS.fetch_add(calls, Relaxed);
        LIVE.fetch_add(bytes, Relaxed);
    }
}

#[allow(clippy::cast_possible_wrap)] // no allocation is larger than `isize::MAX`
fn signed(size: usize) -> i64 {
    size as i64
}

// SAFETY: every call goes to the system's allocator unchanged; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, signed(layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, -signed(layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, signed(layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, signed(size) - signed(layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// What was allocated, by all threads, between the start of a count and now.
#[derive(Clone, Copy, Debug)]
pub struct Allocated {
    /// Calls to the allocator that asked for memory.
    pub calls: f64,
    /// Bytes that are still held.
    pub bytes: f64,
}

/// Counts until dropped. One at a time.
pub struct Count(());

impl Count {
    pub fn start() -> Self {
        CALLS.store(0, Relaxed);
        LIVE.store(0, Relaxed);
        ON.store(true, Relaxed);
        Self(())
    }

    #[allow(clippy::cast_precision_loss)]
    pub fn so_far(&self) -> Allocated {
        Allocated { calls: CALLS.load(Relaxed) as f64, bytes: LIVE.load(Relaxed) as f64 }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        ON.store(false, Relaxed);
    }
}
