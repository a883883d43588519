//! Memory for what has been copied and the store has no room for yet: a program that writes as fast as the store's disk,
//! or faster, is copied at the speed of memory, and what is copied goes to the store when the program runs again.
//!
//! It is bounded: by what the program has resident, and by a quarter of what the machine (or the control group) has
//! left. It exists during a checkpoint only, is in no image, and no child inherits it.

use alloc::{collections::VecDeque, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering};

use stasis_protocol::PAGE_SIZE;
use stasis_sys::{Errno, Result, memory, process};

use super::Rest;
use crate::procfs;

/// The address and length of the one that there is; 0: none.
static START: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);

/// Where it lies: not part of the image.
pub fn range() -> (usize, usize) {
    (START.load(Ordering::Relaxed), LEN.load(Ordering::Relaxed))
}

/// In a process that has been forked or restored, which has none.
pub fn forget() {
    START.store(0, Ordering::Relaxed);
    LEN.store(0, Ordering::Relaxed);
}

/// A piece of the backlog, as long as a half of the staging buffer.
#[derive(Clone, Copy)]
pub struct Chunk(usize);

pub struct Backlog {
    chunk_len: usize,
    /// Aligned to [`HUGE`].
    start: usize,
    /// Of those that were never used.
    unused: usize,
    free: Vec<Chunk>,
    /// What goes to the store, in this order: pages in a chunk (where there are any), and holes.
    waiting: VecDeque<(Option<Chunk>, Rest)>,
    /// How many have been used.
    used: usize,
}

const HUGE: usize = 2 << 20;

/// How much of a chunk is populated at a time: in a millisecond, a program may have stood still for that.
pub const PART: usize = HUGE;

impl Backlog {
    /// Reserves it; `None` where there is no memory to spare, or the program's limits would feel it.
    pub fn reserve(chunk_len: usize) -> Option<Self> {
        let resident = resident();
        if resident <= chunk_len as u64 || chunk_len < PART || range().0 != 0 {
            return None;
        }
        let chunks = bound(resident) / chunk_len;
        if chunks == 0 {
            return None;
        }
        let len = chunks * chunk_len + HUGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // Nothing may touch it yet, so that a program with mlockall(MCL_FUTURE) does not get all of it.
        // SAFETY: a new mapping where the kernel finds room.
        let start = unsafe { memory::map(0, len, libc::PROT_NONE, flags, -1, 0) }.ok()?;
        START.store(start, Ordering::Relaxed);
        LEN.store(len, Ordering::Relaxed);
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: ours, and empty.
            let advised = unsafe { memory::advise(start, len, advice) };
            if advised.is_err() && advice == libc::MADV_DONTFORK {
                unmap();
                return None;
            }
        }
        let start = start.next_multiple_of(HUGE);
        Some(Self { chunk_len, start, unused: chunks, free: Vec::new(), waiting: VecDeque::new(), used: 0 })
    }

    /// How much memory it has taken at most, in bytes.
    pub fn taken(&self) -> usize {
        self.used * self.chunk_len
    }

    pub fn address(&self, chunk: Chunk) -> *mut u8 {
        (self.start + chunk.0 * self.chunk_len) as *mut u8
    }

    pub fn has_chunk(&self) -> bool {
        !self.free.is_empty() || self.unused > 0
    }

    /// A chunk to be filled; `None` when all hold something.
    pub fn chunk(&mut self) -> Option<Chunk> {
        if let Some(chunk) = self.free.pop() {
            return Some(chunk);
        }
        self.unused = self.unused.checked_sub(1)?;
        let chunk = Chunk(self.used);
        let (address, protection) = (self.address(chunk) as usize, libc::PROT_READ | libc::PROT_WRITE);
        if huge_pages_ready() >= 4 * self.chunk_len / HUGE {
            // SAFETY: inside the mapping.
            let _ = unsafe { memory::advise(address, self.chunk_len, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: inside the mapping, which nothing else uses.
        if unsafe { memory::protect(address, self.chunk_len, protection) }.is_err() {
            self.unused = 0;
            return None;
        }
        self.used += 1;
        Some(chunk)
    }

    /// Has memory for the part of a chunk that begins at `offset`: populating it (Linux 5.14) is faster than a fault for
    /// each page, and a lack of memory is no signal then.
    pub fn populate(&self, chunk: Chunk, offset: usize) -> Result<()> {
        let address = self.address(chunk) as usize + offset;
        // SAFETY: inside the mapping, which nothing else uses.
        match unsafe { memory::advise(address, PART, libc::MADV_POPULATE_WRITE) } {
            Err(Errno(libc::EINVAL)) => Ok(()),
            other => other,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds what is to go to the store after all that waits.
    pub fn push(&mut self, chunk: Option<Chunk>, rest: Rest) {
        self.waiting.push_back((chunk, rest));
    }

    /// What is to go next.
    pub fn pop(&mut self) -> Option<(Option<Chunk>, Rest)> {
        self.waiting.pop_front()
    }

    /// Gives back a chunk that has gone.
    pub fn give_back(&mut self, chunk: Chunk) {
        self.free.push(chunk);
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        unmap();
    }
}

/// Unmaps the one that there is.
pub fn unmap() {
    let (start, len) = range();
    forget();
    if start != 0 {
        // SAFETY: nobody else knows the mapping.
        let _ = unsafe { memory::unmap(start, len) };
    }
}

/// How long it may be, in bytes, where `resident` bytes are resident.
fn bound(resident: u64) -> usize {
    // What counts address space or private memory would count this, and fail the program's own requests.
    if [libc::RLIMIT_AS, libc::RLIMIT_DATA].into_iter().any(process::is_limited) {
        return 0;
    }
    let content = procfs::read(c"/proc/meminfo").unwrap_or_default();
    let available = procfs::field(&content, "MemAvailable:").and_then(|text| procfs::words(text).next());
    let available = available.and_then(procfs::decimal).map_or(0, |kib| kib << 10);
    (available.min(left_in_groups()) / 4).min(resident) as usize
}

/// How many huge pages the kernel can give without making room for them, which was seen to take a second; small pages
/// take 0.7 ms a MiB, huge ones 0.13 (/proc/buddyinfo, proc(5): blocks of 2^0 pages, 2^1...).
fn huge_pages_ready() -> usize {
    const ORDER: usize = HUGE.trailing_zeros() as usize - PAGE_SIZE.trailing_zeros() as usize;
    let content = procfs::read(c"/proc/buddyinfo").unwrap_or_default();
    let of_zone = |line| {
        // Node 0, zone Normal
        let blocks = procfs::words(line).skip(4).filter_map(procfs::decimal);
        let huge = blocks.enumerate().filter(|&(order, _)| order >= ORDER);
        huge.map(|(order, blocks)| (blocks as usize) << (order - ORDER)).sum::<usize>()
    };
    procfs::lines(&content).map(of_zone).sum()
}

/// What the process has resident, in bytes.
fn resident() -> u64 {
    let content = procfs::read(c"/proc/thread-self/statm").unwrap_or_default();
    let pages = procfs::words(&content).nth(1).and_then(procfs::decimal).unwrap_or(0);
    pages * PAGE_SIZE as u64
}

/// What the control group and those above it leave, in bytes (cgroup v2, memory.max).
fn left_in_groups() -> u64 {
    let content = procfs::read(c"/proc/thread-self/cgroup").unwrap_or_default();
    let Some(mut group) = procfs::lines(&content).find_map(|line| line.strip_prefix(b"0::/")) else {
        return u64::MAX;
    };
    let mut left = u64::MAX;
    loop {
        let value = |file: &[u8]| {
            let path = [b"/sys/fs/cgroup/", group, b"/", file].concat();
            let path = procfs::c_path(&path);
            let content = procfs::read(core::ffi::CStr::from_bytes_until_nul(&path).ok()?).ok()?;
            procfs::decimal(content.trim_ascii())
        };
        if let Some(most) = value(b"memory.max") {
            left = left.min(most.saturating_sub(value(b"memory.current").unwrap_or(0)));
        }
        match group.iter().rposition(|&byte| byte == b'/') {
            Some(at) => group = &group[..at],
            None if group.is_empty() => return left,
            None => group = &[],
        }
    }
}
