//! A page of a file that the measured program and this process both have mapped: the program writes when it
//! ticked, and this process is woken when something awaited has happened.
//!
//! A shared mapping of a file outlives the program and is the same after its restart, whatever tool
//! restarts it; and CLOCK_MONOTONIC is one clock for both.
//!
//! The file lies on a disk: one in memory that somebody else uses would be another one for a program that Stasis has
//! restarted.

use std::{
    fs::File,
    io,
    num::NonZero,
    os::fd::AsFd,
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use tempfile::TempPath;

use crate::place;

const PAGE: NonZero<usize> = NonZero::new(4096).unwrap();

/// How often to look whether the program that something is awaited from has ended instead.
const LOOK: Duration = Duration::from_millis(200);

/// A program that has not done what is awaited by then never will.
const DEADLINE: Duration = Duration::from_secs(300);

/// What lies in the page, all zero at first. Times are CLOCK_MONOTONIC in nanoseconds.
#[repr(C)]
#[derive(Debug)]
pub struct Words {
    /// When the program last ticked.
    last_tick: AtomicU64,
    /// The longest time between two ticks since this was last set to 0, in nanoseconds.
    longest_gap: AtomicU64,
    /// Set by this process when the next tick is awaited.
    await_tick: AtomicU32,
    /// Counts the answers to `await_tick`: a futex.
    answers: AtomicU32,
    /// When the awaited tick came.
    awaited_tick: AtomicU64,
    /// How many pages the program is to write to; it sets it back to 0 when it has: a futex.
    dirty: AtomicU32,
    /// Set when the program is to end.
    stop: AtomicU32,
    /// How many pages the program is to read, at random; it sets it back to 0 when it has: a futex.
    read: AtomicU32,
    _room: u32,
    /// When it had.
    read_at: AtomicU64,
}

/// The page, mapped.
pub struct SharedPage {
    words: NonNull<Words>,
    file: File,
    /// Where it is made: removed with this.
    made: Option<TempPath>,
}

// SAFETY: the words are atomics.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Makes the file and maps it.
    ///
    /// # Errors
    /// When either fails.
    pub fn create() -> anyhow::Result<Self> {
        let directory = place::binary_directory()?;
        let made = tempfile::Builder::new().prefix("stasis-bench-").tempfile_in(directory)?;
        made.as_file().set_len(PAGE.get() as u64)?;
        let (file, path) = made.into_parts();
        Self::map(file, Some(path))
    }

    /// Maps a file that [`SharedPage::create`] made.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        Self::map(file.with_context(|| path.display().to_string())?, None)
    }

    fn map(file: File, made: Option<TempPath>) -> anyhow::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel finds room.
        let words = unsafe { mmap(None, PAGE, protection, MapFlags::MAP_SHARED, file.as_fd(), 0) };
        Ok(Self { words: words.context("mapping the shared page")?.cast(), file, made })
    }

    /// The file.
    ///
    /// # Panics
    /// On the program's side.
    pub fn path(&self) -> &Path {
        self.made.as_deref().expect("the side that made it asks")
    }

    /// When the file was modified, by its file system.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn modified(&self) -> io::Result<SystemTime> {
        self.file.metadata()?.modified()
    }

    /// Makes the file one that was modified then.
    ///
    /// # Errors
    /// When its times cannot be set.
    pub fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.file.set_modified(time)
    }

    fn words(&self) -> &Words {
        // SAFETY: mapped until `self` is dropped, zero or written by this module; any bits are valid.
        unsafe { self.words.as_ref() }
    }

    /// The program's side: notes a tick.
    pub fn tick(&self) {
        let words = self.words();
        let now = now();
        let last = words.last_tick.swap(now, Ordering::Relaxed);
        if last != 0 {
            words.longest_gap.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        }
        if words.await_tick.swap(0, Ordering::AcqRel) != 0 {
            words.awaited_tick.store(now, Ordering::Relaxed);
            words.answers.fetch_add(1, Ordering::Release);
            wake(&words.answers);
        }
    }

    /// The program's side: whether the next tick is awaited.
    pub fn is_tick_awaited(&self) -> bool {
        self.words().await_tick.load(Ordering::Acquire) != 0
    }

    /// The program's side: how many pages it is asked to write to.
    pub fn pages_to_dirty(&self) -> u32 {
        self.words().dirty.load(Ordering::Acquire)
    }

    /// The program's side: it has written to them.
    pub fn dirtied(&self) {
        self.words().dirty.store(0, Ordering::Release);
        wake(&self.words().dirty);
    }

    /// The program's side: how many pages it is asked to read.
    pub fn pages_to_read(&self) -> u32 {
        self.words().read.load(Ordering::Acquire)
    }

    /// The program's side: it has read them.
    pub fn was_read(&self) {
        self.words().read_at.store(now(), Ordering::Relaxed);
        self.words().read.store(0, Ordering::Release);
        wake(&self.words().read);
    }

    /// Asks the program to read so many pages when it goes on.
    pub fn ask_to_read(&self, pages: u32) {
        self.words().read.store(pages, Ordering::Release);
    }

    /// Waits until the program has read the pages that it was asked to read; when it had, CLOCK_MONOTONIC in nanoseconds.
    ///
    /// # Errors
    /// As [`SharedPage::await_tick`].
    pub fn await_read(&self, pages: u32, ended: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<u64> {
        let words = self.words();
        await_change(&words.read, pages, ended).context("waiting for the program to read its memory")?;
        Ok(words.read_at.load(Ordering::Relaxed))
    }

    /// The program's side: whether it is to end.
    pub fn is_to_stop(&self) -> bool {
        self.words().stop.load(Ordering::Acquire) != 0
    }

    /// Has the program end by itself: whoever started or restarted it, it is not searched for and killed.
    pub fn stop(&self) {
        self.words().stop.store(1, Ordering::Release);
    }

    /// Lets a restarted program run.
    pub fn forget_stop(&self) {
        self.words().stop.store(0, Ordering::Release);
    }

    /// Forgets the gaps so far.
    pub fn forget_gaps(&self) {
        self.words().longest_gap.store(0, Ordering::Relaxed);
    }

    /// The longest time between two ticks since [`SharedPage::forget_gaps`], in nanoseconds.
    pub fn longest_gap(&self) -> u64 {
        self.words().longest_gap.load(Ordering::Relaxed)
    }

    /// Asks for the next tick; to be called before what makes the program tick (again).
    pub fn ask_for_tick(&self) -> AwaitedTick {
        let words = self.words();
        let seen = words.answers.load(Ordering::Acquire);
        words.await_tick.store(1, Ordering::Release);
        AwaitedTick { seen }
    }

    /// Waits for the tick that was asked for; when it came, CLOCK_MONOTONIC in nanoseconds.
    ///
    /// # Errors
    /// `ended` says that the program will not tick, or it has not for minutes.
    pub fn await_tick(
        &self,
        awaited: &AwaitedTick,
        ended: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let words = self.words();
        await_change(&words.answers, awaited.seen, ended).context("waiting for the program to tick")?;
        Ok(words.awaited_tick.load(Ordering::Relaxed))
    }

    /// Has the program write to so many pages.
    ///
    /// # Errors
    /// As [`SharedPage::await_tick`].
    pub fn dirty(&self, pages: u32, ended: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        if pages == 0 {
            return Ok(());
        }
        let words = self.words();
        words.dirty.store(pages, Ordering::Release);
        await_change(&words.dirty, pages, ended).context("waiting for the program to write to its memory")
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: nobody borrows from it any more.
        let _ = unsafe { munmap(self.words.cast(), PAGE.get()) };
    }
}

/// A tick that was asked for.
pub struct AwaitedTick {
    seen: u32,
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Wakes who waits for `word`, in whichever process.
fn wake(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE looks at the address only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Waits until the word is not `old` any more.
fn await_change(
    word: &AtomicU32,
    old: u32,
    mut ended: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let look = libc::timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    let until = now() + DEADLINE.as_nanos() as u64;
    while word.load(Ordering::Acquire) == old {
        // SAFETY: waits on a word of ours, for as long as a timespec says.
        let woken =
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, old, &raw const look) };
        if woken < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT) {
            ended()?;
            if now() > until {
                bail!("it has not in {} s", DEADLINE.as_secs());
            }
        }
    }
    Ok(())
}
