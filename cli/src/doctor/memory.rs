//! Finding changed pages: userfaultfd's asynchronous write protection together with PAGEMAP_SCAN (Linux
//! 6.7). Pages are written and looked for, as a checkpoint would.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use stasis_protocol::PAGE_SIZE;

use super::Finding;

const PAGES: usize = 16;

/// The page that is written between two scans.
const WRITTEN: usize = 5;

// linux/userfaultfd.h
const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_API: libc::Ioctl =
    nix::request_code_readwrite!(0xaa, 0x3f, size_of::<UffdioApi>()) as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl =
    nix::request_code_readwrite!(0xaa, 0x00, size_of::<UffdioRegister>()) as libc::Ioctl;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

// linux/fs.h
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGEMAP_SCAN: libc::Ioctl =
    nix::request_code_readwrite!(b'f', 16, size_of::<PmScanArg>()) as libc::Ioctl;

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

pub fn write_tracking() -> Finding {
    const REMEDY: &str =
        "Linux 6.7 or later (with CONFIG_USERFAULTFD) finds changed pages without reading all of them";
    match track() {
        Ok(()) => Finding::Works(
            "wp-async: userfaultfd and PAGEMAP_SCAN found the one page that was written".into(),
        ),
        Err(error) => Finding::falls(format!("{error}; every checkpoint reads all memory"), REMEDY),
    }
}

fn track() -> Result<(), String> {
    let name = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let uffd = userfaultfd().map_err(name("userfaultfd"))?;
    let mut api =
        UffdioApi { api: UFFD_API, features: UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one uffdio_api.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) })
        .map_err(name("userfaultfd's WP_ASYNC feature"))?;
    let memory = Memory::map().map_err(name("mmap"))?;
    let mut register = UffdioRegister {
        start: memory.0 as u64,
        len: (PAGES * PAGE_SIZE) as u64,
        mode: UFFDIO_REGISTER_MODE_WP,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_REGISTER reads and writes one uffdio_register; the range is ours alone.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })
        .map_err(name("registering memory with userfaultfd"))?;
    let pagemap = File::open("/proc/self/pagemap").map_err(name("/proc/self/pagemap"))?;
    scan(&pagemap, &memory).map_err(name("PAGEMAP_SCAN"))?;
    memory.write(WRITTEN);
    let found = scan(&pagemap, &memory).map_err(name("PAGEMAP_SCAN"))?;
    if found == [WRITTEN] {
        Ok(())
    } else {
        Err(format!("page {WRITTEN} was written and PAGEMAP_SCAN reported {found:?}"))
    }
}

fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: userfaultfd(2) takes flags only.
    let fd = unsafe {
        libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY)
    };
    check(fd as i32)?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The pages written since the last scan, by their numbers.
fn scan(pagemap: &File, memory: &Memory) -> io::Result<Vec<usize>> {
    let mut regions = [PageRegion::default(); PAGES];
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start: memory.0 as u64,
        end: memory.0 as u64 + (PAGES * PAGE_SIZE) as u64,
        vec: regions.as_mut_ptr() as u64,
        vec_len: PAGES as u64,
        category_mask: PAGE_IS_WRITTEN,
        return_mask: PAGE_IS_WRITTEN,
        ..PmScanArg::default()
    };
    // SAFETY: the kernel reads and writes `arg` and writes at most `vec_len` regions, all of which live here.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
    check(count)?;
    let page = |address: u64| (address.saturating_sub(memory.0 as u64) as usize) / PAGE_SIZE;
    Ok(regions[..(count as usize).min(PAGES)]
        .iter()
        .flat_map(|region| page(region.start)..page(region.end))
        .collect())
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

    fn write(&self, page: usize) {
        // SAFETY: `page` is less than PAGES, so the byte is in the mapping, to which nothing refers.
        unsafe { self.0.add(page * PAGE_SIZE).write_volatile(1) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it.
        unsafe { libc::munmap(self.0.cast(), PAGES * PAGE_SIZE) };
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
