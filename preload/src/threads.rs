//! The table of stopped threads: one slot per thread, valid during one checkpoint.
//!
//! It is filled by the threads themselves, in the stop handler, found by tid with open addressing;
//! the checkpoint thread sizes and clears it before it sends the first stop signal.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use stasis_sys::memory;

use crate::memory_policy;

/// PID_MAX_LIMIT is 4 Mi, kernel.threads-max rarely above 256 Ki.
const CAPACITY: usize = 1 << 18;

/// What one thread tells about itself when it is stopped. Plain atomics: written by the thread,
/// read by the checkpoint thread after `state` says so.
#[repr(C)]
#[derive(Default)]
pub struct Slot {
    pub tid: AtomicI32,
    /// See [`state`].
    pub state: AtomicU32,
    /// Set by [`crate::arch::park`].
    pub resume_sp: AtomicU64,
    pub fs_base: AtomicU64,
    pub gs_base: AtomicU64,
    /// set_tid_address(2).
    pub clear_tid: AtomicU64,
    /// set_robust_list(2): the head's address and length.
    pub robust_head: AtomicU64,
    pub robust_len: AtomicU64,
    /// rseq(2): the address registered, and the length; 0 when none is.
    pub rseq: AtomicU64,
    pub rseq_len: AtomicU32,
    pub pdeathsig: AtomicU32,
    /// PR_GET_NAME's 16 bytes.
    pub name: [AtomicU64; 2],
    pub timer_slack: AtomicU64,
    /// The signal mask that the handler returns to.
    pub mask: AtomicU64,
    /// CLOCK_MONOTONIC when the thread stopped, in nanoseconds.
    pub stopped_at: AtomicU64,
    /// The system call that the thread was seen in before the stop signal was sent: number (-1:
    /// none), stack pointer, program counter and arguments (proc(5), /proc/tid/syscall).
    pub call: AtomicU64,
    pub call_sp: AtomicU64,
    pub call_pc: AtomicU64,
    pub call_arguments: [AtomicU64; 6],
    /// What the stopped thread is to do, see [`request`]; zero: nothing, or it is done.
    pub request: AtomicU32,
    /// Of which signals one is to be taken; or a descriptor.
    pub request_set: AtomicU64,
    /// The siginfo_t that was taken; zeros when nothing was pending.
    pub siginfo: [AtomicU64; 16],
    /// Those that are to be queued: their address, and how many.
    pub signals: AtomicUsize,
    pub signal_count: AtomicUsize,
    /// Whether it was stopped in the vDSO's code, and how often it has been let run on from there.
    pub in_vdso: AtomicU32,
    pub ran_on: AtomicU32,
    /// PR_GET_SECUREBITS, without what PR_GET_KEEPCAPS tells unless that is locked.
    pub securebits: AtomicU32,
    /// PR_GET_KEEPCAPS and PR_MCE_KILL_GET.
    pub keep_capabilities: AtomicU32,
    pub mce_kill: AtomicU32,
    /// personality(2), PR_GET_TSC, and PR_GET_SPECULATION_CTRL of each kind.
    pub personality: AtomicU32,
    pub tsc: AtomicU32,
    pub speculation: [AtomicU32; 3],
    pub memory_policy: memory_policy::Kept,
}

/// Values of [`Slot::request`].
pub mod request {
    /// Take one signal that is pending.
    pub const TAKE: u32 = 1;
    /// Queue signals to the thread itself.
    pub const QUEUE: u32 = 2;
    /// Queue signals to the process.
    pub const QUEUE_TO_PROCESS: u32 = 3;
    /// Tells the flags of the descriptor in `request_set` (F_GETFD), there; -1 where it is not open.
    pub const DESCRIPTOR_FLAGS: u32 = 4;
}

/// Values of [`Slot::state`]; zero: taken, by the checkpoint thread or by the thread itself.
pub mod state {
    pub const STOPPED: u32 = 1;
    /// Running in the restarted process, its own kernel state put back.
    pub const ARRIVED: u32 = 2;
    /// It was met in the vDSO's code, and is to be stopped again in a moment.
    pub const RUNS_ON: u32 = 3;
}

static TABLE: AtomicUsize = AtomicUsize::new(0);
static MASK: AtomicUsize = AtomicUsize::new(0);
/// How many slots the table has room for.
static ROOM: AtomicUsize = AtomicUsize::new(0);

/// Clears the table and makes room for `threads` of them, and as many that are born meanwhile.
///
/// # Safety
/// No thread may be stopped.
///
/// # Errors
/// There is no memory for it.
pub unsafe fn clear(threads: usize) -> stasis_sys::Result<()> {
    let wanted = (threads * 4).next_power_of_two().clamp(64, CAPACITY);
    if ROOM.load(Ordering::Relaxed) < wanted {
        // The one of before stays: a thread whose stop signal comes late may still look into it. Each is twice as large.
        let table = memory::reserve(wanted * size_of::<Slot>())?;
        MASK.store(0, Ordering::Release);
        TABLE.store(table, Ordering::Release);
        ROOM.store(wanted, Ordering::Relaxed);
    }
    let used = MASK.load(Ordering::Relaxed) + 1;
    // SAFETY: no thread uses a slot (the caller's promise); zeros are an empty slot.
    unsafe { core::ptr::write_bytes(TABLE.load(Ordering::Acquire) as *mut Slot, 0, used.max(wanted)) };
    MASK.store(wanted - 1, Ordering::Release);
    Ok(())
}

/// The slot of a thread, claimed for it if it has none yet; `None` when the table is full.
pub fn claim(tid: i32) -> Option<&'static Slot> {
    let table = TABLE.load(Ordering::Acquire);
    if table == 0 {
        return None;
    }
    let mask = MASK.load(Ordering::Acquire);
    let mut index = (tid as usize).wrapping_mul(0x9e37_79b1) & mask;
    for _ in 0..=mask {
        // SAFETY: inside the table, whose slots are atomics and are never unmapped.
        let slot = unsafe { &*(table as *const Slot).add(index) };
        match slot.tid.compare_exchange(0, tid, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(slot),
            Err(other) if other == tid => return Some(slot),
            Err(_) => index = (index + 1) & mask,
        }
    }
    None
}

/// All claimed slots.
pub fn all() -> impl Iterator<Item = &'static Slot> {
    let table = TABLE.load(Ordering::Acquire);
    let len = if table == 0 { 0 } else { MASK.load(Ordering::Acquire) + 1 };
    // SAFETY: as in `claim`.
    (0..len)
        .map(move |index| unsafe { &*(table as *const Slot).add(index) })
        .filter(|slot| slot.tid.load(Ordering::Acquire) != 0)
}
