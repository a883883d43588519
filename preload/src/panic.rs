//! The end of a process whose library found itself wrong: one line, then SIGABRT's exit.

use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let at = info.location().map_or("?", |location| location.file());
    for part in ["stasis: internal error in ", at, "; the process cannot go on\n"] {
        let _ = stasis_sys::file::write(2, part.as_bytes());
    }
    stasis_sys::process::exit_group(134)
}
