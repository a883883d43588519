//! Reading the kernel's structures at the offsets of the running kernel.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel, generated::bpf_get_current_task};
use stasis_events::{NONE, Offsets};

use crate::maps::OFFSETS;

/// An address in the kernel.
#[derive(Clone, Copy)]
pub struct Kernel(pub u64);

/// The offset of a field; read so that the compiler does not take the value it was compiled with.
#[inline(always)]
pub fn offset(field: impl FnOnce(*const Offsets) -> *const u32) -> u32 {
    // SAFETY: the closure projects to a field of the static.
    unsafe { core::ptr::read_volatile(field(&raw const OFFSETS)) }
}

#[macro_export]
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::offset(|offsets| unsafe { &raw const (*offsets).$field })
    };
}

impl Kernel {
    /// What is at an offset; zero where the kernel has no such field, or the address is none.
    #[inline(always)]
    pub fn read<T: Copy + Default>(self, offset: u32) -> T {
        if offset == NONE {
            return T::default();
        }
        // SAFETY: the helper checks the address itself.
        unsafe { bpf_probe_read_kernel((self.0 + offset as u64) as *const T) }.unwrap_or_default()
    }

    /// Follows a pointer.
    #[inline(always)]
    pub fn follow(self, offset: u32) -> Self {
        Self(self.read(offset))
    }
}

/// The task that runs.
#[inline(always)]
pub fn current() -> Kernel {
    // SAFETY: the helper takes nothing.
    Kernel(unsafe { bpf_get_current_task() })
}

/// The running task's process and its thread, by their numbers in the initial pid namespace.
#[inline(always)]
pub fn current_ids() -> (u32, u32) {
    let ids = bpf_get_current_pid_tgid();
    ((ids >> 32) as u32, ids as u32)
}

/// When a process began. All its threads are told the leader's time by /proc, but each has its own in the kernel: this
/// must be asked of the first.
#[inline(always)]
pub fn start_ns(leader: Kernel) -> u64 {
    leader.read(offset!(task_start_boottime))
}

#[inline(always)]
pub fn effective_user(task: Kernel) -> u32 {
    task.follow(offset!(task_cred)).read(offset!(cred_euid))
}

/// A task's number in its own pid namespace.
#[inline(always)]
pub fn ns_pid(task: Kernel) -> u32 {
    let pid = task.follow(offset!(task_thread_pid));
    let level: u32 = pid.read(offset!(pid_level));
    // `numbers` ends the structure: one for each level, the number first.
    pid.read(offset!(pid_numbers).wrapping_add((level & 31).wrapping_mul(offset!(upid_size))))
}

/// Whether threads of a process are left: none are any more when the last one is about to end.
#[inline(always)]
pub fn lives(task: Kernel) -> bool {
    let live: i32 = task.follow(offset!(task_signal)).read(offset!(signal_live));
    live > 0
}
