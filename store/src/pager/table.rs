//! The table of pages that a pager shares with its process ([`stasis_protocol::pager`]): three bits for each page of the
//! address space, in memory that exists only where a bit was ever set.

use std::{
    io,
    num::NonZero,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap, munmap},
        resource::{Resource, getrlimit},
    },
    unistd::{Whence, ftruncate, lseek},
};
use stasis_protocol::pager::{COMPLETE, HURRY, LEN, Map, PAGES, TOLD_BY_ONE};

/// Pages of a range: from the first to the one behind the last.
pub type Pages = std::ops::Range<u64>;

pub struct Table {
    memfd: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: all access is by atomic words.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

const MAPPED: NonZero<usize> = NonZero::new(LEN as usize).unwrap();

impl Table {
    /// An empty table.
    ///
    /// # Errors
    /// The user may make no file of this length, or there is no address space for it.
    pub fn make() -> io::Result<Self> {
        // Beyond the limit ftruncate(2) would raise SIGXFSZ.
        let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
        if limit < LEN {
            return Err(io::Error::other("the limit on the size of files (ulimit -f) is too low"));
        }
        let memfd = memfd_create("stasis-pages", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&memfd, LEN as i64)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping, where the kernel finds room.
        let base = unsafe { mmap(None, MAPPED, protection, flags, &memfd, 0) }?.cast();
        Ok(Self { memfd, base })
    }

    fn word(&self, map: Map, page: u64) -> &AtomicU64 {
        assert!(page < PAGES, "no page of the address space");
        // SAFETY: inside the mapping, aligned, and only used as an atomic word.
        unsafe { &*self.base.as_ptr().add(map.offset(page) as usize).cast::<AtomicU64>() }
    }

    pub fn get(&self, map: Map, page: u64) -> bool {
        page < PAGES && self.word(map, page).load(Ordering::Acquire) >> (page % 64) & 1 != 0
    }

    /// Sets bits.
    pub fn set(&self, map: Map, pages: Pages) {
        each_word(pages, |page, mask| {
            self.word(map, page).fetch_or(mask, Ordering::AcqRel);
        });
    }

    /// Clears bits; how many were set.
    pub fn clear(&self, map: Map, pages: Pages) -> u64 {
        let mut cleared = 0;
        let mut at = pages.start;
        // Most of what is unmapped was never in the table: its words are not to come into being.
        while let Some(run) = self.run(map, at..pages.end) {
            at = run.end;
            each_word(run, |page, mask| {
                let before = self.word(map, page).fetch_and(!mask, Ordering::AcqRel);
                cleared += u64::from((before & mask).count_ones());
            });
        }
        cleared
    }

    /// Sets the bits of one map where another has them.
    pub fn set_where(&self, map: Map, other: Map, pages: Pages) {
        let mut at = pages.start;
        while let Some(run) = self.run(other, at..pages.end) {
            at = run.end;
            self.set(map, run);
        }
    }

    /// The first run of set bits in a range.
    pub fn run(&self, map: Map, pages: Pages) -> Option<Pages> {
        let start = self.next(map, pages.clone(), true)?;
        let end = self.next(map, start..pages.end, false).unwrap_or(pages.end);
        Some(start..end)
    }

    /// The first page of a range whose bit is `set`. What there is not of the table has none, and does not come into being: a program
    /// may have reserved terabytes, and a mapping of a file in memory has a page for whoever reads it.
    fn next(&self, map: Map, pages: Pages, set: bool) -> Option<u64> {
        let end = pages.end.min(PAGES);
        let mut at = pages.start;
        while at < end {
            let is_far = end - at > TOLD_BY_ONE;
            if set && is_far && (at == pages.start || at.is_multiple_of(TOLD_BY_ONE)) {
                at = self.existing(map, at, end)?;
            }
            let word = self.word(map, at).load(Ordering::Acquire);
            let bits = if set { word } else { !word } >> (at % 64);
            if bits != 0 {
                return Some(at + u64::from(bits.trailing_zeros())).filter(|&found| found < end);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// The first page from `at` on, and before `end`, of which there is a word in the table.
    fn existing(&self, map: Map, at: u64, end: u64) -> Option<u64> {
        let found = match lseek(self.memfd.as_fd(), map.offset(at) as i64, Whence::SeekData) {
            Ok(data) => at.max(map.page(data as u64)),
            Err(Errno::ENXIO) => return None,
            // It is looked at then.
            Err(_) => at,
        };
        (found < end).then_some(found)
    }

    fn header(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: inside the mapping, aligned, and only used as an atomic word.
        unsafe { &*self.base.as_ptr().add(offset as usize).cast::<AtomicU32>() }
    }

    /// Waits until the process waits for all pages.
    pub fn await_hurry(&self) {
        let word = self.header(HURRY);
        while word.load(Ordering::Acquire) == 0 {
            // SAFETY: only the address is used, and compared.
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 0, 0, 0, 0) };
        }
    }

    /// Says that all pages are in, to those who wait.
    pub fn complete(&self) {
        let word = self.header(COMPLETE);
        word.store(1, Ordering::Release);
        // SAFETY: only the address is used.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0) };
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: nobody borrows from it any more.
        let _ = unsafe { munmap(self.base.cast(), MAPPED.get()) };
    }
}

/// Calls `visit` with a page of each word that a range touches and the range's bits in it.
fn each_word(pages: Pages, mut visit: impl FnMut(u64, u64)) {
    let end = pages.end.min(PAGES);
    let mut at = pages.start;
    while at < end {
        let next = ((at / 64 + 1) * 64).min(end);
        visit(at, u64::MAX >> (64 - (next - at)) << (at % 64));
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_cleared_and_found_in_runs() {
        let table = Table::make().unwrap();
        assert_eq!(table.run(Map::Absent, 0..1_000_000), None);
        table.set(Map::Absent, 60..200);
        table.set(Map::Absent, 300..301);
        assert_eq!(table.run(Map::Absent, 0..1_000_000), Some(60..200));
        assert_eq!(table.run(Map::Absent, 100..150), Some(100..150));
        assert_eq!(table.run(Map::Absent, 200..1_000), Some(300..301));
        assert_eq!(table.run(Map::Removed, 0..1_000), None);
        assert_eq!(table.clear(Map::Absent, 64..128), 64);
        assert_eq!(table.clear(Map::Absent, 0..128), 4);
        assert_eq!(table.run(Map::Absent, 0..1_000), Some(128..200));
        assert!(table.get(Map::Absent, 199) && !table.get(Map::Absent, 200));
        table.set(Map::Stored, PAGES - 64..PAGES);
        assert_eq!(table.run(Map::Stored, 0..PAGES), Some(PAGES - 64..PAGES));
        assert_eq!(table.run(Map::Stored, PAGES - 100..PAGES), Some(PAGES - 64..PAGES));
        table.set_where(Map::Removed, Map::Stored, 0..PAGES - 32);
        assert_eq!(table.run(Map::Removed, 0..PAGES), Some(PAGES - 64..PAGES - 32));
    }

    #[test]
    fn what_there_is_not_of_it_does_not_come_into_being() {
        let table = Table::make().unwrap();
        table.set(Map::Absent, 1 << 30..(1 << 30) + 10);
        let blocks = || nix::sys::stat::fstat(&table).unwrap().st_blocks;
        let before = blocks();
        assert_eq!(table.run(Map::Absent, 0..PAGES), Some(1 << 30..(1 << 30) + 10));
        assert_eq!(table.clear(Map::Absent, 5..PAGES), 10);
        table.set_where(Map::Removed, Map::Stored, 0..PAGES);
        assert_eq!(table.run(Map::Absent, 7..PAGES), None);
        assert_eq!(blocks(), before);
    }
}
