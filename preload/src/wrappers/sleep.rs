//! Sleeps: their beginning is noted, and the program is told the time that is left only when they end early.

use core::mem::MaybeUninit;

use super::{fill_cancellable, finish, given, now, wrap};
use crate::interrupted::call::Call;

const REALTIME: u64 = libc::CLOCK_REALTIME as u64;

fn sleep_on(call: &mut MaybeUninit<Call>, clock: u64, flags: u64, asked: u64, left: u64) -> &mut Call {
    let call = fill_cancellable(call, libc::SYS_clock_nanosleep, [clock, flags, asked, left, 0, 0]);
    note(call, 3);
    call
}

/// Notes when a sleep begins. The kernel leaves the time that is left, which is at `position` of its arguments, in the record
/// ([`finish_nanosleep`]): a checkpoint's interruption would be seen, and where the program wants it in place of the time that it
/// asked for, its next sleep would be the shorter.
pub fn note(call: &mut Call, position: usize) {
    call.left_at = core::mem::replace(&mut call.arguments[position], &raw const call.left as u64);
    call.started = now();
}

/// Tells the program how much of an interrupted sleep is left. With an absolute time the kernel leaves nothing (clock_nanosleep(2)).
fn tell_left(call: &mut Call) {
    let is_absolute =
        call.nr == libc::SYS_clock_nanosleep && call.arguments[1] & libc::TIMER_ABSTIME as u64 != 0;
    if call.left_at == 0 || is_absolute || call.result != -i64::from(libc::EINTR) {
        return;
    }
    // SAFETY: the caller's timespec, which the kernel would have written to.
    unsafe { (call.left_at as *mut libc::timespec).write_unaligned(call.left) };
}

pub extern "C" fn finish_nanosleep(call: &mut Call) -> isize {
    tell_left(call);
    finish(call)
}

/// By CLOCK_REALTIME, which for a time left is CLOCK_MONOTONIC (as glibc 2.36 does, nanosleep.c).
extern "C" fn prepare_nanosleep(call: &mut MaybeUninit<Call>) {
    let [asked, left, ..] = given(call);
    sleep_on(call, REALTIME, 0, asked, left);
}

wrap!(
    /// nanosleep(2).
    nanosleep, prepare_nanosleep, finish_nanosleep
);

extern "C" fn prepare_clock_nanosleep(call: &mut MaybeUninit<Call>) {
    let [clock, flags, asked, left, ..] = given(call);
    // glibc (2.36, clock_nanosleep.c) answers EINVAL, the kernel ENOTSUP; an unknown clock gives EINVAL.
    let own_time = clock as i32 == libc::CLOCK_THREAD_CPUTIME_ID;
    sleep_on(call, if own_time { u64::from(u32::MAX >> 1) } else { clock }, flags, asked, left);
}

/// An error number.
extern "C" fn finish_clock_nanosleep(call: &mut Call) -> isize {
    tell_left(call);
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
    call.arguments[2] = &raw const call.time as u64;
}

wrap!(
    /// usleep(3).
    usleep, prepare_usleep, finish
);

/// -1 when interrupted, -2 on other errors (thrd_sleep(3)).
extern "C" fn finish_thrd_sleep(call: &mut Call) -> isize {
    tell_left(call);
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
