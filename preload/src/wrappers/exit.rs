//! The end of a process: not while what it was is on its way to the store.

use core::ffi::c_int;

use stasis_sys::process;

use crate::{births, confined, stop};

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = destructor;

/// exit(3) calls it.
extern "C" fn destructor() {
    leave();
}

/// What is to be done before the end.
fn leave() {
    // A filter may not allow the calls, and no checkpoint is taken of who has one.
    if confined::has(confined::FILTERS) {
        return;
    }
    stop::leave();
    births::leave();
}

/// Ends the process as _exit(2) does.
pub fn now(status: c_int) -> ! {
    leave();
    process::exit_group(status)
}

/// _exit(2).
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _exit(status: c_int) -> ! {
    now(status)
}

/// _Exit(3).
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Exit(status: c_int) -> ! {
    now(status)
}
