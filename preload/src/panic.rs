//! The end of a process whose library found itself wrong: one line, then SIGABRT's exit.

use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |location| (location.file(), location.line()));
    let file = &file[file.len().saturating_sub(100)..];
    let message = path!("stasis: internal error in {file}, line {line}; the process cannot go on\n");
    let message = message.as_c_str().to_bytes();
    // The checkpoint thread has no such descriptor; the program's are seen through /proc.
    if stasis_sys::file::write(2, message).is_err() {
        let path = path!("/proc/{}/fd/2", stasis_sys::process::getpid());
        if let Ok(fd) = stasis_sys::file::open(path.as_c_str(), libc::O_WRONLY | libc::O_APPEND, 0) {
            let _ = stasis_sys::file::write(fd, message);
        }
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
