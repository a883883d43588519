//! The paths that the program watches by inotify(7): the kernel remembers only inodes.
//!
//! Called in the program's threads: no allocation, no lock that the checkpoint thread takes. A path that does not
//! find room is one that a checkpoint names in a refusal.

use alloc::string::String;
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_char},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use stasis_sys::{file, process};

use crate::procfs;

const LONGEST: usize = 256;
const SLOTS: usize = 1024;

/// How far a slot is: only a [`READY`] one is read, and it never changes again.
const FREE: u32 = 0;
const WRITING: u32 = 1;
const READY: u32 = 2;

struct Slot {
    state: AtomicU32,
    /// Absolute, NUL-terminated.
    path: UnsafeCell<[u8; LONGEST]>,
}

// SAFETY: `path` is written by the thread that took the slot from FREE to WRITING, and read after READY.
unsafe impl Sync for Slot {}

static PATHS: [Slot; SLOTS] =
    [const { Slot { state: AtomicU32::new(FREE), path: UnsafeCell::new([0; LONGEST]) } }; SLOTS];

/// How many slots were ever taken: the search ends there.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Slot {
    fn path(&self) -> Option<&CStr> {
        if self.state.load(Ordering::Acquire) != READY {
            return None;
        }
        // SAFETY: READY slots are not written to.
        CStr::from_bytes_until_nul(unsafe { &*self.path.get() }).ok()
    }
}

fn taken() -> &'static [Slot] {
    &PATHS[..TAKEN.load(Ordering::Acquire).min(SLOTS)]
}

/// inotify_add_watch(3).
///
/// # Safety
/// inotify_add_watch(2)'s: `path` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inotify_add_watch(fd: i32, path: *const c_char, mask: u32) -> i32 {
    unsafe extern "C" {
        fn __errno_location() -> *mut i32;
    }
    let arguments = [fd as usize, path as usize, mask as usize, 0, 0, 0];
    // SAFETY: the caller's call.
    let result = unsafe { stasis_sys::raw(libc::SYS_inotify_add_watch, arguments) };
    if result < 0 {
        // SAFETY: glibc gives every thread's errno; it neither fails nor allocates.
        unsafe { *__errno_location() = -result as i32 };
        return -1;
    }
    // SAFETY: the kernel has read it as a string.
    remember(unsafe { CStr::from_ptr(path) }.to_bytes());
    result as i32
}

fn remember(path: &[u8]) {
    let mut absolute = [0u8; LONGEST];
    let Some(absolute) = make_absolute(path, &mut absolute) else { return };
    if taken().iter().any(|slot| slot.path().is_some_and(|known| known.to_bytes() == absolute)) {
        return;
    }
    let Some(slot) = PATHS.get(TAKEN.fetch_add(1, Ordering::AcqRel)) else {
        TAKEN.store(SLOTS, Ordering::Release);
        return;
    };
    slot.state.store(WRITING, Ordering::Relaxed);
    // SAFETY: the slot was taken by this thread alone.
    unsafe { (&mut *slot.path.get())[..absolute.len()].copy_from_slice(absolute) };
    slot.state.store(READY, Ordering::Release);
}

/// `path` behind the working directory if it is relative; `None` where there is no room for it and a NUL.
fn make_absolute<'a>(path: &[u8], room: &'a mut [u8; LONGEST]) -> Option<&'a [u8]> {
    let mut len = 0;
    if !path.starts_with(b"/") {
        let arguments = [0, room.len() - 1, 0, 0, 0, 0];
        // SAFETY: getcwd(2) writes at most the given length, NUL included, and tells how many bytes.
        len = unsafe { process::with(libc::SYS_getcwd, arguments, 0, room) }.ok()?.checked_sub(1)?;
        if room[0] != b'/' {
            return None;
        }
        room[len] = b'/';
        len += 1;
    }
    let end = len + path.len();
    if end >= room.len() {
        return None;
    }
    room[len..end].copy_from_slice(path);
    room[end] = 0;
    Some(&room[..end])
}

/// The path that was watched and leads to this inode now.
pub fn path_of(inode: u64, device: u64) -> Option<String> {
    let is_it = |path: &CStr| {
        // A link that is itself watched (IN_DONT_FOLLOW) is not followed.
        [file::stat(path), file::lstat(path)]
            .into_iter()
            .flatten()
            .any(|stat| stat.st_ino == inode && stat.st_dev == device)
    };
    let by_call = taken()
        .iter()
        .filter_map(Slot::path)
        .find(|path| is_it(path))
        .and_then(|path| path.to_str().ok())
        .map(Into::into);
    by_call.or_else(|| {
        // A program that was executed by another inherits watches that it did not add; often of where it runs.
        procfs::link(path!("/proc/self/task/{}/cwd", crate::snapshot::subject()).as_c_str())
            .ok()
            .filter(|cwd| procfs::stat(cwd).is_ok_and(|stat| stat.st_ino == inode && stat.st_dev == device))
            .and_then(|cwd| String::from_utf8(cwd).ok())
    })
}
