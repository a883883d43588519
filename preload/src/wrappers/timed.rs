//! Waits with a time-out that the kernel does not write back: their beginning is noted.

use core::mem::MaybeUninit;

use super::{fill_cancellable, finish, given, masks, note_deadline, now, returned, wrap};
use crate::interrupted::call::Call;

/// The kernel's sigset_t, in bytes.
const SET: u64 = size_of::<u64>() as u64;

/// Whether a time-out in milliseconds ends the call one day, but not at once.
fn is_finite(milliseconds: u64) -> bool {
    milliseconds as i32 > 0
}

extern "C" fn prepare_poll(call: &mut MaybeUninit<Call>) {
    let [fds, count, timeout, ..] = given(call);
    let call = fill_cancellable(call, libc::SYS_poll, [fds, count, timeout, 0, 0, 0]);
    if is_finite(timeout) {
        call.started = now();
    }
}

wrap!(
    /// poll(2).
    poll, prepare_poll, finish
);

/// poll(2), as _FORTIFY_SOURCE calls it (debug/poll_chk.c): the fourth argument is the array's size.
extern "C" fn prepare_poll_chk(call: &mut MaybeUninit<Call>) {
    unsafe extern "C" {
        fn __chk_fail() -> !;
    }
    let [_, count, _, len, ..] = given(call);
    if len / (size_of::<libc::pollfd>() as u64) < count {
        // SAFETY: ends the process, as glibc does.
        unsafe { __chk_fail() };
    }
    prepare_poll(call);
}

wrap!(
    /// poll(2), as _FORTIFY_SOURCE calls it.
    __poll_chk, prepare_poll_chk, finish
);

/// The kernel writes back what is left: into a copy, as in glibc (2.36, ppoll.c, pselect.c).
unsafe fn copy_timeout(call: &mut Call, position: usize) {
    // SAFETY: null, or the caller's timespec.
    if let Some(time) = unsafe { (call.arguments[position] as *const libc::timespec).as_ref() } {
        call.time = *time;
        call.arguments[position] = &raw const call.time as u64;
        note_deadline(call);
    }
}

extern "C" fn prepare_select(call: &mut MaybeUninit<Call>) {
    let [count, read, write, except, timeout, _] = given(call);
    let call = fill_cancellable(call, libc::SYS_select, [count, read, write, except, timeout, 0]);
    note_deadline(call);
}

wrap!(
    /// select(2): the kernel writes what is left into the caller's timeval, as glibc does.
    select, prepare_select, finish
);

unsafe extern "C" fn prepare_ppoll(call: &mut MaybeUninit<Call>) {
    let [fds, count, timeout, mask, ..] = given(call);
    let call = fill_cancellable(call, libc::SYS_ppoll, [fds, count, timeout, mask, SET, 0]);
    // SAFETY: null, or the caller's timespec and set.
    unsafe {
        copy_timeout(call, 2);
        masks::replace(call, 3);
    }
}

wrap!(
    /// ppoll(2).
    ppoll, prepare_ppoll, finish
);

unsafe extern "C" fn prepare_pselect(call: &mut MaybeUninit<Call>) {
    let arguments = given(call);
    let call = fill_cancellable(call, libc::SYS_pselect6, arguments);
    // SAFETY: null, or the caller's timespec and set.
    unsafe {
        copy_timeout(call, 4);
        masks::replace(call, 5);
    }
    call.sized_mask = [call.arguments[5], SET];
    call.arguments[5] = call.sized_mask.as_ptr() as u64;
}

wrap!(
    /// pselect(2).
    pselect, prepare_pselect, finish
);

extern "C" fn prepare_epoll_wait(call: &mut MaybeUninit<Call>) {
    let [epoll, events, count, timeout, ..] = given(call);
    let call = fill_cancellable(call, libc::SYS_epoll_wait, [epoll, events, count, timeout, 0, 0]);
    if is_finite(timeout) {
        call.started = now();
    }
}

wrap!(
    /// epoll_wait(2).
    epoll_wait, prepare_epoll_wait, finish
);

unsafe extern "C" fn prepare_epoll_pwait(call: &mut MaybeUninit<Call>) {
    let [epoll, events, count, timeout, mask, _] = given(call);
    let call = fill_cancellable(call, libc::SYS_epoll_pwait, [epoll, events, count, timeout, mask, SET]);
    if is_finite(timeout) {
        call.started = now();
    }
    // SAFETY: null, or the caller's set.
    unsafe { masks::replace(call, 4) };
}

wrap!(
    /// epoll_pwait(2).
    epoll_pwait, prepare_epoll_pwait, finish
);

unsafe extern "C" fn prepare_epoll_pwait2(call: &mut MaybeUninit<Call>) {
    let [epoll, events, count, timeout, mask, _] = given(call);
    let call = fill_cancellable(call, libc::SYS_epoll_pwait2, [epoll, events, count, timeout, mask, SET]);
    if timeout != 0 {
        call.started = now();
    }
    // SAFETY: null, or the caller's set.
    unsafe { masks::replace(call, 4) };
}

wrap!(
    /// epoll_pwait2(2).
    epoll_pwait2, prepare_epoll_pwait2, finish
);

unsafe extern "C" fn prepare_sigtimedwait(call: &mut MaybeUninit<Call>) {
    let [set, info, timeout, ..] = given(call);
    let call = fill_cancellable(call, libc::SYS_rt_sigtimedwait, [set, info, timeout, SET, 0, 0]);
    if timeout != 0 {
        call.started = now();
    }
    // SAFETY: the caller's set.
    unsafe { masks::replace(call, 0) };
}

/// glibc hides how raise(3) sends (2.36, sysdeps/unix/sysv/linux/sigtimedwait.c).
unsafe extern "C" fn finish_sigtimedwait(call: &mut Call) -> isize {
    // SAFETY: null, or the caller's siginfo_t.
    let info = unsafe { (call.arguments[1] as *mut libc::siginfo_t).as_mut() };
    if call.result > 0
        && let Some(info) = info
        && info.si_code == libc::SI_TKILL
    {
        info.si_code = libc::SI_USER;
    }
    returned(call.result as isize)
}

wrap!(
    /// sigtimedwait(3).
    sigtimedwait, prepare_sigtimedwait, finish_sigtimedwait
);

unsafe extern "C" fn prepare_sigwaitinfo(call: &mut MaybeUninit<Call>) {
    // SAFETY: the C function's arguments are valid; it has no third one.
    unsafe {
        (*call.as_mut_ptr()).arguments[2] = 0;
        prepare_sigtimedwait(call);
    }
}

wrap!(
    /// sigwaitinfo(3).
    sigwaitinfo, prepare_sigwaitinfo, finish_sigtimedwait
);

unsafe extern "C" fn prepare_sigwait(call: &mut MaybeUninit<Call>) {
    let [set, signal, ..] = given(call);
    let call = fill_cancellable(call, libc::SYS_rt_sigtimedwait, [set, 0, 0, SET, 0, 0]);
    // The system call takes four arguments.
    call.arguments[5] = signal;
    // SAFETY: the caller's set.
    unsafe { masks::replace(call, 0) };
}

/// An error number, and never EINTR (sigwait(3)).
unsafe extern "C" fn finish_sigwait(call: &mut Call) -> isize {
    call.again = u32::from(call.result == -i64::from(libc::EINTR));
    if call.result <= 0 {
        return -call.result as isize;
    }
    // SAFETY: the caller's int.
    unsafe { (call.arguments[5] as *mut i32).write(call.result as i32) };
    0
}

wrap!(
    /// sigwait(3).
    sigwait, prepare_sigwait, finish_sigwait
);

unsafe extern "C" fn prepare_sigsuspend(call: &mut MaybeUninit<Call>) {
    let [mask, ..] = given(call);
    let call = fill_cancellable(call, libc::SYS_rt_sigsuspend, [mask, SET, 0, 0, 0, 0]);
    // SAFETY: the caller's set.
    unsafe { masks::replace(call, 0) };
}

wrap!(
    /// sigsuspend(2).
    sigsuspend, prepare_sigsuspend, finish
);
