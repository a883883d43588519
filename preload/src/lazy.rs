//! Memory that is still arriving after a lazy restart, as the process sees it: a table of its pages that the pager keeps,
//! and a socket to the pager ([`stasis_protocol::pager`]).
//!
//! A page that has not arrived is what it was at the restart: a checkpoint neither waits for it nor takes it. A child
//! made by fork(3) would have a part of the memory and nobody to bring the rest: fork waits until all is there.
//!
//! Not here: bringing pages (store/src/pager, a process of its own).

use alloc::{vec, vec::Vec};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use stasis_protocol::{
    PAGE_SIZE,
    pager::{COMPLETE, HEADER, HURRY, Map, TOLD_BY_ONE, request},
    plan::RestartInfo,
};
use stasis_sys::{
    Errno, Result,
    file::{self, Fd},
    memory, process, socket,
};

use crate::pagemap::{Run, State};

/// In the checkpoint thread's own table; -1: all memory is there, and nobody has to be asked.
static PAGER: AtomicI32 = AtomicI32::new(-1);
static USERFAULTFD: AtomicI32 = AtomicI32::new(-1);
static TABLE: AtomicI32 = AtomicI32::new(-1);

/// Where the table's header is mapped; 0: nowhere.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// The checkpoint thread's descriptors that are to stay open.
pub fn descriptors(info: &RestartInfo) -> [Fd; 3] {
    [info.pager_fd, info.userfaultfd, info.table_fd]
}

/// Of them, those that there still are.
pub fn kept_descriptors() -> [Fd; 3] {
    [&PAGER, &USERFAULTFD, &TABLE].map(|fd| fd.load(Ordering::Relaxed))
}

/// Takes over what the restorer has made. What these places held is another process'.
pub fn adopt(info: &RestartInfo) {
    PAGER.store(info.pager_fd, Ordering::Relaxed);
    USERFAULTFD.store(info.userfaultfd, Ordering::Relaxed);
    TABLE.store(info.table_fd, Ordering::Relaxed);
    let mut mapped = 0;
    if info.pager_fd >= 0 {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel finds room.
        mapped = unsafe { memory::map(0, HEADER as usize, protection, libc::MAP_SHARED, info.table_fd, 0) }
            .unwrap_or(0);
        // SAFETY: ours. A child of the program has nothing to do with it.
        let _ = unsafe { memory::advise(mapped, HEADER as usize, libc::MADV_DONTFORK) };
    }
    MAPPED.store(mapped, Ordering::Release);
}

/// In the child of a fork: its parent's memory was whole, and so is its own.
pub fn forget() {
    for fd in [&PAGER, &USERFAULTFD, &TABLE] {
        fd.store(-1, Ordering::Relaxed);
    }
    MAPPED.store(0, Ordering::Release);
}

/// Where the header is mapped: address and length.
pub fn mapping() -> (usize, usize) {
    let start = MAPPED.load(Ordering::Relaxed);
    (start, if start == 0 { 0 } else { HEADER as usize })
}

/// Waits until all memory is there. Called by threads of the program.
pub fn await_all() {
    loop {
        let mapped = MAPPED.load(Ordering::Acquire);
        if mapped == 0 {
            return;
        }
        // By system calls only: a checkpoint may be taken here, and the process that is restarted from it has no such
        // mapping (EFAULT).
        let futex = |offset: u64, operation: i32, value: usize| {
            let arguments = [mapped + offset as usize, operation as usize, value, 0, 0, 0];
            // SAFETY: FUTEX_WAIT and FUTEX_WAKE only compare and use the address.
            unsafe { stasis_sys::raw(libc::SYS_futex, arguments) }
        };
        /// FUTEX_OP_SET of 1, and wake one.
        const SET_ONE: usize = 1 << 12;
        let hurry = mapped + HURRY as usize;
        let arguments = [hurry, libc::FUTEX_WAKE_OP as usize, 1, 0, hurry, SET_ONE];
        // SAFETY: FUTEX_WAKE_OP sets the word to one, if it is there.
        unsafe { stasis_sys::raw(libc::SYS_futex, arguments) };
        let waited = futex(COMPLETE, libc::FUTEX_WAIT, 0);
        if waited == -(libc::EAGAIN as isize) {
            return;
        }
        if waited == -(libc::EFAULT as isize) && MAPPED.load(Ordering::Acquire) == mapped {
            return;
        }
    }
}

fn is_complete() -> bool {
    let mapped = MAPPED.load(Ordering::Relaxed);
    // SAFETY: mapped, and only the checkpoint thread, which asks, unmaps it.
    mapped == 0
        || unsafe { &*((mapped + COMPLETE as usize) as *const AtomicU32) }.load(Ordering::Acquire) != 0
}

/// Waits until something comes from the coordinator; the pager's end is noticed meanwhile.
pub fn wait(coordinator: Fd) {
    loop {
        let pager = PAGER.load(Ordering::Relaxed);
        if pager < 0 {
            return;
        }
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut ready = [poll(coordinator), poll(pager)];
        // SAFETY: poll(2) reads and writes two pollfds.
        let waited =
            unsafe { stasis_sys::raw(libc::SYS_poll, [ready.as_mut_ptr() as usize, 2, usize::MAX, 0, 0, 0]) };
        if waited > 0 && ready[1].revents != 0 {
            pager_is_gone();
        }
        if waited > 0 && ready[0].revents != 0 {
            return;
        }
    }
}

/// Looks whether the pager is still there.
pub fn look_after_pager() {
    let pager = PAGER.load(Ordering::Relaxed);
    if pager >= 0 && stasis_sys::sync::poll(pager, libc::POLLIN, 0).is_ok_and(|ready| ready != 0) {
        pager_is_gone();
    }
}

/// Without a pager, memory that has not arrived never will: the process ends at once. Otherwise it goes on without one.
fn pager_is_gone() {
    if !is_complete() {
        let pid = process::getpid();
        let line = path!(
            "stasis: pid {pid}: its pager has ended before all memory had arrived; ended, since it cannot go on without it\n"
        );
        // The program's standard error, which this thread has not.
        if let Ok(fd) = file::open(path!("/proc/{pid}/fd/2").as_c_str(), libc::O_WRONLY | libc::O_APPEND, 0) {
            let _ = file::write(fd, line.as_c_str().to_bytes());
        }
        let _ = process::kill(pid, libc::SIGKILL);
        process::exit_group(1);
    }
    // The kernel then lets go of the memory: nobody is told of what becomes of it any more, and what was written is not
    // tracked until the next checkpoint has looked at all of it.
    for fd in [&USERFAULTFD, &TABLE, &PAGER] {
        let fd = fd.swap(-1, Ordering::Relaxed);
        if fd >= 0 {
            let _ = file::close(fd);
        }
    }
    let mapped = MAPPED.swap(0, Ordering::AcqRel);
    if mapped != 0 {
        // SAFETY: ours; threads that wait there get EFAULT, and see that it is gone.
        let _ = unsafe { memory::unmap(mapped, HEADER as usize) };
    }
}

/// Asks the pager something, and waits for its answer.
fn ask(question: u8) {
    let pager = PAGER.load(Ordering::Relaxed);
    if pager < 0 {
        return;
    }
    let mut answer = [0];
    if socket::send_all(pager, &[question], None).is_err() || socket::read_exact(pager, &mut answer).is_err()
    {
        pager_is_gone();
    }
}

/// Waits until the table tells of everything that the program has done; all its threads stand still.
pub fn settle() {
    ask(request::SETTLE);
}

/// Waits until the table tells of all pages that are to come, for a checkpoint that refers to them.
pub fn list() {
    if !is_complete() {
        ask(request::LIST);
    }
}

/// Waits until all memory is there, for a checkpoint that has nothing to refer to.
pub fn finish() {
    if !is_complete() {
        ask(request::FINISH);
    }
}

/// Takes out of `runs`, which a look at a mapping has found, what is as it was at the restart. What has not arrived looks like
/// a hole, or, where the tracker has made markers, like something in swap; what arrives while it is looked at, too. Whether
/// anything has been moved before it arrived: that is in `runs`, as if in swap.
///
/// # Errors
/// The table cannot be read.
pub fn sort_out(runs: &mut Vec<Run>, words: &mut Words) -> Result<bool> {
    let table = TABLE.load(Ordering::Relaxed);
    if table < 0 || !runs.iter().any(|run| matches!(run.state, State::Hole | State::Swapped)) {
        return Ok(false);
    }
    let mut any_moved = false;
    words.forget();
    let mut sorted = core::mem::take(&mut words.sorted);
    sorted.clear();
    let last = runs.last().map_or(0, |run| run.end / PAGE);
    let mut add = |start: u64, end: u64, state: State| match sorted.last_mut() {
        Some(last) if last.end == start && last.state == state => last.end = end,
        _ => sorted.push(Run { start, end, state }),
    };
    for run in runs.iter() {
        if !matches!(run.state, State::Hole | State::Swapped) {
            add(run.start, run.end, run.state);
            continue;
        }
        let (mut page, end) = (run.start / PAGE, run.end / PAGE);
        while page < end {
            let known = Words::known(table, page).min(end);
            if page < known {
                add(page * PAGE, known * PAGE, run.state);
                page = known;
                continue;
            }
            let next = ((page / 64 + 1) * 64).min(end);
            let [absent, removed, stored] = words.get(table, page, last)?;
            let as_it_was = if run.state == State::Hole { stored & !removed } else { stored & absent };
            // Moved here before it arrived: it is read, and arrives by that.
            let moved = absent & !stored;
            any_moved |= moved != 0;
            while page < next {
                let bit = 1 << (page % 64);
                if as_it_was & bit == 0 {
                    let state = if moved & bit != 0 { State::Swapped } else { run.state };
                    let mut to = page + 1;
                    while to < next
                        && as_it_was >> (to % 64) & 1 == 0
                        && (moved >> (to % 64) & 1 != 0) == (moved & bit != 0)
                    {
                        to += 1;
                    }
                    add(page * PAGE, to * PAGE, state);
                    page = to;
                } else {
                    page += 1;
                }
            }
        }
    }
    words.sorted = core::mem::replace(runs, sorted);
    Ok(any_moved)
}

const PAGE: u64 = PAGE_SIZE as u64;

/// The table's words, read in pieces, and room for what is made of them: one for a dump, since what is given back in between
/// would not be used again.
#[derive(Default)]
pub struct Words {
    /// The pages that were read.
    first: u64,
    end: u64,
    maps: [Vec<u8>; 3],
    sorted: Vec<Run>,
}

impl Words {
    /// Pages whose bits are read at once: 1 GiB.
    const PAGES: u64 = 1 << 18;

    /// The first page from this one on of which the table may tell. A program may have reserved terabytes; what there is of the table
    /// for them is looked for where a page of it begins.
    fn known(table: Fd, page: u64) -> u64 {
        if !page.is_multiple_of(TOLD_BY_ONE) {
            return page;
        }
        let first = |map: Map| match file::seek(table, map.offset(page) as i64, libc::SEEK_DATA) {
            Ok(data) => page.max(map.page(data)),
            Err(Errno(libc::ENXIO)) => u64::MAX,
            Err(_) => page,
        };
        first(Map::Stored).min(first(Map::Absent))
    }

    /// What was read may not hold any more.
    const fn forget(&mut self) {
        (self.first, self.end) = (0, 0);
    }

    /// The bits of the 64 pages around a page: absent, removed, stored. `last`: pages behind it are not asked for.
    fn get(&mut self, table: Fd, page: u64, last: u64) -> Result<[u64; 3]> {
        if !(self.first..self.end).contains(&page) {
            self.first = page / 64 * 64;
            self.end = (self.first + Self::PAGES).min(last.max(page + 1).next_multiple_of(64));
            let len = ((self.end - self.first) / 8) as usize;
            // Absent last: what arrives between two reads is stored, and not removed, by then.
            for map in [Map::Removed, Map::Stored, Map::Absent] {
                let bytes = &mut self.maps[map as usize];
                if bytes.len() < len {
                    *bytes = vec![0; len.next_power_of_two()];
                }
                if file::pread(table, &mut bytes[..len], map.offset(self.first))? != len {
                    return Err(Errno(libc::EIO));
                }
            }
        }
        let at = ((page - self.first) / 64 * 8) as usize;
        Ok(core::array::from_fn(|map| {
            let mut word = [0; 8];
            word.copy_from_slice(&self.maps[map][at..at + 8]);
            u64::from_ne_bytes(word)
        }))
    }
}
