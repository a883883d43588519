//! Time-outs that are not an argument: SO_RCVTIMEO and SO_SNDTIMEO.
//!
//! Such a call, made again, has its whole time again. A timer that sends the stop signal to the thread
//! when the time has come stands in for what is left: the handler then gives the call the result that
//! it would have had. The options themselves stay as the program set them: other threads may be using
//! the socket.

use stasis_sys::{
    process::{self, Siginfo},
    socket, sync,
};

use super::call::Call;
use crate::{
    arch::{self, Frame, Stub},
    stop,
};

/// si_value of the timer's signals.
pub const COOKIE: u64 = 0x57_a516;

/// struct sigevent (64 bytes), as timer_create(2) reads it.
#[repr(C)]
struct Sigevent {
    value: u64,
    signal: i32,
    notify: i32,
    tid: i32,
    _pad: [i32; 11],
}

/// Makes the timer. Without one (RLIMIT_SIGPENDING) the call has its whole time again.
pub fn arm(call: &mut Call, deadline: i64) {
    disarm(call);
    let mut event = Sigevent {
        value: COOKIE,
        signal: stop::SIGNAL,
        notify: libc::SIGEV_THREAD_ID,
        tid: process::gettid(),
        _pad: [0; 11],
    };
    let mut id = -1i32;
    let arguments = [libc::CLOCK_MONOTONIC as usize, &raw mut event as usize, 0, 0, 0, 0];
    // SAFETY: timer_create(2) reads the event and fills in the id.
    if unsafe { process::with(libc::SYS_timer_create, arguments, 2, &mut id) }.is_err() {
        return;
    }
    call.timer = id;
    let mut setting = [sync::timespec(0), sync::timespec(deadline.max(1) as u64)];
    let arguments = [id as usize, libc::TIMER_ABSTIME as usize, 0, 0, 0, 0];
    // SAFETY: timer_settime(2) reads struct itimerspec, two timespecs.
    let _ = unsafe { process::with(libc::SYS_timer_settime, arguments, 2, &mut setting) };
}

/// Deletes the timer, if there is one.
pub fn disarm(call: &mut Call) {
    let id = core::mem::replace(&mut call.timer, -1);
    if id >= 0 {
        let _ = process::numbers(libc::SYS_timer_delete, [id as usize, 0, 0, 0, 0]);
    }
}

/// What the call gives when its time is over.
pub fn outcome(call: &Call) -> i64 {
    let is_unix = || {
        let domain = socket::number_option(call.arguments[0] as i32, libc::SOL_SOCKET, libc::SO_DOMAIN);
        domain == Ok(libc::AF_UNIX)
    };
    // connect(2): EINPROGRESS; unix_wait_for_peer gives EAGAIN (net/unix/af_unix.c).
    let error = if call.nr == libc::SYS_connect && !is_unix() { libc::EINPROGRESS } else { libc::EAGAIN };
    -i64::from(error)
}

/// Whether a signal is a timer's.
pub fn is_expiry(info: &Siginfo) -> bool {
    let word = |at: usize| i32::from_ne_bytes([info.0[at], info.0[at + 1], info.0[at + 2], info.0[at + 3]]);
    word(8) == libc::SI_TIMER && word(24) as u32 == COOKIE as u32
}

/// The timer's signal has come: ends the call if it still waits.
pub fn expired(frame: &mut Frame<'_>) -> bool {
    if arch::stub_at(frame.pc()) != Some(Stub::TrackedReturned) || frame.result() != super::EINTR {
        return false;
    }
    // SAFETY: there, RBX points to the wrapper's record, which only the interrupted thread uses.
    let call = unsafe { &mut *(frame.rbx() as *mut Call) };
    let over = call.timer >= 0 && super::remaining::left(call.deadline) == 0;
    if over {
        frame.set_result(outcome(call));
    }
    over
}
