//! The constructor: from a program that has just been loaded to one with a checkpoint thread.
//!
//! Other libraries' constructors, and the program's malloc, may have run before and may not have
//! been initialised yet; so nothing of libc is called here. Waiting is left to the checkpoint
//! thread: a program that starts does not wait for its coordinator.

use core::ffi::{CStr, c_char};

use stasis_sys::{memory, process};

use crate::{arch, arena, checkpoint, credentials, interrupted, link, stop, threads, wrappers};

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(i32, *const *const c_char, *const *const c_char) = constructor;

/// glibc gives constructors main's arguments (elf/dl-init.c).
extern "C" fn constructor(_: i32, _: *const *const c_char, environment: *const *const c_char) {
    // SAFETY: this is the constructor.
    unsafe { wrappers::init() };
    if let Some(coordinator) = variable(environment, "STASIS_COORD=")
        && let Err(error) = begin(coordinator)
    {
        warn(error);
    }
}

/// Says that this process runs without a checkpoint thread.
pub fn warn(error: stasis_sys::Errno) {
    let line = path!("stasis: this process cannot be checkpointed: no checkpoint thread: {error}\n");
    let _ = stasis_sys::file::write(2, line.as_c_str().to_bytes());
}

/// The value of an environment variable, given by its name and `=`.
fn variable(mut environment: *const *const c_char, name: &str) -> Option<&'static [u8]> {
    if environment.is_null() {
        return None;
    }
    loop {
        // SAFETY: the environment is a NULL-terminated array of strings (execve(2)).
        let entry = unsafe { environment.read() };
        if entry.is_null() {
            return None;
        }
        // SAFETY: as above.
        if let Some(value) = unsafe { CStr::from_ptr(entry) }.to_bytes().strip_prefix(name.as_bytes()) {
            return Some(value);
        }
        // SAFETY: not the last entry.
        environment = unsafe { environment.add(1) };
    }
}

/// Sets up this process: memory of our own, the stop signal, the checkpoint thread.
fn begin(coordinator: &[u8]) -> stasis_sys::Result<()> {
    link::coordinator::set_address(coordinator);
    arena::init()?;
    threads::init()?;
    interrupted::call::init()?;
    stop::install()?;
    start_thread()
}

/// The child of a fork has its parent's memory but only the thread that forked.
///
/// # Safety
/// Only in the child, before anything else of this library runs there.
pub unsafe fn begin_in_child() {
    if arena::start() == 0 {
        return;
    }
    // SAFETY: the checkpoint thread, whose allocations these were, is not in this process.
    unsafe { arena::reset() };
    checkpoint::forget_inherited();
    if let Err(error) = start_thread() {
        warn(error);
    }
}

/// The checkpoint thread's stack, in bytes: records are built in the arena, directory entries on the
/// stack.
const STACK: usize = 256 << 10;

fn start_thread() -> stasis_sys::Result<()> {
    let stack = checkpoint::stack(STACK)?;
    // Not CLONE_FILES: a descriptor table of its own. Not CLONE_FS: the program's chdir is not ours.
    let flags = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
    let mask = process::sigmask(u64::MAX);
    // SAFETY: the stack is fresh memory, 16-byte aligned at its end.
    let tid = unsafe { arch::clone_thread(flags as usize, stack + STACK, checkpoint::thread) };
    process::sigmask(mask);
    if tid < 0 {
        // SAFETY: the thread that would have used it does not exist.
        let _ = unsafe { memory::unmap(stack, STACK) };
        return Err(stasis_sys::Errno(-tid as i32));
    }
    // Here, not there: the program may change its ids before the thread runs.
    credentials::set_thread(tid as i32);
    Ok(())
}
