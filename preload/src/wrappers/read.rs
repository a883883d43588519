//! read(2) of inotify: what was taken at a checkpoint ([`unread_events`]).

use core::{
    arch::naked_asm,
    ffi::c_int,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{next, returned, sockets};
use crate::{unread_events, watches};

/// The next definition of what read(2) is compiled to with _FORTIFY_SOURCE.
static NEXT_CHECKED: AtomicUsize = AtomicUsize::new(0);

/// Where libc's own read(2) begins, and its length.
static LIBC: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Whether the program watches anything, and a thread that was met at `pc` may be about to read.
pub fn begins(pc: u64) -> bool {
    let [begin, len] = LIBC.each_ref().map(|value| value.load(Relaxed));
    let is_in = |begin: usize, len: usize| (pc as usize).wrapping_sub(begin) < len;
    /// More than the jump to it is long.
    const JUMP: usize = 16;
    (is_in(begin, len) || is_in(sockets::read as *const () as usize, JUMP)) && watches::has_any()
}

/// Finds them.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    // SAFETY: the caller's promise.
    if let Some(function) = unsafe { next::find_in_libc(c"read") } {
        LIBC[0].store(function.address, Relaxed);
        LIBC[1].store(function.len, Relaxed);
    }
    // SAFETY: the caller's promise.
    if let Some(next) = unsafe { next::find(c"__read_chk") } {
        NEXT_CHECKED.store(next.address, Relaxed);
    }
}

/// read(2), once events have been kept.
pub unsafe extern "C" fn kept(fd: c_int, buffer: *mut u8, size: usize) -> isize {
    if unread_events::WAITING.load(Relaxed) != 0 {
        // SAFETY: the caller's buffer.
        if let Some(result) = unsafe { unread_events::read(fd, buffer, size) } {
            return returned(result);
        }
    }
    // SAFETY: a function of this kind, libc's or what stands for it.
    let behind: unsafe extern "C" fn(c_int, *mut u8, usize) -> isize =
        unsafe { core::mem::transmute(sockets::behind_read()) };
    // SAFETY: the caller's call.
    unsafe { behind(fd, buffer, size) }
}

/// The checked read(2). Without anything kept, the next definition is gone to at once.
///
/// # Safety
/// The system call's.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn __read_chk() {
    naked_asm!(
        ".cfi_startproc",
        "cmp dword ptr [rip + {waiting}], 0",
        "jne {kept}",
        "mov rax, [rip + {next}]",
        "test rax, rax",
        "je {kept}",
        "jmp rax",
        ".cfi_endproc",
        waiting = sym unread_events::WAITING,
        kept = sym checked,
        next = sym NEXT_CHECKED,
    )
}

/// `room`: how large the buffer is; the program is ended where more is asked for.
unsafe extern "C" fn checked(fd: c_int, buffer: *mut u8, size: usize, room: usize) -> isize {
    let address = NEXT_CHECKED.load(Relaxed);
    if unread_events::WAITING.load(Relaxed) != 0 && size <= room {
        // SAFETY: the caller's call.
        return unsafe { kept(fd, buffer, size) };
    }
    if address == 0 {
        // SAFETY: the caller's call.
        return returned(unsafe {
            stasis_sys::raw(libc::SYS_read, [fd as usize, buffer as usize, size, 0, 0, 0])
        });
    }
    // SAFETY: libc's function of this name.
    let next: unsafe extern "C" fn(c_int, *mut u8, usize, usize) -> isize =
        unsafe { core::mem::transmute(address) };
    // SAFETY: the caller's call.
    unsafe { next(fd, buffer, size, room) }
}
