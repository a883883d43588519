//! The constructor: from a program that has just been loaded to one with a checkpoint thread.
//!
//! Other libraries' constructors, and the program's malloc, may have run before and may not have
//! been initialised yet; so nothing of libc is called here. The process introduces itself before the
//! program runs, so that a checkpoint that is asked for from then on finds it, even if a signal stops
//! all its threads at once. Waiting is left to the checkpoint thread: a program that starts does not
//! wait for its coordinator.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_char},
};

use stasis_sys::{
    file::{self, Fd},
    memory, process,
};

use crate::{
    arch, arena, births, checkpoint, confined, contagion, credentials, dormant, fork, interrupted, lazy,
    link, memory_policy, snapshot, stacks, state, stop, system_v, threads, unread_events, watches, wrappers,
};

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(i32, *const *const c_char, *const *const c_char) = constructor;

/// glibc gives constructors main's arguments (elf/dl-init.c).
extern "C" fn constructor(_: i32, _: *const *const c_char, environment: *const *const c_char) {
    // SAFETY: this is the constructor.
    unsafe { wrappers::init() };
    // SAFETY: as above.
    unsafe { contagion::remember(environment) };
    // Blocked by who executed this program: it must not be ended by a stop signal that was meant for the one before.
    let mask = process::block(stop::SET);
    while process::take_pending(stop::SET).is_some() {}
    remember_disabled(variable(environment, "STASIS_DISABLE=").unwrap_or_default());
    if let Some(coordinator) = variable(environment, "STASIS_COORD=")
        && !snapshot::is_command(process::getpid() as u64)
        && !arch::is_interpreted()
    {
        if let Err(error) = begin(coordinator) {
            warn(error);
        }
        // SAFETY: this is the constructor.
        if unsafe { wrappers::lead_execve() } {
            // SAFETY: as above.
            unsafe { contagion::show_theirs() };
        }
    }
    state::set_started();
    // Not before: a checkpoint that comes meanwhile waits for that.
    process::sigmask(mask & !stop::SET);
}

/// What STASIS_DISABLE names: the program may write over its environment.
struct Disabled(UnsafeCell<([u8; 128], usize)>);

// SAFETY: written by the constructor, before there is a checkpoint thread to read it.
unsafe impl Sync for Disabled {}

static DISABLED: Disabled = Disabled(UnsafeCell::new(([0; 128], 0)));

fn remember_disabled(names: &[u8]) {
    // SAFETY: see `Disabled`.
    let (bytes, len) = unsafe { &mut *DISABLED.0.get() };
    *len = names.len().min(bytes.len());
    bytes[..*len].copy_from_slice(&names[..*len]);
}

/// Whether STASIS_DISABLE, names with commas between, names this part.
pub fn is_disabled(part: &str) -> bool {
    // SAFETY: see `Disabled`.
    let (bytes, len) = unsafe { &*DISABLED.0.get() };
    bytes[..*len].split(|&byte| byte == b',').any(|name| name == part.as_bytes())
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
    snapshot::note_filters();
    memory_policy::look();
    // SAFETY: nobody is stopped yet.
    unsafe { threads::clear(1)? };
    stacks::provide(1);
    interrupted::call::provide(1)?;
    stop::install()?;
    births::open();
    dormant::begin_awake();
    // SAFETY: in the constructor.
    unsafe { fork::init() };
    // Where nobody listens, or is too busy, the checkpoint thread tries again.
    let announced = link::coordinator::announce().ok();
    let started = start_thread(announced);
    if let Some(socket) = announced {
        let _ = file::close(socket);
    }
    started
}

/// The child of a fork has its parent's memory but only the thread that forked.
///
/// # Safety
/// Only in the child, before anything else of this library runs there.
pub unsafe fn begin_in_child() {
    if arena::start() == 0 || !dormant::is_to_begin() {
        return;
    }
    // SAFETY: the checkpoint thread, whose allocations these were, is not in this process.
    unsafe { arena::forget() };
    checkpoint::forget_inherited();
    system_v::forget_own_undo();
    wrappers::notify::forget();
    unread_events::forget();
    confined::forget();
    lazy::forget();
    state::forget_inherited();
    stacks::forget_inherited();
    watches::begin_in_child();
    dormant::begin();
    wrappers::threads::begin_in_child();
}

/// The checkpoint thread's stack, in bytes: records are built in the arena, directory entries on the
/// stack.
const STACK: usize = 256 << 10;

/// Makes the checkpoint thread. `announced`: a connection to the coordinator, of which the new thread gets a duplicate.
pub fn start_thread(announced: Option<Fd>) -> stasis_sys::Result<()> {
    checkpoint::set_announced(announced);
    let stack = checkpoint::stack(STACK)?;
    // Not CLONE_FILES: a descriptor table of its own. Not CLONE_FS: the program's chdir is not ours.
    let flags = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
    let mask = process::sigmask(u64::MAX);
    // The new thread has its name from its first moment on: the coordinator tells it from the program's by it, even
    // if a signal stops it before it ran.
    let name = checkpoint::take_name();
    // SAFETY: the stack is fresh memory, 16-byte aligned at its end.
    let tid = unsafe { arch::clone_thread(flags as usize, stack + STACK, checkpoint::thread) };
    checkpoint::give_back_name(name);
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
