//! Futexes and clocks.

use core::sync::atomic::AtomicU32;

use crate::{Errno, Result, call::call};

/// Sleeps while `word` holds `expected`, for at most `timeout_ns` nanoseconds (`None`: for ever).
/// Returns on any wake-up, signal or time-out: the caller looks at the word again.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout_ns: Option<u64>) {
    let timeout = timeout_ns.map(timespec);
    let timeout = timeout.as_ref().map_or(core::ptr::null(), |t| &raw const *t);
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word and the time-out outlive the call.
    let _ = unsafe {
        call(
            libc::SYS_futex,
            [word.as_ptr() as usize, op as usize, expected as usize, timeout as usize, 0, 0],
        )
    };
}

/// Wakes up to `count` sleepers on `word`.
pub fn futex_wake(word: &AtomicU32, count: u32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: only the address is used.
    let _ = unsafe { call(libc::SYS_futex, [word.as_ptr() as usize, op as usize, count as usize, 0, 0, 0]) };
}

/// CLOCK_MONOTONIC in nanoseconds, by system call: the vDSO may be interposed or moved.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// A clock's time in nanoseconds (clock_gettime(2)); 0 for a clock that does not exist.
pub fn clock_ns(clock: i32) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    match unsafe { call(libc::SYS_clock_gettime, [clock as usize, &raw mut time as usize, 0, 0, 0, 0]) } {
        Ok(_) => time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
        Err(_) => 0,
    }
}

pub fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// poll(2) on one descriptor: its `revents`, 0 after `timeout_ms` (-1: for ever).
pub fn poll(fd: i32, events: i16, timeout_ms: i32) -> Result<i16> {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    loop {
        // SAFETY: one pollfd.
        match unsafe { call(libc::SYS_poll, [&raw mut poll as usize, 1, timeout_ms as usize, 0, 0, 0]) } {
            Ok(_) => return Ok(poll.revents),
            Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}
