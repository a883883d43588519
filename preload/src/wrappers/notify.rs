//! mq_notify(3): who has asked to be told of messages. The kernel says so only by a descriptor of the queue, and forgets who
//! asked when that process closes any descriptor of it (ipc/mqueue.c, mqueue_flush_file): one that is opened to look, too.

use core::{
    ffi::{c_int, c_void},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use stasis_sys::file;

use super::{next, returned};

static NEXT: AtomicUsize = AtomicUsize::new(0);

const QUEUES: usize = 64;

/// The inodes of queues for which this process has asked, and has not withdrawn that; told meanwhile or not. Where there
/// is no room for one the last tells that.
static ASKED: [AtomicU64; QUEUES] = [const { AtomicU64::new(0) }; QUEUES];

const ANY: u64 = u64::MAX;

/// Finds the next definition.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    // SAFETY: the caller's promise.
    if let Some(next) = unsafe { next::find(c"mq_notify") } {
        NEXT.store(next.address, Relaxed);
    }
}

/// Whether this process may have asked to be told of messages in a queue.
pub fn has_asked(inode: u64) -> bool {
    ASKED.iter().map(|slot| slot.load(Relaxed)).any(|asked| asked == inode || asked == ANY)
}

/// In the child of a fork, which has not asked.
pub fn forget() {
    for slot in &ASKED {
        slot.store(0, Relaxed);
    }
}

fn note(queue: c_int, asks: bool) {
    let Ok(stat) = file::fstat(queue) else { return };
    if !asks {
        for slot in &ASKED {
            let _ = slot.compare_exchange(stat.st_ino, 0, Relaxed, Relaxed);
        }
    } else if !has_asked(stat.st_ino) {
        let free = ASKED.iter().any(|slot| slot.compare_exchange(0, stat.st_ino, Relaxed, Relaxed).is_ok());
        if !free {
            ASKED[QUEUES - 1].store(ANY, Relaxed);
        }
    }
}

/// mq_notify(3).
///
/// # Safety
/// The function's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mq_notify(queue: c_int, event: *const c_void) -> c_int {
    let address = NEXT.load(Relaxed);
    let result = if address == 0 {
        // SAFETY: the caller's call.
        returned(unsafe {
            stasis_sys::raw(libc::SYS_mq_notify, [queue as usize, event as usize, 0, 0, 0, 0])
        }) as c_int
    } else {
        // SAFETY: libc's function of this name.
        let function: unsafe extern "C" fn(c_int, *const c_void) -> c_int =
            unsafe { core::mem::transmute(address) };
        // SAFETY: the caller's call.
        unsafe { function(queue, event) }
    };
    if result == 0 {
        note(queue, !event.is_null());
    }
    result
}
