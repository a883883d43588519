//! The program's own signals, which interrupt calls by right.

use stasis_sys::process::{self, KernelSigaction};

use crate::wrappers::table::{Entry, Mask};

/// The action of the first of the program's signals that is delivered when the stop handler returns and
/// only `mask` is blocked; `None` when none has a handler. Signals that are ignored, stop the process or
/// end it interrupt no call (signal(7)).
pub fn handled(mask: u64) -> Option<KernelSigaction> {
    let pending = process::sigpending() & !mask;
    (1..=64).filter(|signal| pending & 1 << (signal - 1) != 0).find_map(|signal| {
        // SAFETY: only asks.
        let action = unsafe { process::sigaction(signal, None) }.ok()?;
        // SIG_DFL is 0, SIG_IGN is 1.
        (action.handler > 1).then_some(action)
    })
}

/// Whether one of the program's signals interrupts a call that is not restarted after handlers.
///
/// Calls with a set of signals of their own are made again for a signal that only they let through: the
/// kernel interrupts them at once, with that set in force, and puts the thread's own back.
pub fn interrupts(entry: &Entry, arguments: &[u64; 6], mask: u64) -> bool {
    let pointer = |address: u64| {
        // SAFETY: an argument that the kernel has just read through.
        (address != 0).then(|| unsafe { (address as *const u64).read_unaligned() })
    };
    let during = match entry.mask {
        Mask::Own => None,
        Mask::At(position) => pointer(arguments[position]),
        Mask::Behind(position) => pointer(arguments[position]).and_then(pointer),
    };
    handled(mask | during.unwrap_or(0)).is_some()
}
