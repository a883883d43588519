//! timer_create(2): the kernel does not tell whose processor time a timer counts that was made for the calling thread's own
//! (/proc/PID/timers shows the clock as it was given). So the clock is given by the thread's id.

use core::{
    ffi::{c_int, c_void},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use stasis_sys::process;

use super::{next, returned};

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Finds the next definition.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    // SAFETY: the caller's promise.
    if let Some(next) = unsafe { next::find(c"timer_create") } {
        NEXT.store(next.address, Relaxed);
    }
}

/// What the kernel makes of CLOCK_THREAD_CPUTIME_ID (kernel/time/posix-cpu-timers.c, `THREAD_CLOCK`).
pub const OWN_THREAD: i32 = -2;

/// The clock of a thread's processor time (clock_getcpuclockid(3)).
pub const fn clock_of(tid: i32) -> i32 {
    !tid << 3 | 6
}

fn explicit(clock: c_int) -> c_int {
    match clock {
        libc::CLOCK_THREAD_CPUTIME_ID | OWN_THREAD => clock_of(process::gettid()),
        _ => clock,
    }
}

/// timer_create(2).
///
/// # Safety
/// The function's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn timer_create(clock: c_int, event: *mut c_void, timer: *mut c_void) -> c_int {
    let address = NEXT.load(Relaxed);
    if address == 0 {
        // SAFETY: the caller's call.
        return unsafe { by_number(clock as usize, event as usize, timer as usize) as c_int };
    }
    // SAFETY: libc's function of this name.
    let function: unsafe extern "C" fn(c_int, *mut c_void, *mut c_void) -> c_int =
        unsafe { core::mem::transmute(address) };
    // SAFETY: the caller's call.
    unsafe { function(explicit(clock), event, timer) }
}

/// The system call.
///
/// # Safety
/// The system call's.
pub unsafe fn by_number(clock: usize, event: usize, timer: usize) -> isize {
    let clock = explicit(clock as c_int) as usize;
    // SAFETY: the caller's promise.
    returned(unsafe { stasis_sys::raw(libc::SYS_timer_create, [clock, event, timer, 0, 0, 0]) })
}
