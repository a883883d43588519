//! Sleeps: their beginning is noted. The kernel tells the time left only to those who ask.

use core::mem::MaybeUninit;

use super::{fill_cancellable, finish, given, now, wrap};
use crate::interrupted::call::Call;

const REALTIME: u64 = libc::CLOCK_REALTIME as u64;

fn sleep_on(call: &mut MaybeUninit<Call>, clock: u64, flags: u64, asked: u64, left: u64) -> &mut Call {
    let call = fill_cancellable(call, libc::SYS_clock_nanosleep, [clock, flags, asked, left, 0, 0]);
    call.started = now();
    call
}

/// By CLOCK_REALTIME, which for a time left is CLOCK_MONOTONIC (as glibc 2.36 does, nanosleep.c).
extern "C" fn prepare_nanosleep(call: &mut MaybeUninit<Call>) {
    let [asked, left, ..] = given(call);
    sleep_on(call, REALTIME, 0, asked, left);
}

wrap!(
    /// nanosleep(2).
    nanosleep, prepare_nanosleep, finish
);

extern "C" fn prepare_clock_nanosleep(call: &mut MaybeUninit<Call>) {
    let [clock, flags, asked, left, ..] = given(call);
    // glibc (2.36, clock_nanosleep.c) answers EINVAL, the kernel ENOTSUP; an unknown clock gives EINVAL.
    let own_time = clock as i32 == libc::CLOCK_THREAD_CPUTIME_ID;
    sleep_on(call, if own_time { u64::from(u32::MAX >> 1) } else { clock }, flags, asked, left);
}

/// An error number.
extern "C" fn finish_clock_nanosleep(call: &mut Call) -> isize {
    -call.result as isize
}

wrap!(
    /// clock_nanosleep(2).
    clock_nanosleep, prepare_clock_nanosleep, finish_clock_nanosleep
);

extern "C" fn prepare_usleep(call: &mut MaybeUninit<Call>) {
    let micros = i64::from(given(call)[0] as u32);
    let call = sleep_on(call, REALTIME, 0, 0, 0);
    call.time = libc::timespec { tv_sec: micros / 1_000_000, tv_nsec: micros % 1_000_000 * 1000 };
    // The kernel leaves the time left where the time was: nobody else is told.
    call.arguments[2] = &raw const call.time as u64;
    call.arguments[3] = call.arguments[2];
}

wrap!(
    /// usleep(3).
    usleep, prepare_usleep, finish
);

/// -1 when interrupted, -2 on other errors (thrd_sleep(3)).
extern "C" fn finish_thrd_sleep(call: &mut Call) -> isize {
    match call.result {
        0 => 0,
        result if result == -i64::from(libc::EINTR) => -1,
        _ => -2,
    }
}

wrap!(
    /// thrd_sleep(3).
    thrd_sleep, prepare_nanosleep, finish_thrd_sleep
);
