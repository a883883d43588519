//! Filling memory from packs: several threads, each page compared with its hash.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use stasis_protocol::plan::{Fill, step};
use stasis_sys::{Errno, file};

use crate::{
    arch::{self, CloneArguments},
    hash::{BATCH, PAGE_SIZE, Page, PageHasher},
    plan::Plan,
    relocate::{self, STACK},
    report,
};

/// The next piece of work to be taken.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Threads that have not ended: the kernel writes zero to each's word (CLONE_CHILD_CLEARTID).
static RUNNING: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];

/// More threads than this do not read faster.
const MOST: usize = 16;

/// Fills all memory; returns when it is whole and the threads that helped are gone.
pub fn fill(plan: &Plan) {
    if !plan.huge().is_empty() {
        in_parallel(plan, collapse);
    }
    in_parallel(plan, read_all);
}

/// What a thread is to do.
struct Task {
    plan: *const Plan,
    work: fn(&Plan),
}

/// Has every filling thread, this one included, do `work`; returns when all are done and the others gone.
fn in_parallel(plan: &Plan, work: fn(&Plan)) {
    let task = Task { plan, work };
    NEXT.store(0, Ordering::Release);
    let fillers = (plan.header().fillers as usize).min(MOST);
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
        // SAFETY: each has a stack of its own in the area, and the task outlives it.
        let tid = unsafe { arch::clone3(&arguments, filler as *const () as usize, &raw const task as usize) };
        if tid < 0 {
            // The others, and this thread, do its part.
            running.store(0, Ordering::Release);
        }
    }
    work(plan);
    for running in &RUNNING {
        while running.load(Ordering::Acquire) != 0 {
            // The kernel's wake-up at the thread's end is not FUTEX_PRIVATE.
            let arguments = [running.as_ptr() as usize, libc::FUTEX_WAIT as usize, 1, 0, 0, 0];
            // SAFETY: waits on a word that lives for ever.
            unsafe { stasis_sys::raw(libc::SYS_futex, arguments) };
        }
    }
}

extern "C" fn filler(task: &Task) -> ! {
    // SAFETY: the plan outlives its fillers.
    (task.work)(unsafe { &*task.plan });
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
    loop {
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(&[start, len]) = plan.huge().get(index) else { return };
        let (start, len) = (start as usize, len as usize);
        for page in (start..start + len).step_by(HUGE) {
            // SAFETY: the plan maps it writable, and it is zero there already.
            unsafe { (page as *mut u8).write_volatile(0) };
        }
        // SAFETY: content stays what it is.
        let _ = unsafe { stasis_sys::memory::advise(start, len, MADV_COLLAPSE) };
    }
}

fn read_all(plan: &Plan) {
    let hasher = PageHasher::new(&plan.header().key);
    loop {
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(fill) = plan.fills().get(index) else { return };
        read(fill, index);
        verify(plan, &hasher, fill, index);
    }
}

/// Reads what the page cache holds from there, and the rest from the disk, past it: gigabytes that are read once
/// need neither a second copy in memory nor the room of what others have in the cache.
fn read(fill: &Fill, index: usize) {
    let (mut at, mut offset) = (fill.address as usize, fill.offset);
    let end = at + fill.len as usize;
    let mut direct = fill.direct >= 0;
    while at < end {
        // SAFETY: the plan maps what it fills.
        let read = unsafe {
            match if direct { file::pread_cached(fill.fd, at, end - at, offset) } else { Ok(0) } {
                Ok(read) if read >= PAGE_SIZE => Ok(read / PAGE_SIZE * PAGE_SIZE),
                _ => {
                    let fd = if direct { fill.direct } else { fill.fd };
                    file::pread_to(fd, at, end - at, offset)
                }
            }
        };
        match read {
            Ok(read) if read > 0 && (!direct || read.is_multiple_of(PAGE_SIZE)) => {
                at += read;
                offset += read as u64;
            }
            Err(Errno(libc::EINTR)) => {}
            // A file system without O_DIRECT, or an end that is not aligned.
            _ if direct => direct = false,
            Ok(_) => report::fail(step::FILL, index, libc::ENODATA, at as u64),
            Err(Errno(errno)) => report::fail(step::FILL, index, errno, at as u64),
        }
    }
}

fn verify(plan: &Plan, hasher: &PageHasher, fill: &Fill, index: usize) {
    let pages = fill.len as usize / PAGE_SIZE;
    // SAFETY: just filled, and nobody else's.
    let memory = unsafe { core::slice::from_raw_parts(fill.address as *const Page, pages) };
    let first = fill.hash as usize;
    let Some(expected) = plan.hashes().get(first..first + pages) else {
        report::fail(step::PLAN, index, libc::EINVAL, fill.address)
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
                let address = fill.address + ((batch * BATCH + page) * PAGE_SIZE) as u64;
                report::fail(step::CORRUPT, index, libc::EIO, address);
            }
        }
    }
}
