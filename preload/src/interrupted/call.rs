//! The record of one system call that the stop handler keeps track of, and the pool of those that no
//! wrapper made.

use core::{
    mem::MaybeUninit,
    sync::atomic::{AtomicI32, AtomicUsize, Ordering},
};

use stasis_sys::memory;

/// One system call: made by a wrapper, which keeps the record on its stack, or taken over by the stop
/// handler, which takes one from the pool.
#[repr(C, align(16))]
pub struct Call {
    pub nr: i64,
    /// What the program gave.
    pub arguments: [u64; 6],
    /// What earlier parts gave together.
    pub done: u64,
    /// When the call began, CLOCK_MONOTONIC in nanoseconds; 0: nobody noted it.
    pub started: i64,
    /// When it must end, on the same clock; [`Call::UNKNOWN`] until a checkpoint had to find out.
    pub deadline: i64,
    /// When the time-out of [`Entry::between`] is over, on the same clock; [`Call::UNKNOWN`] where there is none, or
    /// nobody noted it.
    ///
    /// [`Entry::between`]: crate::wrappers::table::Entry::between
    pub between: i64,
    /// The time-out as it was given when the call was made again.
    pub time: libc::timespec,
    /// Of a sleep in a wrapper: where the kernel leaves the time that is left, and where the program wants it, unless null. A
    /// sleep that was interrupted and made again tells nothing when it is over.
    pub left: libc::timespec,
    pub left_at: u64,
    /// What the system call of a wrapper gave.
    pub result: i64,
    /// In a wrapper: what makes the function's result of it, and whether the call is to be made once more.
    pub finish: u64,
    pub again: u32,
    /// In a wrapper: the cancellation type to put back; -1: this is no cancellation point.
    pub cancel: i32,
    /// The id of a timer that ends the call at its deadline; -1: none.
    pub timer: i32,
    /// In the pool: whose it is; 0: free.
    pub tid: AtomicI32,
    /// Where the program goes on, and its RBX and RSP.
    pub pc: u64,
    pub rbx: u64,
    pub sp: u64,
    /// In a wrapper: a set of signals without the stop signal, and what pselect6(2) takes it by.
    pub mask: u64,
    pub sized_mask: [u64; 2],
    /// What is left of an array of iovec: see [`super::partial`].
    pub vectors: MaybeUninit<[[u64; 2]; Self::VECTORS]>,
    /// The same, where it is longer: which of [`super::arrays`]; -1: none.
    pub array: i32,
    /// The struct msghdr that leads to it.
    pub header: MaybeUninit<libc::msghdr>,
}

impl Call {
    pub const UNKNOWN: i64 = i64::MIN;
    pub const VECTORS: usize = 16;

    pub const fn new(nr: i64, arguments: [u64; 6]) -> Self {
        Self {
            nr,
            arguments,
            done: 0,
            started: 0,
            deadline: Self::UNKNOWN,
            between: Self::UNKNOWN,
            time: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            left: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            left_at: 0,
            result: 0,
            finish: 0,
            again: 0,
            cancel: -1,
            timer: -1,
            tid: AtomicI32::new(0),
            pc: 0,
            rbx: 0,
            sp: 0,
            mask: 0,
            sized_mask: [0; 2],
            vectors: MaybeUninit::uninit(),
            array: -1,
            header: MaybeUninit::uninit(),
        }
    }

    /// Whether no wrapper made it.
    pub fn is_pooled(&self) -> bool {
        self.tid.load(Ordering::Relaxed) != 0
    }

    /// Moves all times by how far the clock went on while nobody ran.
    pub const fn postpone(&mut self, ns: i64) {
        if self.started != 0 {
            self.started = self.started.saturating_add(ns);
        }
        if self.deadline != Self::UNKNOWN {
            self.deadline = self.deadline.saturating_add(ns);
        }
        if self.between != Self::UNKNOWN {
            self.between = self.between.saturating_add(ns);
        }
    }
}

/// How many records the first pool has.
const FIRST: usize = 256;

static POOL: AtomicUsize = AtomicUsize::new(0);
static ROOM: AtomicUsize = AtomicUsize::new(0);

/// Makes room for calls of so many threads. The pool of before stays for the records that are in use.
///
/// # Errors
/// There is no memory for it.
pub fn provide(threads: usize) -> stasis_sys::Result<()> {
    let wanted = (threads * 4).next_power_of_two().max(FIRST);
    if ROOM.load(Ordering::Relaxed) < wanted {
        let pool = memory::reserve(wanted * size_of::<Call>())?;
        // Who sees the one without the other finds fewer.
        POOL.store(pool, Ordering::Release);
        ROOM.store(wanted, Ordering::Release);
    }
    Ok(())
}

/// The record at an address of the pool, the one of now.
pub fn in_pool(address: usize) -> Option<&'static Call> {
    let pool = POOL.load(Ordering::Acquire);
    let inside = (pool..pool + ROOM.load(Ordering::Acquire) * size_of::<Call>()).contains(&address);
    // SAFETY: the pool is never unmapped; the caller has the address of one of its records.
    (pool != 0 && inside).then(|| unsafe { &*(address as *const Call) })
}

/// A record for a call of thread `tid`, interrupted with its stack pointer at `sp`; `None` when the pool
/// is full.
///
/// A record whose call was left by siglongjmp(3) or pthread_cancel(3) is never given back; the same
/// thread takes it again when it is interrupted at the same stack pointer, where no other call of it can
/// be under way.
pub fn claim(tid: i32, sp: u64) -> Option<&'static mut Call> {
    let room = ROOM.load(Ordering::Acquire);
    let pool = POOL.load(Ordering::Acquire);
    if room == 0 {
        return None;
    }
    let mut index = (tid as usize).wrapping_mul(0x9e37_79b1) % room;
    for _ in 0..64 {
        let call = (pool as *mut Call).wrapping_add(index);
        // SAFETY: inside the pool, which is never unmapped; `tid` is atomic.
        let owner = unsafe { &(*call).tid };
        let taken = match owner.compare_exchange(0, tid, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            // SAFETY: written by this thread only, while it owns the record.
            Err(other) => other == tid && unsafe { (*call).sp } == sp,
        };
        if taken {
            // SAFETY: this thread owns the record now, and nothing refers to it.
            let call = unsafe { &mut *call };
            call.sp = sp;
            return Some(call);
        }
        index = (index + 1) % room;
    }
    None
}
