//! Making a checkpoint invisible to the system call that it interrupted.
//!
//! The kernel restarts most calls after a handler with SA_RESTART; it does not restart those that
//! signal(7) lists (poll, nanosleep, sigtimedwait...). For these the handler finds EINTR in the result
//! register, and makes the thread call again, with the time that remains.

use core::sync::atomic::Ordering;

use stasis_sys::process;

use crate::{arch::Frame, threads::Slot};

/// Completes the interrupted call, or lets it be made again, as if no signal had come.
pub fn resume(frame: &mut Frame<'_>, slot: &Slot, restarted: bool) {
    let _ = restarted;
    if frame.result() != -i64::from(libc::EINTR) || !frame.behind_system_call() {
        return;
    }
    let nr = slot.call.load(Ordering::Acquire);
    if nr == u64::MAX || slot.call_pc.load(Ordering::Relaxed) != frame.pc() {
        return;
    }
    // A signal of the program's own that arrived meanwhile interrupts the call by right.
    if process::sigpending() & !frame.mask() != 0 {
        return;
    }
    if nr == libc::SYS_nanosleep as u64 {
        let arguments = frame.arguments();
        if arguments[1] != 0 {
            frame.set_argument(0, arguments[1]);
        }
    }
    frame.call_again(nr as i64);
}
