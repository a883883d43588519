//! System V objects: who has been given which id is nowhere in the kernel, nor is what SEM_UNDO would undo.

use core::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
};

use stasis_protocol::births::Kind;

use super::{fill, finish, given, now, returned, wrap};
use crate::{interrupted::call::Call, system_v};

/// Makes one of the calls that give an id, by its number.
///
/// # Safety
/// The system call's.
pub unsafe fn get(nr: i64, arguments: [usize; 3]) -> isize {
    let kind = match nr {
        libc::SYS_shmget => Kind::Segment,
        libc::SYS_semget => Kind::Semaphores,
        _ => Kind::Messages,
    };
    let [a, b, c] = arguments;
    // SAFETY: the caller's promise.
    let result = unsafe { stasis_sys::raw(nr, [a, b, c, 0, 0, 0]) };
    if result >= 0 {
        system_v::note(kind, result as i32);
    }
    returned(result)
}

/// shmget(2).
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shmget(key: c_int, size: usize, flags: c_int) -> c_int {
    // SAFETY: three numbers.
    unsafe { get(libc::SYS_shmget, [key as usize, size, flags as usize]) as c_int }
}

/// semget(2).
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn semget(key: c_int, count: c_int, flags: c_int) -> c_int {
    // SAFETY: three numbers.
    unsafe { get(libc::SYS_semget, [key as usize, count as usize, flags as usize]) as c_int }
}

/// msgget(2).
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn msgget(key: c_int, flags: c_int) -> c_int {
    // SAFETY: two numbers.
    unsafe { get(libc::SYS_msgget, [key as usize, flags as usize, 0]) as c_int }
}

/// semctl(2), whose fourth argument is a word where there is one.
///
/// # Safety
/// The function's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn semctl(set: c_int, number: c_int, command: c_int, argument: *mut c_void) -> c_int {
    const SETVAL: c_int = 16;
    const SETALL: c_int = 17;
    let arguments = [set as usize, number as usize, command as usize, argument as usize, 0, 0];
    // SAFETY: the caller's promise.
    let result = unsafe { stasis_sys::raw(libc::SYS_semctl, arguments) };
    if result >= 0 {
        match command {
            SETVAL => system_v::forget_set(set, Some(number as u16)),
            SETALL | libc::IPC_RMID => system_v::forget_set(set, None),
            _ => {}
        }
    }
    returned(result) as c_int
}

/// Notes what the process' end undoes of operations that were done.
unsafe extern "C" fn finish_semop(call: &mut Call) -> isize {
    if call.result == 0 {
        let (operations, count) = (call.arguments[1] as *const libc::sembuf, call.arguments[2] as usize);
        // SAFETY: the caller's array, which the kernel has read.
        for operation in unsafe { core::slice::from_raw_parts(operations, count) } {
            if i32::from(operation.sem_flg) & libc::SEM_UNDO != 0 {
                system_v::adjust(call.arguments[0] as i32, operation.sem_num, -i32::from(operation.sem_op));
            }
        }
    }
    finish(call)
}

extern "C" fn prepare_semop(call: &mut MaybeUninit<Call>) {
    let [set, operations, count, ..] = given(call);
    // Not a cancellation point.
    fill(call, libc::SYS_semop, [set, operations, count, 0, 0, 0]);
}

wrap!(
    /// semop(2).
    semop, prepare_semop, finish_semop
);

extern "C" fn prepare_semtimedop(call: &mut MaybeUninit<Call>) {
    let [set, operations, count, timeout, ..] = given(call);
    // Not a cancellation point.
    let call = fill(call, libc::SYS_semtimedop, [set, operations, count, timeout, 0, 0]);
    if timeout != 0 {
        call.started = now();
    }
}

wrap!(
    /// semtimedop(2).
    semtimedop, prepare_semtimedop, finish_semop
);
