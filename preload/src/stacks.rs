//! Stacks for the stop handler. It needs some 4 KiB beside the frame that the kernel builds, and a thread may have no more
//! than that frame: on an alternate stack of the usual size that it is on already, or on a small one that it gave to clone(2).
//!
//! They are memory of the program's as far as images are concerned: a restarted thread comes back on the one that it was
//! stopped on.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use stasis_sys::memory;

use crate::arch;

/// One stack, in bytes; only what is touched takes memory.
const LEN: usize = 16 << 10;

/// How many the first pool has; each further one has twice as many as the last.
const FIRST: usize = 64;

/// Where each pool begins: a flag for each stack (whether it is in use), then the stacks. All together have as many as
/// [`crate::threads`] has slots.
static POOLS: [AtomicUsize; 12] = [const { AtomicUsize::new(0) }; 12];

const PAGE: usize = 4096;

const fn flags_len(count: usize) -> usize {
    (count * size_of::<AtomicU32>()).next_multiple_of(PAGE)
}

/// Makes sure that there are enough for so many threads, as far as there is memory; who finds none stays on its own stack.
/// To be called by one thread at a time.
pub fn provide(threads: usize) {
    let mut total = 0;
    for (index, pool) in POOLS.iter().enumerate() {
        let count = FIRST << index;
        if pool.load(Ordering::Relaxed) == 0 {
            let Ok(start) = memory::reserve(flags_len(count) + count * LEN) else { return };
            pool.store(start, Ordering::Release);
        }
        total += count;
        if total >= threads * 2 {
            return;
        }
    }
}

/// The flags of each pool, with where its stacks begin; the largest first.
fn pools() -> impl Iterator<Item = (&'static [AtomicU32], usize)> {
    POOLS.iter().enumerate().rev().filter_map(|(index, pool)| {
        let (start, count) = (pool.load(Ordering::Acquire), FIRST << index);
        // SAFETY: a pool begins with its flags, which are never unmapped.
        (start != 0).then(|| unsafe {
            (core::slice::from_raw_parts(start as *const AtomicU32, count), start + flags_len(count))
        })
    })
}

/// A stack for the handler: its upper end, and the flag that says that it is in use; null where all are.
#[repr(C)]
pub struct Taken {
    top: usize,
    flag: *const AtomicU32,
}

/// Called first by the handler, with the stack pointer that it has.
pub extern "C" fn take(sp: usize) -> Taken {
    arch::allow_unaligned();
    /// Others that are tried before a pool counts as full.
    const TRIES: usize = 16;
    for (flags, stacks) in pools() {
        // Threads' stacks are far apart, and mostly at the same place in a page.
        let first = (sp >> 12).wrapping_mul(0x9e37_79b1) >> 8;
        for index in (first..first + TRIES).map(|index| index % flags.len()) {
            if flags[index].compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Taken { top: stacks + (index + 1) * LEN, flag: &flags[index] };
            }
        }
    }
    Taken { top: 0, flag: core::ptr::null() }
}

/// Called last by the handler, on the stack that it came with.
///
/// # Safety
/// `flag` is what [`take`] gave.
pub unsafe extern "C" fn give_back(flag: *const AtomicU32) {
    // SAFETY: null, or in a pool's flags, which are never unmapped.
    if let Some(flag) = unsafe { flag.as_ref() } {
        flag.store(0, Ordering::Release);
    }
}

/// In the child of a fork there are no threads but the one that forked, which was not in the handler.
pub fn forget_inherited() {
    for flag in pools().flat_map(|(flags, _)| flags) {
        // Only those: the others' pages stay shared with the parent.
        if flag.load(Ordering::Relaxed) != 0 {
            flag.store(0, Ordering::Relaxed);
        }
    }
}
