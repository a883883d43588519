//! The child of a fork gets a checkpoint thread of its own.

use crate::{lazy, start};

unsafe extern "C" {
    /// glibc's own name for fork(3), exported beside it and interposed by nobody.
    fn __fork() -> i32;
}

/// fork(3).
///
/// # Safety
/// fork(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fork() -> i32 {
    lazy::await_all();
    // SAFETY: the caller's call.
    let pid = unsafe { __fork() };
    if pid == 0 {
        // SAFETY: in the child, first of all.
        unsafe { start::begin_in_child() };
    }
    pid
}
