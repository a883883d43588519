//! Waits with a time-out that the kernel does not write back: their beginning is noted.

use libc::{c_int, c_long, epoll_event, nfds_t, pollfd, sembuf, siginfo_t, size_t, timespec};

use super::{begin, masks, perform, returned};
use crate::interrupted::call::Call;

/// Makes a call whose beginning need not be known: there is no time-out, or the kernel keeps it.
macro_rules! untimed {
    ($nr:expr, $($argument:expr),* $(,)?) => {{
        let mut arguments = [0u64; 6];
        let given = [$($argument as u64),*];
        arguments[..given.len()].copy_from_slice(&given);
        // SAFETY: the caller's call.
        returned(unsafe { perform(&mut Call::new($nr, arguments)) })
    }};
}

macro_rules! timed {
    ($nr:expr, $($argument:expr),* $(,)?) => {{
        let mut arguments = [0usize; 6];
        let given = [$($argument as usize),*];
        arguments[..given.len()].copy_from_slice(&given);
        // SAFETY: the caller's call.
        returned(unsafe { perform(&mut begin($nr, arguments)) })
    }};
}

/// poll(2).
///
/// # Safety
/// poll(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    let result = if timeout <= 0 {
        untimed!(libc::SYS_poll, fds, count, timeout as isize)
    } else {
        timed!(libc::SYS_poll, fds, count, timeout as isize)
    };
    result as c_int
}

/// poll(2), as _FORTIFY_SOURCE calls it.
///
/// # Safety
/// poll(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: c_int,
    len: size_t,
) -> c_int {
    unsafe extern "C" {
        fn __chk_fail() -> !;
    }
    if len / size_of::<pollfd>() < count as usize {
        // SAFETY: ends the process, as glibc does (debug/poll_chk.c).
        unsafe { __chk_fail() };
    }
    // SAFETY: the caller's promise.
    unsafe { poll(fds, count, timeout) }
}

/// ppoll(2): the kernel writes back what is left, into a copy (glibc 2.36, ppoll.c).
///
/// # Safety
/// ppoll(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const u64,
) -> c_int {
    // SAFETY: null, or the caller's timespec.
    let mut copy = unsafe { timeout.as_ref() }.copied();
    let timeout = copy.as_mut().map_or(core::ptr::null_mut(), |copy| &raw mut *copy);
    // SAFETY: null, or the caller's set.
    let mask = unsafe { masks::Without::stop_signal(mask) };
    untimed!(libc::SYS_ppoll, fds, count, timeout, mask.pointer(), size_of::<u64>()) as c_int
}

/// pselect(2): as `ppoll`.
///
/// # Safety
/// pselect(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pselect(
    count: c_int,
    read: *mut libc::fd_set,
    write: *mut libc::fd_set,
    except: *mut libc::fd_set,
    timeout: *const timespec,
    mask: *const u64,
) -> c_int {
    // SAFETY: null, or the caller's timespec.
    let mut copy = unsafe { timeout.as_ref() }.copied();
    let timeout = copy.as_mut().map_or(core::ptr::null_mut(), |copy| &raw mut *copy);
    // SAFETY: null, or the caller's set.
    let mask = unsafe { masks::Without::stop_signal(mask) };
    let mask = [mask.pointer() as usize, size_of::<u64>()];
    untimed!(libc::SYS_pselect6, count as isize, read, write, except, timeout, mask.as_ptr()) as c_int
}

/// epoll_wait(2).
///
/// # Safety
/// epoll_wait(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: c_int,
) -> c_int {
    let result = if timeout <= 0 {
        untimed!(libc::SYS_epoll_wait, epoll as isize, events, count as isize, timeout as isize)
    } else {
        timed!(libc::SYS_epoll_wait, epoll as isize, events, count as isize, timeout as isize)
    };
    result as c_int
}

/// epoll_pwait(2).
///
/// # Safety
/// epoll_pwait(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait(
    epoll: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: c_int,
    mask: *const u64,
) -> c_int {
    // SAFETY: null, or the caller's set.
    let mask = unsafe { masks::Without::stop_signal(mask) };
    let (epoll, count, timeout) = (epoll as isize, count as isize, timeout as isize);
    timed!(libc::SYS_epoll_pwait, epoll, events, count, timeout, mask.pointer(), size_of::<u64>()) as c_int
}

/// epoll_pwait2(2).
///
/// # Safety
/// epoll_pwait2(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait2(
    epoll: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: *const timespec,
    mask: *const u64,
) -> c_int {
    // SAFETY: null, or the caller's set.
    let mask = unsafe { masks::Without::stop_signal(mask) };
    let (epoll, count) = (epoll as isize, count as isize);
    timed!(libc::SYS_epoll_pwait2, epoll, events, count, timeout, mask.pointer(), size_of::<u64>()) as c_int
}

/// semtimedop(2): no cancellation point.
///
/// # Safety
/// semtimedop(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn semtimedop(
    set: c_int,
    operations: *mut sembuf,
    count: size_t,
    timeout: *const timespec,
) -> c_int {
    let arguments = [set as usize, operations as usize, count, timeout as usize, 0, 0];
    // SAFETY: the caller's call.
    returned(unsafe { crate::arch::tracked_call(&mut begin(libc::SYS_semtimedop, arguments)) }) as c_int
}

/// sigtimedwait(3).
///
/// # Safety
/// sigtimedwait(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigtimedwait(
    set: *const u64,
    info: *mut siginfo_t,
    timeout: *const timespec,
) -> c_int {
    // SAFETY: null, or the caller's set.
    let set = unsafe { masks::Without::stop_signal(set) };
    let result = timed!(libc::SYS_rt_sigtimedwait, set.pointer(), info, timeout, size_of::<u64>());
    // glibc hides how raise(3) sends (sysdeps/unix/sysv/linux/sigtimedwait.c).
    // SAFETY: filled in by the kernel.
    if result != -1
        && let Some(info) = unsafe { info.as_mut() }
        && info.si_code == libc::SI_TKILL
    {
        info.si_code = libc::SI_USER;
    }
    result as c_int
}

/// sigwaitinfo(3).
///
/// # Safety
/// sigwaitinfo(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigwaitinfo(set: *const u64, info: *mut siginfo_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { sigtimedwait(set, info, core::ptr::null()) }
}

/// sigwait(3): returns an error number, and is not interrupted.
///
/// # Safety
/// sigwait(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigwait(set: *const u64, signal: *mut c_int) -> c_int {
    // SAFETY: null, or the caller's set.
    let set = unsafe { masks::Without::stop_signal(set) };
    let arguments = [set.pointer() as u64, 0, 0, size_of::<u64>() as u64, 0, 0];
    loop {
        // SAFETY: the caller's call.
        let result = unsafe { perform(&mut Call::new(libc::SYS_rt_sigtimedwait, arguments)) };
        if result > 0 {
            // SAFETY: the caller's promise.
            unsafe { signal.write(result as c_int) };
            return 0;
        }
        if result != -(libc::EINTR as c_long) as isize {
            return -result as c_int;
        }
    }
}

/// sigsuspend(2).
///
/// # Safety
/// sigsuspend(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigsuspend(mask: *const u64) -> c_int {
    // SAFETY: the caller's set.
    let mask = unsafe { masks::Without::stop_signal(mask) };
    untimed!(libc::SYS_rt_sigsuspend, mask.pointer(), size_of::<u64>()) as c_int
}
