//! The end of a process: not while what it was is on its way to the store.

use core::ffi::c_int;

use stasis_sys::process;

use crate::stop;

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = destructor;

/// exit(3) calls it.
extern "C" fn destructor() {
    stop::leave();
}

/// _exit(2).
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _exit(status: c_int) -> ! {
    stop::leave();
    process::exit_group(status)
}

/// _Exit(3).
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Exit(status: c_int) -> ! {
    stop::leave();
    process::exit_group(status)
}
