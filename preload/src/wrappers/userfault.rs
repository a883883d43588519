//! ioctl(2): a userfaultfd that the program makes for itself comes before the one that watches its memory for
//! checkpoints. The kernel gives a range to one of them only (UFFDIO_REGISTER: EBUSY), so ours gives way, and the range is
//! compared by hash for as long as the program has it.

use core::{
    mem::MaybeUninit,
    sync::atomic::{AtomicI32, Ordering},
};

use stasis_sys::{file, file::Fd, process, userfaultfd};

use super::{fill, finish, given, wrap};
use crate::{credentials, interrupted::call::Call, lazy};

/// The userfaultfd that watches, in the checkpoint thread's table; -1: none.
static WATCHING: AtomicI32 = AtomicI32::new(-1);

/// To be told whenever another one watches.
pub fn set_watching(uffd: Fd) {
    WATCHING.store(uffd, Ordering::Release);
}

extern "C" fn prepare_ioctl(call: &mut MaybeUninit<Call>) {
    let [fd, request, argument, ..] = given(call);
    fill(call, libc::SYS_ioctl, [fd, request, argument, 0, 0, 0]);
}

extern "C" fn finish_ioctl(call: &mut Call) -> isize {
    let [fd, request, argument, ..] = call.arguments;
    if call.result == -i64::from(libc::EBUSY)
        && request == userfaultfd::UFFDIO_REGISTER
        && give_way(argument as usize)
    {
        // SAFETY: the program's own call once more.
        call.result = unsafe {
            stasis_sys::raw(libc::SYS_ioctl, [fd as usize, request as usize, argument as usize, 0, 0, 0])
        } as i64;
    }
    finish(call)
}

wrap!(
    /// ioctl(2).
    ioctl, prepare_ioctl, finish_ioctl
);

/// Lets go of the range that a struct uffdio_register begins with.
fn give_way(argument: usize) -> bool {
    let uffd = WATCHING.load(Ordering::Acquire);
    let mut range = [0u8; 16];
    if uffd < 0 || process::read_memory(argument, &mut range) != Ok(range.len()) {
        return false;
    }
    // Kernels that let one userfaultfd take a range off another would do it to a pager's, too: what had not arrived by then
    // would be zeros.
    lazy::await_all();
    // A thread's own table of descriptors can be reached since Linux 6.9.
    const PIDFD_THREAD: u32 = libc::O_EXCL as u32;
    let Ok(pidfd) = process::pidfd_open(credentials::thread(), PIDFD_THREAD) else { return false };
    let duplicate = process::pidfd_getfd(pidfd, uffd);
    let _ = file::close(pidfd);
    let Ok(duplicate) = duplicate else { return false };
    let (start, len) = range.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
    let left = userfaultfd::unregister(duplicate, number(start), number(len));
    let _ = file::close(duplicate);
    left.is_ok()
}
