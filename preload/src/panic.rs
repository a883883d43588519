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

// The prebuilt `alloc` names the unwinder in its tables. Nothing unwinds here (panic = "abort"); hidden, so
// that the C++ and Rust code of the program never meets these.
core::arch::global_asm!(
    ".hidden rust_eh_personality",
    ".globl rust_eh_personality",
    "rust_eh_personality:",
    ".hidden _Unwind_Resume",
    ".globl _Unwind_Resume",
    "_Unwind_Resume:",
    "ud2",
);
