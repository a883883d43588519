//! System V shared memory, semaphores and message queues (sysvipc(7)).

use crate::{Result, call::call};

fn stat<T>(nr: i64, id: i32, position: usize) -> Result<T> {
    // SAFETY: the structures of IPC_STAT are plain numbers.
    let mut found: T = unsafe { core::mem::zeroed() };
    let mut arguments = [id as usize, 0, 0, 0, 0, 0];
    arguments[position - 1] = libc::IPC_STAT as usize;
    arguments[position] = &raw mut found as usize;
    // SAFETY: the kernel fills in the structure of this kind of object.
    unsafe { call(nr, arguments) }?;
    Ok(found)
}

pub fn shm_stat(id: i32) -> Result<libc::shmid_ds> {
    stat(libc::SYS_shmctl, id, 2)
}

pub fn sem_stat(id: i32) -> Result<libc::semid_ds> {
    stat(libc::SYS_semctl, id, 3)
}

pub fn msg_stat(id: i32) -> Result<libc::msqid_ds> {
    stat(libc::SYS_msgctl, id, 2)
}

/// Attaches a segment for reading, where there is room.
pub fn attach(id: i32) -> Result<usize> {
    // SAFETY: a new mapping where the kernel finds room.
    unsafe { call(libc::SYS_shmat, [id as usize, 0, libc::SHM_RDONLY as usize, 0, 0, 0]) }
}

/// # Safety
/// Nobody uses the segment there any more.
pub unsafe fn detach(address: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_shmdt, [address, 0, 0, 0, 0, 0]) }.map(drop)
}

/// The values of all semaphores of a set, of which there are as many as `values` is long.
pub fn sem_values(id: i32, values: &mut [u16]) -> Result<()> {
    const GETALL: usize = 13;
    // SAFETY: the kernel writes as many as the set has, which never changes.
    unsafe { call(libc::SYS_semctl, [id as usize, 0, GETALL, values.as_mut_ptr() as usize, 0, 0]) }.map(drop)
}

/// The process that has used a semaphore last.
pub fn sem_user(id: i32, number: usize) -> Result<i32> {
    const GETPID: usize = 11;
    // SAFETY: numbers.
    unsafe { call(libc::SYS_semctl, [id as usize, number, GETPID, 0, 0, 0]) }.map(|pid| pid as i32)
}

/// semop(2) with one operation.
pub fn sem_op(id: i32, number: u16, operation: i16, flags: i16) -> Result<()> {
    let one = libc::sembuf { sem_num: number, sem_op: operation, sem_flg: flags };
    // SAFETY: reads one operation.
    unsafe { call(libc::SYS_semop, [id as usize, &raw const one as usize, 1, 0, 0, 0]) }.map(drop)
}

/// Copies the message at this place in a queue, which keeps it (MSG_COPY): its type comes before its text. The text's
/// length.
///
/// # Errors
/// ENOMSG: there are not as many. ENOSYS: a kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn msg_copy(id: i32, place: usize, message: &mut [u8]) -> Result<usize> {
    const MSG_COPY: i32 = 0o40000;
    let flags = (MSG_COPY | libc::IPC_NOWAIT) as usize;
    let room = message.len() - size_of::<i64>();
    // SAFETY: writes a word and at most as much text as there is room.
    unsafe { call(libc::SYS_msgrcv, [id as usize, message.as_mut_ptr() as usize, room, place, flags, 0]) }
}
