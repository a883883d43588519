//! Events of inotify that wait to be read at a checkpoint.
//!
//! The kernel shows them to whom it gives them. So the checkpoint thread takes them, keeps them in memory of the program's, which is
//! in the image like all else, and read(2) gives them to the program from there (`wrappers::read`). For poll(2) and its like
//! one event stands for them in the queue, that of a watch which was removed (IN_IGNORED): it is taken out with the last of them.
//!
//! A thread that slept in read(2) meanwhile is given them when it goes on (`interrupted`); one that was about to is not stopped there
//! (`stop`). Not here: who reads without libc's function finds that event, of a watch that he does not know, and not those.

use core::{
    cmp::Ordering as Order,
    ffi::CStr,
    slice,
    sync::atomic::{
        AtomicI32, AtomicU32, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use stasis_sys::{
    Errno, Result,
    file::{self, Fd},
    memory, process,
};

use crate::wrappers;

/// How many descriptors have kept events that the program has not got yet: read(2) looks here first.
pub static WAITING: AtomicU32 = AtomicU32::new(0);

const FREE: u32 = 0;
const READY: u32 = 1;
/// A thread of the program's is reading.
const BUSY: u32 = 2;

/// The events of one queue.
struct Kept {
    state: AtomicU32,
    memory: AtomicUsize,
    memory_len: AtomicUsize,
    /// Which part of it the program has not got, in bytes.
    begin: AtomicUsize,
    end: AtomicUsize,
    /// Its number, and the one in the checkpoint thread's table, by which it is told from what else may have that number by now.
    fd: AtomicI32,
    held: AtomicI32,
    /// The program had it at the last look.
    seen: AtomicU32,
}

const MOST: usize = 16;

static KEPT: [Kept; MOST] = [const {
    Kept {
        state: AtomicU32::new(FREE),
        memory: AtomicUsize::new(0),
        memory_len: AtomicUsize::new(0),
        begin: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        fd: AtomicI32::new(-1),
        held: AtomicI32::new(-1),
        seen: AtomicU32::new(0),
    }
}; MOST];

static CHECKPOINT_THREAD: AtomicI32 = AtomicI32::new(0);

/// struct inotify_event (inotify(7)): watch, mask, cookie and the length of the name that follows.
const HEADER: usize = 16;

/// The length of the first of these events.
fn first_len(events: &[u8]) -> usize {
    let len = events.get(12..HEADER).and_then(|len| len.try_into().ok()).map_or(0, u32::from_ne_bytes);
    (HEADER + len as usize).min(events.len())
}

/// Whether the first of these events is of the kind that stands for others.
fn is_stand_in(events: &[u8]) -> bool {
    events.get(4..8) == Some(&libc::IN_IGNORED.to_ne_bytes()) && first_len(events) == HEADER
}

impl Kept {
    fn is_of(&self, (tid, fd): (i32, Fd)) -> bool {
        if self.state.load(Acquire) == FREE {
            return false;
        }
        let held = (CHECKPOINT_THREAD.load(Relaxed), self.held.load(Relaxed));
        match file::compare_descriptions((tid, fd), held) {
            Ok(order) => order == Order::Equal,
            // A kernel that does not compare: the number is all there is to go by.
            Err(_) => self.fd.load(Relaxed) == fd,
        }
    }

    fn left(&self) -> &[u8] {
        let (begin, end) = (self.begin.load(Relaxed), self.end.load(Relaxed));
        // SAFETY: the memory is mapped, and written to by the checkpoint thread only, while nobody reads.
        unsafe { slice::from_raw_parts((self.memory.load(Relaxed) + begin) as *const u8, end - begin) }
    }

    /// Lets go of the memory; the state is the caller's to set.
    fn clear(&self) {
        let (memory, len) = (self.memory.swap(0, Relaxed), self.memory_len.swap(0, Relaxed));
        if len != 0 {
            // SAFETY: nobody else has it.
            let _ = unsafe { memory::unmap(memory, len) };
        }
    }

    fn free(&self) {
        self.clear();
        self.state.store(FREE, Release);
        WAITING.fetch_sub(1, Relaxed);
    }
}

/// Gives the program events that were kept, as read(2) would; `None`: there are none for this descriptor.
///
/// # Safety
/// The buffer is as large as is said.
pub unsafe fn read(fd: Fd, buffer: *mut u8, size: usize) -> Option<isize> {
    let at = (process::gettid(), fd);
    let kept = KEPT.iter().find(|kept| kept.is_of(at))?;
    while kept.state.compare_exchange(READY, BUSY, Acquire, Relaxed).is_err() {
        if kept.state.load(Acquire) == FREE {
            return None;
        }
        process::give_way();
    }
    let left = kept.left();
    let mut len = 0;
    while len < left.len() && len + first_len(&left[len..]) <= size {
        len += first_len(&left[len..]);
    }
    if len == 0 {
        kept.state.store(READY, Release);
        return Some(-(libc::EINVAL as isize));
    }
    // SAFETY: the caller's buffer, which is that large.
    unsafe { left.as_ptr().copy_to_nonoverlapping(buffer, len) };
    if len < left.len() {
        kept.begin.fetch_add(len, Relaxed);
        kept.state.store(READY, Release);
    } else {
        // Somebody may have got it who does not come by here.
        if file::unread(fd).is_ok_and(|bytes| bytes > 0) {
            let _ = file::read(fd, &mut [0; HEADER]);
        }
        kept.free();
    }
    Some(len as isize)
}

/// Why events cannot be kept.
pub enum Unkept {
    /// The program is reading them.
    Busy,
    TooMany,
    Failed(Errno),
}

impl From<Errno> for Unkept {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

/// Takes what waits in a queue and keeps it, while the program stands still; whether anything of it is to be given to the program.
/// `at`: one of its descriptors; `queue`: the checkpoint thread's own.
pub fn keep(at: (i32, Fd), queue: Fd) -> core::result::Result<bool, Unkept> {
    CHECKPOINT_THREAD.store(process::gettid(), Relaxed);
    let known = KEPT.iter().find(|kept| kept.is_of(at));
    let waiting = file::unread(queue)?;
    if let Some(known) = known {
        known.seen.store(1, Relaxed);
        if known.state.load(Acquire) == BUSY {
            return Err(Unkept::Busy);
        }
        if waiting == HEADER {
            return Ok(true);
        }
    } else if waiting == 0 {
        return Ok(false);
    }
    let slot = known.or_else(|| KEPT.iter().find(|kept| kept.state.load(Relaxed) == FREE));
    let slot = slot.ok_or(Unkept::TooMany)?;
    let held = match known {
        Some(known) => known.held.load(Relaxed),
        None => file::duplicate(queue)?,
    };
    let taken = take(queue, known.map_or(&[][..], Kept::left), known.is_some(), waiting);
    let (address, len, end) = match taken {
        Ok(taken) => taken,
        Err(error) => {
            if known.is_none() {
                let _ = file::close(held);
            }
            return Err(error.into());
        }
    };
    slot.clear();
    slot.memory.store(address, Relaxed);
    slot.memory_len.store(len, Relaxed);
    slot.begin.store(0, Relaxed);
    slot.end.store(end, Relaxed);
    slot.fd.store(at.1, Relaxed);
    slot.held.store(held, Relaxed);
    slot.seen.store(1, Relaxed);
    slot.state.store(READY, Release);
    if known.is_none() {
        WAITING.fetch_add(1, Relaxed);
    }
    wrappers::sockets::read_kept();
    Ok(true)
}

/// Takes all events out of a queue, behind those that were `left` of it, and puts one there that stands for them. New memory, its
/// length, and how much of it they take.
fn take(queue: Fd, left: &[u8], has_stand_in: bool, waiting: usize) -> Result<(usize, usize, usize)> {
    /// Others may go on making events meanwhile.
    const MORE: usize = 256 << 10;
    let len = (left.len() + waiting + MORE).next_multiple_of(4096);
    let address = memory::map_anonymous(len, libc::MAP_NORESERVE)?;
    // SAFETY: just mapped.
    let events = unsafe { slice::from_raw_parts_mut(address as *mut u8, len) };
    events[..left.len()].copy_from_slice(left);
    let mut end = left.len();
    // Before anything is taken: there may be no room for a watch.
    let mut stand_in = watch(queue).inspect_err(|_| {
        // SAFETY: nobody has it.
        let _ = unsafe { memory::unmap(address, len) };
    })?;
    let mut is_to_go = has_stand_in;
    loop {
        while file::unread(queue)? > 0 && len - end >= MORE / 2 {
            let count = file::read(queue, &mut events[end..])?;
            if is_to_go && is_stand_in(&events[end..end + count]) {
                events.copy_within(end + HEADER..end + count, end);
                end -= HEADER;
            }
            is_to_go = false;
            end += count;
        }
        unwatch(queue, stand_in)?;
        // The first of all, or it would be taken for another.
        if file::unread(queue)? == HEADER || len - end < MORE / 2 {
            return Ok((address, len, end));
        }
        stand_in = watch(queue)?;
        is_to_go = true;
    }
}

/// Watches what nobody else does.
fn watch(queue: Fd) -> Result<i32> {
    const PATH: &CStr = c"/proc/self/comm";
    const IN_MASK_CREATE: u32 = 0x1000_0000;
    let mask = libc::IN_ATTRIB | IN_MASK_CREATE;
    file::watch(queue, PATH, mask)
}

fn unwatch(queue: Fd, watch: i32) -> Result<()> {
    process::numbers(libc::SYS_inotify_rm_watch, [queue as usize, watch as usize, 0, 0, 0]).map(drop)
}

/// Lets go of queues that the program has closed since they were looked at. To be called when all that it has was looked at.
pub fn forget_closed() {
    for kept in KEPT.iter().filter(|kept| kept.state.load(Relaxed) == READY) {
        if kept.seen.swap(0, Relaxed) == 0 {
            let _ = file::close(kept.held.swap(-1, Relaxed));
            kept.free();
        }
    }
}

/// After a restart: `open` makes a descriptor for the checkpoint thread of one of the program's.
pub fn open_again(open: impl Fn(Fd) -> Result<Fd>) {
    CHECKPOINT_THREAD.store(process::gettid(), Relaxed);
    for kept in KEPT.iter().filter(|kept| kept.state.load(Relaxed) != FREE) {
        kept.held.store(open(kept.fd.load(Relaxed)).unwrap_or(-1), Relaxed);
    }
}

/// In the child of a fork: its parent has them.
pub fn forget() {
    for kept in &KEPT {
        kept.state.store(FREE, Relaxed);
    }
    WAITING.store(0, Relaxed);
}
