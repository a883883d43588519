//! Finding changed pages: which tracker programs started from here will use, found as they do it
//! (preload/src/tracker): the best one that finds a page that was written, and is not named by STASIS_DISABLE.

use std::{
    env,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    ptr,
};

use stasis_protocol::PAGE_SIZE;
use stasis_sys::{
    pagemap::{self, CHECK_WPASYNC, Region, ScanArgument, WP_MATCHING},
    userfaultfd,
};

use super::Finding;

const PAGES: usize = 16;

/// The page that is written between two looks, and the one that is discarded.
const WRITTEN: usize = 5;
const DISCARDED: usize = 2;

const REMEDY: &str =
    "Linux 6.7 or later (with CONFIG_USERFAULTFD) finds changed pages without reading all of them";

pub fn write_tracking() -> Finding {
    let disabled = env::var("STASIS_DISABLE").unwrap_or_default();
    let is_disabled = |name: &str| disabled.split(',').any(|part| part == name);
    let probe = |name: &str, works: fn() -> Result<(), String>| {
        if is_disabled(name) {
            return Err(format!("{name}: STASIS_DISABLE names it"));
        }
        works().map_err(|why| format!("{name}: {why}"))
    };
    let remedy = if is_disabled("wp-async") { "unset STASIS_DISABLE" } else { REMEDY };
    let Err(why) = probe("wp-async", write_protection) else {
        return Finding::Works(
            "wp-async: userfaultfd and PAGEMAP_SCAN found the one page that was written".into(),
        );
    };
    let Err(other) = probe("soft-dirty", soft_dirty) else {
        return Finding::falls(
            format!("soft-dirty: all changed pages are copied while the program stands still ({why})"),
            remedy,
        );
    };
    Finding::falls(format!("hash: every checkpoint reads all memory ({why}; {other})"), remedy)
}

fn named<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// userfaultfd's asynchronous write protection together with PAGEMAP_SCAN (Linux 6.7).
fn write_protection() -> Result<(), String> {
    let uffd = userfaultfd::open(userfaultfd::WP_ASYNC | userfaultfd::WP_UNPOPULATED)
        .map_err(named("userfaultfd with WP_ASYNC"))?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    let uffd = unsafe { OwnedFd::from_raw_fd(uffd) };
    let memory = Memory::map().map_err(named("mmap"))?;
    (0..PAGES).for_each(|page| memory.write(page));
    userfaultfd::register(uffd.as_raw_fd(), memory.start(), memory.end(), userfaultfd::MODE_WP)
        .map_err(named("registering memory with userfaultfd"))?;
    let pagemap = File::open("/proc/self/pagemap").map_err(named("/proc/self/pagemap"))?;
    scan(&pagemap, &memory).map_err(named("PAGEMAP_SCAN"))?;
    memory.write(WRITTEN);
    memory.discard(DISCARDED).map_err(named("madvise"))?;
    let found = scan(&pagemap, &memory).map_err(named("PAGEMAP_SCAN"))?;
    if found == [DISCARDED, WRITTEN] {
        Ok(())
    } else {
        Err(format!(
            "page {WRITTEN} was written, page {DISCARDED} discarded, and PAGEMAP_SCAN reported {found:?}"
        ))
    }
}

/// The pages written since the last scan, by their numbers.
fn scan(pagemap: &File, memory: &Memory) -> stasis_sys::Result<Vec<usize>> {
    let mut regions = [Region::default(); PAGES];
    let argument = ScanArgument {
        flags: WP_MATCHING | CHECK_WPASYNC,
        start: memory.start(),
        end: memory.end(),
        category_mask: pagemap::WRITTEN,
        return_mask: pagemap::WRITTEN,
        ..ScanArgument::default()
    };
    let count = pagemap::scan(pagemap.as_raw_fd(), argument, &mut regions)?;
    let page = |address: u64| (address.saturating_sub(memory.start()) as usize) / PAGE_SIZE;
    Ok(regions[..count].iter().flat_map(|region| page(region.start)..page(region.end)).collect())
}

/// Bit 55 of the page table entries, cleared by clear_refs (Documentation/admin-guide/mm/soft-dirty.rst): kernels
/// without CONFIG_MEM_SOFT_DIRTY take the request and report nothing.
fn soft_dirty() -> Result<(), String> {
    const SOFT_DIRTY: u64 = 1 << 55;
    let memory = Memory::map().map_err(named("mmap"))?;
    (0..PAGES).for_each(|page| memory.write(page));
    let pagemap = File::open("/proc/self/pagemap").map_err(named("/proc/self/pagemap"))?;
    fs::write("/proc/self/clear_refs", "4").map_err(named("/proc/self/clear_refs"))?;
    memory.write(WRITTEN);
    let mut entries = [0; PAGES * 8];
    pagemap
        .read_exact_at(&mut entries, memory.start() / PAGE_SIZE as u64 * 8)
        .map_err(named("/proc/self/pagemap"))?;
    let entries = entries.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
    let found: Vec<usize> =
        entries.enumerate().filter(|(_, entry)| entry & SOFT_DIRTY != 0).map(|(page, _)| page).collect();
    if found == [WRITTEN] {
        Ok(())
    } else {
        Err(format!("page {WRITTEN} was written and the soft-dirty bits told of {found:?}"))
    }
}

/// Pages that are unmapped at the end.
struct Memory(*mut u8);

impl Memory {
    fn map() -> io::Result<Self> {
        // SAFETY: a new private mapping wherever the kernel likes.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGES * PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(memory.cast())) }
    }

    fn start(&self) -> u64 {
        self.0 as u64
    }

    fn end(&self) -> u64 {
        self.start() + (PAGES * PAGE_SIZE) as u64
    }

    fn write(&self, page: usize) {
        // SAFETY: `page` is less than PAGES, so the byte is in the mapping, to which nothing refers.
        unsafe { self.0.add(page * PAGE_SIZE).write_volatile(1) };
    }

    fn discard(&self, page: usize) -> io::Result<()> {
        // SAFETY: as in `write`.
        match unsafe { libc::madvise(self.0.add(page * PAGE_SIZE).cast(), PAGE_SIZE, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it.
        unsafe { libc::munmap(self.0.cast(), PAGES * PAGE_SIZE) };
    }
}
