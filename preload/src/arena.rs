//! The checkpoint thread's memory: a region of its own, taken from the front and given back all at
//! once when a request has been answered.
//!
//! Only the checkpoint thread allocates, so there is no lock. The region is reserved, not
//! committed; it is mapped empty again at restart, since nothing in it lives between requests.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr,
};

use stasis_sys::memory;

/// Address space for the largest image record: 5,000 threads and 100,000 mappings stay far below.
pub const RESERVED: usize = 1 << 30;

struct Region {
    start: usize,
    next: usize,
}

struct Arena(UnsafeCell<Region>);

// SAFETY: only the checkpoint thread allocates (module documentation).
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena(UnsafeCell::new(Region { start: 0, next: 0 }));

/// Where the region lies; 0 before [`init`].
pub fn start() -> usize {
    // SAFETY: set once before the checkpoint thread exists.
    unsafe { (*ARENA.0.get()).start }
}

/// Reserves the region.
pub fn init() -> stasis_sys::Result<()> {
    let start = memory::reserve(RESERVED)?;
    // SAFETY: called from the constructor, before the checkpoint thread exists.
    unsafe { *ARENA.0.get() = Region { start, next: start } };
    Ok(())
}

/// How much is in use, in bytes; since what is given back in between is used again, the most so far, nearly.
pub fn most() -> usize {
    // SAFETY: one thread only.
    let region = unsafe { &*ARENA.0.get() };
    region.next - region.start
}

/// How much is kept, touched, between checkpoints, in bytes.
const KEPT: usize = 1 << 20;

/// Touches what the checkpoint of a program with some ten mappings takes, so that none of its pages is faulted
/// in while the program stands still. Where the kernel has no MADV_POPULATE_WRITE (before 5.14) they are.
pub fn prefault() {
    const TAKEN: usize = KEPT / 2;
    // SAFETY: populating changes no content; the region is ours.
    let _ = unsafe { memory::advise(start(), TAKEN, libc::MADV_POPULATE_WRITE) };
}

/// Gives everything back.
///
/// # Safety
/// Nothing that was allocated may be used any more; only the checkpoint thread may call it.
pub unsafe fn reset() {
    // SAFETY: the caller's promise.
    let region = unsafe { &mut *ARENA.0.get() };
    let used = region.next - region.start;
    region.next = region.start;
    if used > KEPT {
        // SAFETY: nothing in the region is in use.
        let _ = unsafe { memory::advise(region.start + KEPT, used - KEPT, libc::MADV_DONTNEED) };
    }
}

// SAFETY: blocks are disjoint, aligned and inside a mapping that lives as long as the process.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread only.
        let region = unsafe { &mut *self.0.get() };
        let at = (region.next + layout.align() - 1) & !(layout.align() - 1);
        if region.start == 0 || at + layout.size() > region.start + RESERVED {
            return ptr::null_mut();
        }
        region.next = at + layout.size();
        at as *mut u8
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: one thread only.
        let region = unsafe { &mut *self.0.get() };
        if block as usize + layout.size() == region.next {
            region.next = block as usize;
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: one thread only.
        let region = unsafe { &mut *self.0.get() };
        let at = block as usize;
        if at + layout.size() == region.next && at + new_size <= region.start + RESERVED {
            region.next = at + new_size;
            return block;
        }
        if new_size <= layout.size() {
            return block;
        }
        // SAFETY: the same alignment was valid for the old block; the copy stays inside both.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size());
            }
            new
        }
    }
}
