//! The checkpoint thread's memory: taken from the front and given back all at once when a request has been answered.
//!
//! Only the checkpoint thread allocates, so there is no lock. A small region is always there; it is mapped empty again at restart,
//! since nothing in it lives between requests. What does not fit into it is mapped for as long as the request lasts: address space
//! that is merely reserved counts, too, for RLIMIT_AS, for mlockall(2) and where the machine does not overcommit.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr,
};

use stasis_sys::memory;

use crate::checkpoint;

/// How long the region is that is always there.
pub const RESERVED: usize = 1 << 20;

/// How many more there can be, each twice as long as the one before: 16 GiB, where 5,000 threads and 100,000 mappings take
/// less than one.
const MORE: usize = 10;

/// How long the first of them is, and how long they are where that cannot be had.
const FIRST: usize = 16 << 20;
const SHORT: usize = 256 << 10;

struct Region {
    start: usize,
    /// Where the next block goes, and where the region ends that it goes into.
    next: usize,
    end: usize,
    /// Where that begins; the lengths of those before it are counted in `filled`.
    begun: usize,
    filled: usize,
    /// Address and length.
    more: [(usize, usize); MORE],
    count: usize,
}

impl Region {
    const fn at(start: usize) -> Self {
        let end = start + if start == 0 { 0 } else { RESERVED };
        Self { start, next: start, end, begun: start, filled: 0, more: [(0, 0); MORE], count: 0 }
    }

    /// Goes on in a further region, which has room for `len` bytes; `None`: there is no memory.
    fn extend(&mut self, len: usize) -> Option<()> {
        let place = self.more.get_mut(self.count)?;
        let usual = (FIRST << self.count).max(len.next_power_of_two());
        let short = len.next_multiple_of(SHORT);
        let (start, len) =
            [usual, short].into_iter().find_map(|len| Some((memory::reserve(len).ok()?, len)))?;
        // Not a child's: it has no use for it.
        // SAFETY: a new mapping, of ours.
        if unsafe { memory::advise(start, len, libc::MADV_DONTFORK) }.is_err() {
            // SAFETY: as above.
            let _ = unsafe { memory::unmap(start, len) };
            return None;
        }
        *place = (start, len);
        self.count += 1;
        self.filled += self.next - self.begun;
        (self.next, self.end, self.begun) = (start, start + len, start);
        Some(())
    }
}

struct Arena(UnsafeCell<Region>);

// SAFETY: only the checkpoint thread allocates (module documentation).
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena(UnsafeCell::new(Region::at(0)));

/// Where the region that is always there lies; 0 before [`init`].
pub fn start() -> usize {
    // SAFETY: set once before the checkpoint thread exists.
    unsafe { (*ARENA.0.get()).start }
}

/// The others: addresses and lengths, 0 where there is none.
pub fn more() -> [(usize, usize); MORE] {
    // SAFETY: one thread only.
    unsafe { (*ARENA.0.get()).more }
}

/// Maps the region that is always there.
pub fn init() -> stasis_sys::Result<()> {
    let start = memory::reserve(RESERVED)?;
    // SAFETY: called from the constructor, before the checkpoint thread exists.
    unsafe { *ARENA.0.get() = Region::at(start) };
    Ok(())
}

/// How much is in use, in bytes; since what is given back in between is used again, the most so far, nearly.
pub fn most() -> usize {
    // SAFETY: one thread only.
    let region = unsafe { &*ARENA.0.get() };
    region.filled + (region.next - region.begun)
}

/// Touches what the checkpoint of a program with some ten mappings takes (330 to 390 KiB), so that none of its pages is faulted
/// in while the program stands still. Where the kernel has no MADV_POPULATE_WRITE (before 5.14) they are.
pub fn prefault() {
    const TAKEN: usize = 400 << 10;
    // SAFETY: populating changes no content; the region is ours.
    let _ = unsafe { memory::advise(start(), TAKEN, libc::MADV_POPULATE_WRITE) };
}

/// Gives everything back.
///
/// # Safety
/// Nothing that was allocated may be used any more; only the checkpoint thread may call it.
pub unsafe fn reset() {
    for (start, len) in more().into_iter().filter(|(start, _)| *start != 0) {
        // SAFETY: nothing in it is in use.
        let _ = unsafe { memory::unmap(start, len) };
    }
    // SAFETY: the caller's promise.
    unsafe { forget() };
}

/// In a process that has been forked or restored: nothing is in use, and only the region that is always there exists.
///
/// # Safety
/// As for [`reset`], or where there is no checkpoint thread yet.
pub unsafe fn forget() {
    // SAFETY: the caller's promise.
    unsafe { *ARENA.0.get() = Region::at(start()) };
}

// SAFETY: blocks are disjoint, aligned and inside mappings that live as long as the request.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread only.
        let region = unsafe { &mut *self.0.get() };
        loop {
            let at = region.next.next_multiple_of(layout.align());
            if let Some(end) = at.checked_add(layout.size()).filter(|end| *end <= region.end) {
                region.next = end;
                return at as *mut u8;
            }
            if region.start == 0 || region.extend(layout.size() + layout.align()).is_none() {
                checkpoint::give_up();
                return ptr::null_mut();
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: one thread only.
        let region = unsafe { &mut *self.0.get() };
        if block as usize + layout.size() == region.next && block as usize >= region.begun {
            region.next = block as usize;
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: one thread only.
        let region = unsafe { &mut *self.0.get() };
        let at = block as usize;
        if at + layout.size() == region.next && at >= region.begun && at + new_size <= region.end {
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
