//! Sleeps: their beginning is noted. The kernel tells the time left only to those who ask.

use libc::{c_int, c_uint, clockid_t, timespec};

use super::{begin, perform, returned};

/// clock_nanosleep(2); the kernel's result.
///
/// # Safety
/// clock_nanosleep(2)'s.
unsafe extern "C-unwind" fn sleep_on(
    clock: clockid_t,
    flags: c_int,
    asked: *const timespec,
    left: *mut timespec,
) -> isize {
    let arguments = [clock as usize, flags as usize, asked as usize, left as usize, 0, 0];
    // SAFETY: the caller's call.
    unsafe { perform(&mut begin(libc::SYS_clock_nanosleep, arguments)) }
}

/// nanosleep(2): by CLOCK_REALTIME, which for a time left is CLOCK_MONOTONIC (as glibc does, nanosleep.c).
///
/// # Safety
/// nanosleep(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nanosleep(asked: *const timespec, left: *mut timespec) -> c_int {
    // SAFETY: the caller's promise.
    returned(unsafe { sleep_on(libc::CLOCK_REALTIME, 0, asked, left) }) as c_int
}

/// clock_nanosleep(2): returns an error number.
///
/// # Safety
/// clock_nanosleep(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn clock_nanosleep(
    clock: clockid_t,
    flags: c_int,
    asked: *const timespec,
    left: *mut timespec,
) -> c_int {
    if clock == libc::CLOCK_THREAD_CPUTIME_ID {
        // glibc (clock_nanosleep.c): the kernel would give ENOTSUP.
        return libc::EINVAL;
    }
    // SAFETY: the caller's promise.
    -unsafe { sleep_on(clock, flags, asked, left) } as c_int
}

/// usleep(3).
///
/// # Safety
/// None beyond being a cancellation point.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn usleep(micros: c_uint) -> c_int {
    let asked =
        timespec { tv_sec: i64::from(micros / 1_000_000), tv_nsec: i64::from(micros % 1_000_000) * 1000 };
    // SAFETY: the structure outlives the call.
    returned(unsafe { sleep_on(libc::CLOCK_REALTIME, 0, &raw const asked, core::ptr::null_mut()) }) as c_int
}

/// thrd_sleep(3): -1 when interrupted, -2 on other errors.
///
/// # Safety
/// As nanosleep(2).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn thrd_sleep(asked: *const timespec, left: *mut timespec) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { sleep_on(libc::CLOCK_REALTIME, 0, asked, left) } {
        0 => 0,
        result if result == -(libc::EINTR as isize) => -1,
        _ => -2,
    }
}
