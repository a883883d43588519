//! Filling memory from packs: several threads, each page compared with its hash.
//!
//! One thread gives huge pages to memory that will be full, piece by piece; the others follow it, reading, and it
//! reads with them when it is through. More of them would not give huge pages sooner: the kernel holds the address
//! space's lock (mmap_lock) meanwhile. Reading into pages that are there takes no lock.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use stasis_protocol::{
    plan::{Fill, step},
    store::BLOCK,
};
use stasis_sys::{Errno, file};

use crate::{
    arch::{self, CloneArguments},
    hash::{BATCH, PAGE_SIZE, Page, PageHasher},
    plan::Plan,
    relocate::{self, STACK},
    report,
};

/// The next fill to be taken.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Whether a thread is giving huge pages already, or has.
static COLLAPSING: AtomicBool = AtomicBool::new(false);

/// How many pieces have their huge pages: a futex.
static COLLAPSED: AtomicU32 = AtomicU32::new(0);

/// Threads that have not ended: the kernel writes zero to each's word (CLONE_CHILD_CLEARTID).
static RUNNING: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];

/// More threads than this do not read faster.
const MOST: usize = 16;

/// Fills all memory; returns when it is whole and the threads that helped are gone.
pub fn fill(plan: &Plan) {
    let (fillers, turns) = ((plan.header().fillers as usize).min(MOST), plan.turns());
    let stacks = relocate::area(plan).stacks + STACK;
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_CHILD_CLEARTID;
    for (index, running) in RUNNING.iter().enumerate().take(fillers) {
        let arguments = CloneArguments {
            flags: flags as u64,
            child_tid: running.as_ptr() as u64,
            stack: (stacks + index * STACK) as u64,
            stack_size: STACK as u64,
            ..CloneArguments::default()
        };
        running.store(1, Ordering::Release);
        let (entry, plan) = (filler as *const () as usize, &raw const *plan as usize);
        // SAFETY: each has a stack of its own in the area, and the plan outlives it.
        let make = || unsafe { arch::clone3(&arguments, entry, plan) };
        let tid = turns.map_or_else(make, |turns| turns.without_id(make));
        if tid < 0 {
            // The others, and this thread, do its part.
            running.store(0, Ordering::Release);
        }
    }
    work(plan);
    for running in &RUNNING {
        await_end(running);
    }
}

/// Waits for the end of a thread that this word stands for (CLONE_CHILD_CLEARTID), which is after its last use of its stack.
pub fn await_end(running: &'static AtomicU32) {
    while running.load(Ordering::Acquire) != 0 {
        // The kernel's wake-up at the thread's end is not FUTEX_PRIVATE.
        futex(running, libc::FUTEX_WAIT, 1);
    }
}

fn work(plan: &Plan) {
    if !COLLAPSING.swap(true, Ordering::Relaxed) {
        collapse(plan);
    }
    read_all(plan);
}

fn futex(word: &'static AtomicU32, operation: i32, value: u32) {
    let arguments = [word.as_ptr() as usize, operation as usize, value as usize, 0, 0, 0];
    // SAFETY: a word that lives for ever.
    unsafe { stasis_sys::raw(libc::SYS_futex, arguments) };
}

extern "C" fn filler(plan: &Plan) -> ! {
    work(plan);
    loop {
        // SAFETY: ends this thread.
        unsafe { stasis_sys::raw(libc::SYS_exit, [0; 6]) };
    }
}

/// Gives huge pages to memory that will be full: allocating small ones costs four times as much as reading
/// into them. MADV_COLLAPSE (Linux 6.1) leaves no flag on the mapping, works whatever
/// /sys/kernel/mm/transparent_hugepage says, and wants one page to be there; one call drains the page
/// caches of all processors, so ranges are large. Where it fails, small pages do.
fn collapse(plan: &Plan) {
    const HUGE: usize = 2 << 20;
    const MADV_COLLAPSE: i32 = 25;
    for &[start, len] in plan.huge() {
        let (start, len) = (start as usize, len as usize);
        for page in (start..start + len).step_by(HUGE) {
            // SAFETY: the plan maps it writable, and it is zero there already.
            unsafe { (page as *mut u8).write_volatile(0) };
        }
        // SAFETY: content stays what it is.
        let _ = unsafe { stasis_sys::memory::advise(start, len, MADV_COLLAPSE) };
        COLLAPSED.fetch_add(1, Ordering::Release);
        futex(&COLLAPSED, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, MOST as u32);
    }
}

/// Waits until `pieces` have their huge pages.
fn await_collapsed(pieces: u64) {
    loop {
        let collapsed = COLLAPSED.load(Ordering::Acquire);
        if u64::from(collapsed) >= pieces {
            return;
        }
        futex(&COLLAPSED, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, collapsed);
    }
}

fn read_all(plan: &Plan) {
    let hasher = PageHasher::new(&plan.header().key);
    loop {
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(fill) = plan.fills().get(index) else { return };
        await_collapsed(fill.huge);
        if fill.stored > 0 {
            unpack(fill, index);
            verify(plan, &hasher, fill, index, 0, fill.len as usize);
            continue;
        }
        let mut done = 0;
        while done < fill.len as usize {
            let read = read(fill, index, done);
            verify(plan, &hasher, fill, index, done, read);
            done += read;
        }
    }
}

/// So much is read from the page cache and then checked, in bytes: it is still in the processor's own cache then.
const STEP: usize = 256 << 10;

/// Reads the next bytes of a fill, of which `done` are there; how many.
///
/// What the page cache holds is read from there, and the rest from the disk, past it: gigabytes that are read once
/// need neither a second copy in memory nor the room of what others have in the cache.
fn read(fill: &Fill, index: usize, done: usize) -> usize {
    let rest = fill.len as usize - done;
    let (address, offset) = (fill.address as usize + done, fill.offset + done as u64);
    let mut direct = fill.direct >= 0;
    if direct {
        // SAFETY: the plan maps what it fills.
        let cached = unsafe { file::pread_cached(fill.fd, address, rest.min(STEP), offset) };
        if let Ok(read @ PAGE_SIZE..) = cached {
            return read / PAGE_SIZE * PAGE_SIZE;
        }
    }
    let mut at = 0;
    while at < rest {
        let fd = if direct { fill.direct } else { fill.fd };
        // SAFETY: as above.
        match unsafe { file::pread_to(fd, address + at, rest - at, offset + at as u64) } {
            Ok(read) if read > 0 && (!direct || read.is_multiple_of(PAGE_SIZE)) => at += read,
            Err(Errno(libc::EINTR)) => {}
            // A file system without O_DIRECT, or an end that is not aligned.
            _ if direct => direct = false,
            Ok(_) => report::fail(step::FILL, index, libc::ENODATA, (address + at) as u64),
            Err(Errno(errno)) => report::fail(step::FILL, index, errno, (address + at) as u64),
        }
    }
    rest
}

/// Fills memory with pages of a compressed block. What the plan says of it comes from a file, and so does the block.
#[inline(never)]
fn unpack(fill: &Fill, index: usize) {
    let mut stored = [0u8; BLOCK];
    let len = fill.stored as usize;
    if len > BLOCK || fill.len as usize > BLOCK {
        report::fail(step::PLAN, index, libc::EINVAL, fill.address);
    }
    let mut at = 0;
    while at < len {
        let address = stored.as_mut_ptr() as usize + at;
        // SAFETY: inside `stored`, as `len` is.
        match unsafe { file::pread_to(fill.fd, address, len - at, fill.offset + at as u64) } {
            Ok(read) if read > 0 => at += read,
            Ok(_) => report::fail(step::FILL, index, libc::ENODATA, fill.address),
            Err(Errno(libc::EINTR)) => {}
            Err(Errno(errno)) => report::fail(step::FILL, index, errno, fill.address),
        }
    }
    // SAFETY: the plan maps what it fills, and this thread alone fills it.
    let memory = unsafe { core::slice::from_raw_parts_mut(fill.address as *mut u8, fill.len as usize) };
    // All of a block, for the most part.
    if memory.len() == BLOCK && fill.skipped == 0 {
        match lz4_flex::block::decompress_into(&stored[..len], memory) {
            Ok(BLOCK) => return,
            _ => report::fail(step::CORRUPT, index, libc::EIO, fill.address),
        }
    }
    let mut pages = [0u8; BLOCK];
    let start = (fill.skipped as usize).saturating_mul(PAGE_SIZE);
    let unpacked = lz4_flex::block::decompress_into(&stored[..len], &mut pages).unwrap_or(0);
    match pages[..unpacked.min(BLOCK)].get(start..start.saturating_add(memory.len())) {
        Some(part) => memory.copy_from_slice(part),
        None => report::fail(step::CORRUPT, index, libc::EIO, fill.address),
    }
}

/// Checks `len` bytes of a fill, behind the first `done`.
fn verify(plan: &Plan, hasher: &PageHasher, fill: &Fill, index: usize, done: usize, len: usize) {
    let pages = len / PAGE_SIZE;
    let address = fill.address + done as u64;
    // SAFETY: just filled, and nobody else's.
    let memory = unsafe { core::slice::from_raw_parts(address as *const Page, pages) };
    let first = fill.hash as usize + done / PAGE_SIZE;
    let Some(expected) = plan.hashes().get(first..first + pages) else {
        report::fail(step::PLAN, index, libc::EINVAL, address)
    };
    for (batch, (memory, expected)) in memory.chunks(BATCH).zip(expected.chunks(BATCH)).enumerate() {
        let mut pages: [&Page; BATCH] = [&memory[0]; BATCH];
        for (to, page) in pages.iter_mut().zip(memory) {
            *to = page;
        }
        let mut names = [[0u8; 32]; BATCH];
        hasher.name_pages(&pages[..memory.len()], &mut names[..memory.len()]);
        for (page, (name, expected)) in names.iter().zip(expected).enumerate() {
            if name != expected {
                let address = address + ((batch * BATCH + page) * PAGE_SIZE) as u64;
                report::fail(step::CORRUPT, index, libc::EIO, address);
            }
        }
    }
}
