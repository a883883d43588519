//! The functions of libc that the library defines in front of libc's own.
//!
//! Only where the kernel cannot tell the stop handler what it must know: when a call with a time-out
//! began ([`timed`], [`sleep`], [`sockets`], [`generic`]), and where a set of signals would hide the
//! stop signal ([`masks`]). And where the library's own thread must do what glibc does in its threads
//! ([`identity`]). And where it is not told what a program uses ([`system_v`], [`notify`], [`confine`], [`timers`], [`advice`]). And where what waits for it is kept by the library ([`mod@read`]). And where a program is replaced ([`exec`]) or ends ([`exit`]). [`table`] has the reasons, call by call. The hot functions (malloc, open,
//! stat, getpid, clock_gettime...) are not among them.
//!
//! A wrapper is a jump to [`arch::wrapped_call`] with two functions: one makes the system call's
//! arguments of the C function's, the other makes the function's result of the system call's.
//!
//! They may be entered before any constructor has run, ours and libc's included: then, too, they make
//! the system call, and touch nothing but errno.
//!
//! [`arch::wrapped_call`]: crate::arch::wrapped_call

pub mod advice;
mod clone;
mod confine;
mod exec;
pub mod exit;
mod generic;
mod identity;
mod masks;
pub mod next;
pub mod notify;
mod raw;
pub mod read;
mod sleep;
pub mod sockets;
mod system_v;
pub mod table;
pub mod threads;
mod timed;
pub mod timers;
pub mod userfault;

use core::{ffi::c_char, mem::MaybeUninit};

pub use exec::lead as lead_execve;
use stasis_sys::sync;

use crate::{
    confined,
    interrupted::{arrays, call::Call, remaining},
};

/// Makes a record of a call, in which the C function's arguments alone are valid, that of a system call.
///
/// # Safety
/// What the C function's arguments point to is as the function asks.
pub type Prepare = unsafe extern "C" fn(call: &mut MaybeUninit<Call>);

/// Makes the function's result of a record whose `result` is valid.
///
/// # Safety
/// As for [`Prepare`].
pub type Finish = unsafe extern "C" fn(call: &mut Call) -> isize;

/// Defines a C function by the two functions that [`crate::arch::wrapped_call`] calls.
macro_rules! wrap {
    ($(#[$documentation:meta])* $name:ident, $prepare:expr, $finish:expr) => {
        $(#[$documentation])*
        ///
        /// # Safety
        /// The C function's.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            const _: $crate::wrappers::Prepare = $prepare;
            const _: $crate::wrappers::Finish = $finish;
            core::arch::naked_asm!(
                ".cfi_startproc",
                "lea rax, [rip + {prepare}]",
                "lea r11, [rip + {finish}]",
                "jmp {call}",
                ".cfi_endproc",
                prepare = sym $prepare,
                finish = sym $finish,
                call = sym $crate::arch::wrapped_call,
            )
        }
    };
}
use wrap;

unsafe extern "C" {
    fn __errno_location() -> *mut i32;

    /// sys/single_threaded.h (glibc 2.32).
    static __libc_single_threaded: c_char;
}

/// What a libc function returns for a system call's result: -1 and errno for an error.
pub extern "C" fn returned(result: isize) -> isize {
    if (-4095..0).contains(&result) {
        // SAFETY: the calling thread's errno.
        unsafe { *__errno_location() = -result as i32 };
        return -1;
    }
    result
}

/// What an earlier part of the call gave counts, too: an error after it is not told (write(2)).
extern "C" fn finish(call: &mut Call) -> isize {
    arrays::free(call);
    let (result, done) = (call.result as isize, call.done as isize);
    returned(match done {
        0 => result,
        _ if result < 0 => done,
        _ => result + done,
    })
}

/// The C function's arguments.
fn given(call: &MaybeUninit<Call>) -> [u64; 6] {
    // SAFETY: `wrapped_call` has filled them in.
    unsafe { (*call.as_ptr()).arguments }
}

/// Fills in a call that nobody can cancel.
fn fill(call: &mut MaybeUninit<Call>, nr: i64, arguments: [u64; 6]) -> &mut Call {
    // SAFETY: `wrapped_call` has filled it in.
    let finish = unsafe { (*call.as_ptr()).finish };
    call.write(Call { finish, ..Call::new(nr, arguments) })
}

/// Fills in a call that is a cancellation point.
fn fill_cancellable(call: &mut MaybeUninit<Call>, nr: i64, arguments: [u64; 6]) -> &mut Call {
    let call = fill(call, nr, arguments);
    call.cancel = if single_threaded() { -1 } else { 0 };
    call
}

/// Whether libc has made no thread.
fn single_threaded() -> bool {
    // SAFETY: glibc writes it while there is one thread only.
    unsafe { (&raw const __libc_single_threaded).read_volatile() != 0 }
}

/// Notes when the call must end: what it was given is overwritten by what is left.
fn note_deadline(call: &mut Call) {
    if let Some(given) = table::of(call.nr).and_then(|entry| remaining::given(entry.time, &call.arguments)) {
        call.deadline = now().saturating_add(given);
    }
}

/// CLOCK_MONOTONIC in nanoseconds, by way of the vDSO, where the program may read the processor's clock.
fn now() -> i64 {
    if confined::has(confined::CLOCK) {
        return sync::monotonic_ns() as i64;
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
        return sync::monotonic_ns() as i64;
    }
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Finds what the wrappers stand in front of.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    // SAFETY: the caller's promise.
    unsafe { sockets::init() };
    // SAFETY: as above.
    unsafe { identity::init() };
    // SAFETY: as above.
    unsafe { notify::init() };
    // SAFETY: as above.
    unsafe { timers::init() };
    // SAFETY: as above.
    unsafe { exec::init() };
    // SAFETY: as above.
    unsafe { clone::init() };
    // SAFETY: as above.
    unsafe { threads::init() };
    // SAFETY: as above.
    unsafe { read::init() };
}
