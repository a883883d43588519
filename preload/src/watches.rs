//! The paths that the program watches by inotify(7): the kernel remembers only inodes.
//!
//! Called in the program's threads: no allocation. The table is memory of its own, which is replaced by a larger one when it
//! is full; what leads elsewhere by then is left out. Signals are blocked while somebody is at it, the stop signal too: no
//! thread stands still there. A path that does not find room is one that a checkpoint names in a refusal.

use alloc::string::String;
use core::{
    ffi::{CStr, c_char},
    ops::Range,
    slice,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering, compiler_fence},
};

use stasis_sys::{file, memory, process};

use crate::procfs;

/// PATH_MAX, NUL included.
const LONGEST: usize = libc::PATH_MAX as usize;
const FEWEST: usize = 256;
const LEAST_TEXT: usize = 4 * LONGEST;

/// The table's address; 0: nothing was ever watched.
static TABLE: AtomicUsize = AtomicUsize::new(0);

/// 1: somebody is at it.
static LOCK: AtomicU32 = AtomicU32::new(0);

/// The right to use the table.
struct Held {
    mask: u64,
}

impl Held {
    /// `None` where it is not to be had: in a child that was made while another thread had it, by a call that we do not see.
    fn take() -> Option<Self> {
        const ATTEMPTS: u32 = 1 << 16;
        let mask = process::sigmask(u64::MAX);
        for _ in 0..ATTEMPTS {
            if LOCK.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(Self { mask });
            }
            process::give_way();
        }
        process::sigmask(mask);
        None
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        LOCK.store(0, Ordering::Release);
        process::sigmask(self.mask);
    }
}

/// Whether anything was ever watched.
pub fn has_any() -> bool {
    TABLE.load(Ordering::Relaxed) != 0
}

/// In the child of a fork(2): who was at it is not here. The table is whole at any moment.
pub fn begin_in_child() {
    LOCK.store(0, Ordering::Release);
}

#[repr(C)]
struct Header {
    /// Of the mapping, in bytes.
    len: usize,
    /// How many entries there is room for, a power of two.
    capacity: usize,
    taken: usize,
    /// How much of the text is taken.
    written: usize,
}

/// A path, and where it led when it was watched.
#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    device: u64,
    inode: u64,
    start: usize,
    /// Of the path, NUL included; 0: a free entry.
    len: usize,
}

struct Table {
    header: &'static mut Header,
    /// By device and inode, with open addressing.
    entries: &'static mut [Entry],
    text: &'static mut [u8],
}

impl Table {
    /// The one that is in use.
    fn current(_: &Held) -> Option<Self> {
        let address = TABLE.load(Ordering::Acquire);
        // SAFETY: it was made by `make`; who holds the lock has it for itself.
        (address != 0).then(|| unsafe { Self::at(address) })
    }

    /// # Safety
    /// A header is there, and nobody else uses what it describes.
    unsafe fn at(address: usize) -> Self {
        let header = address as *mut Header;
        // SAFETY: header, entries and text lie one behind the other in the mapping.
        unsafe {
            let entries = header.add(1).cast::<Entry>();
            let text = entries.add((*header).capacity);
            let text_len = (address + (*header).len).saturating_sub(text as usize);
            Self {
                entries: slice::from_raw_parts_mut(entries, (*header).capacity),
                text: slice::from_raw_parts_mut(text.cast(), text_len),
                header: &mut *header,
            }
        }
    }

    fn make(capacity: usize, text: usize) -> Option<Self> {
        let len = size_of::<Header>() + capacity * size_of::<Entry>() + text;
        let address = memory::map_anonymous(len, 0).ok()?;
        // SAFETY: the mapping is new, and zeros are free entries.
        unsafe {
            (address as *mut Header).write(Header { len, capacity, taken: 0, written: 0 });
            Some(Self::at(address))
        }
    }

    fn has_room(&self, text: usize) -> bool {
        self.header.taken < self.entries.len() / 2 && self.text.len() - self.header.written >= text
    }

    /// One with room for another path that takes at most `text` bytes, in the place of this one.
    fn grown(self, text: usize) -> Option<Self> {
        let there =
            |entry: &&Entry| self.path(entry).is_some_and(|path| leads_to(path, entry.device, entry.inode));
        let (count, bytes) = self
            .entries
            .iter()
            .filter(there)
            .fold((1usize, text), |(count, bytes), entry| (count + 1, bytes + entry.len));
        let mut larger =
            Self::make((4 * count).next_power_of_two().max(FEWEST), (2 * bytes).max(LEAST_TEXT))?;
        for entry in self.entries.iter().filter(there) {
            let path = self.text.get(entry.start..entry.start + entry.len)?;
            let room = larger.header.written..larger.header.written + path.len();
            larger.text.get_mut(room.clone())?.copy_from_slice(path);
            larger.insert(entry.device, entry.inode, room);
        }
        let (old, len) = (&raw const *self.header as usize, self.header.len);
        TABLE.store(&raw const *larger.header as usize, Ordering::Release);
        // SAFETY: nobody uses it any more.
        let _ = unsafe { memory::unmap(old, len) };
        Some(larger)
    }

    /// The entries at and behind the place of an inode, up to the first free one: their indices.
    fn chain(&self, device: u64, inode: u64) -> impl Iterator<Item = usize> {
        let mask = self.entries.len() - 1;
        let hash = (device ^ inode.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (0..=mask).map(move |step| (hash as usize + step) & mask)
    }

    fn path(&self, entry: &Entry) -> Option<&CStr> {
        CStr::from_bytes_until_nul(self.text.get(entry.start..entry.start + entry.len)?).ok()
    }

    /// The paths that led to an inode.
    fn paths(&self, device: u64, inode: u64) -> impl Iterator<Item = &CStr> {
        self.chain(device, inode)
            .map(|index| &self.entries[index])
            .take_while(|entry| entry.len != 0)
            .filter(move |entry| (entry.device, entry.inode) == (device, inode))
            .filter_map(|entry| self.path(entry))
    }

    /// Adds what is written in the text at `place`, behind all that is taken.
    fn insert(&mut self, device: u64, inode: u64, place: Range<usize>) {
        let Some(free) = self.chain(device, inode).find(|&index| self.entries[index].len == 0) else {
            return;
        };
        self.header.written = place.end;
        self.header.taken += 1;
        let entry = &mut self.entries[free];
        (entry.device, entry.inode, entry.start) = (device, inode, place.start);
        // The child of a fork(2) in another thread sees all of an entry, or none.
        compiler_fence(Ordering::Release);
        entry.len = place.len();
    }
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
    remember(unsafe { CStr::from_ptr(path) }.to_bytes(), mask & libc::IN_DONT_FOLLOW == 0);
    result as i32
}

/// Notes a path that is watched; `follows`: what a link leads to is, not the link.
fn remember(path: &[u8], follows: bool) {
    let Some(held) = Held::take() else { return };
    let text = if path.starts_with(b"/") { path.len() + 1 } else { 2 * LONGEST };
    let table = match Table::current(&held) {
        Some(table) if table.has_room(text) => Some(table),
        Some(table) => table.grown(text),
        None => Table::make(FEWEST, LEAST_TEXT)
            .inspect(|table| TABLE.store(&raw const *table.header as usize, Ordering::Release)),
    };
    let Some(mut table) = table else { return };
    let start = table.header.written;
    let Some(len) = table.text.get_mut(start..).and_then(|room| make_absolute(path, room)) else { return };
    let entry = Entry { device: 0, inode: 0, start, len };
    let Some(path) = table.path(&entry) else { return };
    let Ok(stat) = (if follows { file::stat(path) } else { file::lstat(path) }) else { return };
    if table.paths(stat.st_dev, stat.st_ino).all(|known| known != path) {
        table.insert(stat.st_dev, stat.st_ino, start..start + len);
    }
}

/// `path` behind the working directory if it is relative, with a NUL: its length; `None` where it finds no room, or is too
/// long to be watched again.
fn make_absolute(path: &[u8], room: &mut [u8]) -> Option<usize> {
    let mut len = 0;
    if !path.starts_with(b"/") {
        let arguments = [room.as_mut_ptr() as usize, room.len(), 0, 0, 0, 0];
        // SAFETY: getcwd(2) writes at most the given length, NUL included, and tells how many bytes.
        let written = unsafe { stasis_sys::raw(libc::SYS_getcwd, arguments) };
        len = usize::try_from(written).ok()?.checked_sub(1)?;
        // "(unreachable)" otherwise.
        if room.first() != Some(&b'/') {
            return None;
        }
        *room.get_mut(len)? = b'/';
        len += 1;
    }
    let end = len + path.len();
    room.get_mut(len..end)?.copy_from_slice(path);
    *room.get_mut(end)? = 0;
    (end < LONGEST).then_some(end + 1)
}

/// A link that is itself watched (IN_DONT_FOLLOW) is not followed.
fn leads_to(path: &CStr, device: u64, inode: u64) -> bool {
    let mut found = [file::stat(path), file::lstat(path)].into_iter().flatten();
    found.any(|stat| stat.st_ino == inode && stat.st_dev == device)
}

/// The path that was watched and leads to this inode now.
pub fn path_of(inode: u64, device: u64) -> Option<String> {
    by_call(inode, device).or_else(|| {
        // A program that was executed by another inherits watches that it did not add; often of where it runs.
        procfs::link(path!("/proc/self/task/{}/cwd", crate::snapshot::subject()).as_c_str())
            .ok()
            .filter(|cwd| procfs::stat(cwd).is_ok_and(|stat| stat.st_ino == inode && stat.st_dev == device))
            .and_then(|cwd| String::from_utf8(cwd).ok())
    })
}

fn by_call(inode: u64, device: u64) -> Option<String> {
    let held = Held::take()?;
    let table = Table::current(&held)?;
    let mut paths = table.paths(device, inode).filter(|path| leads_to(path, device, inode));
    paths.find_map(|path| path.to_str().ok()).map(Into::into)
}
