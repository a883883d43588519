//! What is kept in the kernel. All but the offsets are pinned by the service, and go on while it is being restarted.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, RingBuf},
};
use stasis_events::{Counter, Label, LabelKey, Offsets, Owner, Request, Task, User, size};

/// Where the running kernel keeps things; the service fills it in before it loads the programs.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::nowhere();

#[map]
pub static TASKS: HashMap<u32, Task> = HashMap::with_max_entries(size::TASKS, 0);

#[map]
pub static USERS: HashMap<u32, User> = HashMap::with_max_entries(size::USERS, 0);

#[map]
pub static REQUESTS: HashMap<u32, Request> = HashMap::with_max_entries(size::REQUESTS, 0);

/// By the address of the kernel's `struct sock`. What is forgotten here (the end of a socket whose program we did not
/// see, say) makes room by itself.
#[map]
pub static SOCKETS: LruHashMap<u64, Owner> = LruHashMap::with_max_entries(size::SOCKETS, 0);

/// By network namespace and port.
#[map]
pub static LISTENERS: LruHashMap<u64, Owner> = LruHashMap::with_max_entries(size::SOCKETS, 0);

/// Read and written by the service alone: kept here because it outlives the service here.
#[map]
pub static LABELS: LruHashMap<LabelKey, Label> = LruHashMap::with_max_entries(size::LABELS, 0);

#[map]
pub static COUNTERS: Array<u64> = Array::with_max_entries(Counter::ALL, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(size::RING, 0);

pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        add(value, 1);
    }
}

/// Adds atomically (two's complement: subtracts too).
///
/// The target has no read-modify-write operations for the compiler; the processor's has had this one from the beginning.
#[inline(always)]
pub fn add(value: *mut u64, by: i64) {
    // SAFETY: the pointer is to an aligned u64 in a value of a map, and nothing else is touched.
    unsafe {
        core::arch::asm!("lock *(u64 *)({value} + 0) += {by}", value = in(reg) value, by = in(reg) by, options(nostack));
    }
}
