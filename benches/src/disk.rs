//! What the machine itself can do with the same bytes: write them durably, read them from the page cache.

use std::{
    fs::File,
    num::NonZero,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    ptr::NonNull,
    slice, thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap},
};

use crate::workload::XorShift;

/// The size of one write or read.
const BLOCK: usize = 4 << 20;

/// What keeps an NVMe disk busy.
const WRITERS: u64 = 2;

/// Writes `bytes` incompressible bytes to a new file as fast as the disk takes them: past the page cache, 4 MiB
/// at a time on two threads, then fdatasync(2) of file and directory entry. `bytes` is rounded up to pages.
///
/// # Errors
/// When the file system has no O_DIRECT, or is full.
pub fn write_durably(directory: &Path, bytes: u64) -> anyhow::Result<Duration> {
    let bytes = bytes.next_multiple_of(4096);
    let path = directory.join("disk-speed");
    let mut block = Memory::new(BLOCK.min(bytes as usize))?;
    block.fill_randomly();
    let block = block.bytes();

    let begun = Instant::now();
    let file = File::options()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .with_context(|| format!("{} (O_DIRECT)", path.display()))?;
    // Writes that make a file longer take turns.
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, bytes as i64)?;
    let step = BLOCK as u64;
    let write = |first: u64| -> std::io::Result<()> {
        for offset in (first * step..bytes).step_by((WRITERS * step) as usize) {
            let len = step.min(bytes - offset) as usize;
            file.write_all_at(&block[..len], offset)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (1..WRITERS).map(|first| scope.spawn(move || write(first))).collect();
        let own = write(0);
        threads.into_iter().filter_map(|thread| thread.join().ok()).fold(own, Result::and)
    })?;
    file.sync_data()?;
    File::open(directory)?.sync_data()?;
    let took = begun.elapsed();
    std::fs::remove_file(&path)?;
    Ok(took)
}

/// Reads `bytes` bytes of a file that the page cache holds into fresh memory, on one thread: the way that
/// is fastest for a program that needs them (huge pages: the kernel's zeroing of memory dominates).
///
/// # Errors
/// When there is no room for the file.
pub fn read_cached(directory: &Path, bytes: u64) -> anyhow::Result<Duration> {
    let path = directory.join("read-speed");
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    {
        let mut block = Memory::new(BLOCK)?;
        block.fill_randomly();
        for offset in (0..bytes).step_by(BLOCK) {
            file.write_all_at(&block.bytes()[..BLOCK.min((bytes - offset) as usize)], offset)?;
        }
    }
    // What is on its way to the disk would slow the reading down.
    file.sync_data()?;
    ready_memory(bytes)?;
    let begun = Instant::now();
    let mut memory = Memory::new(bytes as usize)?;
    for (index, block) in memory.bytes_mut().chunks_mut(BLOCK).enumerate() {
        file.read_exact_at(block, (index * BLOCK) as u64)?;
    }
    let took = begun.elapsed();
    std::fs::remove_file(&path)?;
    Ok(took)
}

/// Has the machine hold `bytes` bytes of free memory ready. The host of a virtual machine takes back what has been
/// free for seconds, and gives it again at the first touch, 512 MiB in a second or more: that is no part of what is
/// measured. A physical machine just touches memory.
///
/// # Errors
/// When there is not so much.
pub fn ready_memory(bytes: u64) -> anyhow::Result<()> {
    let mut memory = Memory::new(bytes as usize)?;
    for page in memory.bytes_mut().chunks_mut(4096) {
        page[0] = 1;
    }
    Ok(())
}

/// Page-aligned memory.
struct Memory {
    address: NonNull<u8>,
    len: NonZero<usize>,
}

impl Memory {
    fn new(len: usize) -> anyhow::Result<Self> {
        let len = NonZero::new(len.next_multiple_of(4096)).context("no bytes to measure with")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel finds room.
        let address = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) };
        let memory = Self { address: address.context("no memory")?.cast(), len };
        // SAFETY: advice about our own mapping. EINVAL: a kernel without huge pages.
        match unsafe { madvise(memory.address.cast(), len.get(), MmapAdvise::MADV_HUGEPAGE) } {
            Ok(()) | Err(Errno::EINVAL) => Ok(memory),
            Err(error) => Err(error).context("madvise(MADV_HUGEPAGE)"),
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped, readable, and not written while it is borrowed.
        unsafe { slice::from_raw_parts(self.address.as_ptr(), self.len.get()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped, writable, and borrowed from nowhere else.
        unsafe { slice::from_raw_parts_mut(self.address.as_ptr(), self.len.get()) }
    }

    fn fill_randomly(&mut self) {
        let mut random = XorShift::new(u64::from(std::process::id()));
        for word in self.bytes_mut().as_chunks_mut::<8>().0 {
            *word = random.step().to_ne_bytes();
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody borrows from it any more.
        let _ = unsafe { munmap(self.address.cast(), self.len.get()) };
    }
}
