//! Memory of this process.

use crate::{Result, call::call, file::Fd};

/// mmap(2).
///
/// # Safety
/// With MAP_FIXED, what was mapped there is gone.
pub unsafe fn map(
    address: usize,
    len: usize,
    protection: i32,
    flags: i32,
    fd: Fd,
    offset: u64,
) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe {
        call(
            libc::SYS_mmap,
            [address, len, protection as usize, flags as usize, fd as usize, offset as usize],
        )
    }
}

/// Private zeroed memory wherever the kernel finds room; its address.
pub fn map_anonymous(len: usize, flags: i32) -> Result<usize> {
    // SAFETY: without MAP_FIXED nothing existing is touched.
    unsafe {
        map(
            0,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    }
}

/// Room for tables of which little is used. Where huge pages are made without being asked for, the first store would
/// take 2 MiB, and each later one count as a store to all of them (soft-dirty).
pub fn reserve(len: usize) -> Result<usize> {
    let start = map_anonymous(len, libc::MAP_NORESERVE)?;
    // SAFETY: this advice changes no content. EINVAL: the kernel has no huge pages.
    let _ = unsafe { advise(start, len, libc::MADV_NOHUGEPAGE) };
    Ok(start)
}

/// munmap(2).
///
/// # Safety
/// Nothing may use the range any more.
pub unsafe fn unmap(address: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_munmap, [address, len, 0, 0, 0, 0]) }.map(drop)
}

/// mprotect(2).
///
/// # Safety
/// Rust's assumptions about memory it uses must stay true.
pub unsafe fn protect(address: usize, len: usize, protection: i32) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_mprotect, [address, len, protection as usize, 0, 0, 0]) }.map(drop)
}

/// madvise(2).
///
/// # Safety
/// Some advice discards content.
pub unsafe fn advise(address: usize, len: usize, advice: i32) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_madvise, [address, len, advice as usize, 0, 0, 0]) }.map(drop)
}

/// Maps what a shared mapping shows once more, where the kernel finds room: mremap(2) of nothing.
pub fn map_again(from: usize, len: usize) -> Result<usize> {
    // SAFETY: what is mapped stays as it is.
    unsafe { call(libc::SYS_mremap, [from, 0, len, libc::MREMAP_MAYMOVE as usize, 0, 0]) }
}

/// mremap(2) to a given address.
///
/// # Safety
/// What was mapped at either place is gone or elsewhere.
pub unsafe fn move_to(from: usize, len: usize, to: usize) -> Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_mremap, [from, len, len, flags as usize, to, 0]) }.map(drop)
}
