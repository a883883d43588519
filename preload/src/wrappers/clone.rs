//! clone(3): a child with memory of its own is one like fork(3)'s. One that shares the memory has nothing of its own that could
//! be checkpointed; the coordinator refuses it.

use core::{
    ffi::c_void,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{exit, next, raw::shares_memory, returned};
use crate::{births::Birth, fork, lazy, start};

type Routine = unsafe extern "C" fn(*mut c_void) -> i32;
type Next = unsafe extern "C" fn(
    Option<Routine>,
    *mut c_void,
    i32,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
) -> i32;

/// The next definition; 0 before it was looked for.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Finds what this stands in front of.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    // SAFETY: the caller's promise.
    if let Some(next) = unsafe { next::find(c"clone") } {
        NEXT.store(next.address, Ordering::Release);
    }
}

/// What a child is to do. It has the memory in which its parent has written this.
struct Child {
    routine: Routine,
    argument: *mut c_void,
    birth: Birth,
}

unsafe extern "C" fn begin(child: *mut c_void) -> i32 {
    // SAFETY: the child's copy of what `clone` made, which nobody else takes.
    let Child { routine, argument, birth } = unsafe { child.cast::<Child>().read() };
    // SAFETY: in the child, first of all.
    unsafe { start::begin_in_child() };
    fork::tell(birth, 0);
    // SAFETY: the caller's routine.
    let code = unsafe { routine(argument) };
    // glibc ends the thread only, and the checkpoint thread would stay (sysdeps/unix/sysv/linux/x86_64/clone.S).
    exit::now(code)
}

/// clone(3). The last three arguments are there if the flags ask for them.
///
/// # Safety
/// clone(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clone(
    routine: Option<Routine>,
    stack: *mut c_void,
    flags: i32,
    argument: *mut c_void,
    parent_tid: *mut c_void,
    tls: *mut c_void,
    child_tid: *mut c_void,
) -> i32 {
    let mut address = NEXT.load(Ordering::Acquire);
    if address == 0 {
        // SAFETY: before our constructor has run, while the program is being loaded.
        address = unsafe { next::find(c"clone") }.map_or(0, |next| next.address);
    }
    if address == 0 {
        return returned(-(libc::ENOSYS as isize)) as i32;
    }
    // SAFETY: a function of this type, by its name.
    let clone: Next = unsafe { core::mem::transmute(address) };
    let Some(own) = routine.filter(|_| !shares_memory(flags as u32 as u64) && !stack.is_null()) else {
        // SAFETY: the caller's call.
        return unsafe { clone(routine, stack, flags, argument, parent_tid, tls, child_tid) };
    };
    lazy::await_all();
    let mut child = Child { routine: own, argument, birth: Birth::announce() };
    let argument = (&raw mut child).cast();
    // SAFETY: the caller's call; the child has this frame in its copy of the memory.
    let pid = unsafe { clone(Some(begin), stack, flags, argument, parent_tid, tls, child_tid) };
    fork::tell(child.birth, pid);
    pid
}

/// glibc's other name for it.
///
/// # Safety
/// clone(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __clone(
    routine: Option<Routine>,
    stack: *mut c_void,
    flags: i32,
    argument: *mut c_void,
    parent_tid: *mut c_void,
    tls: *mut c_void,
    child_tid: *mut c_void,
) -> i32 {
    // SAFETY: the caller's call.
    unsafe { clone(routine, stack, flags, argument, parent_tid, tls, child_tid) }
}
