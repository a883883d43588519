//! The threads that write to packs, so that hashing goes on while the disk works.
//!
//! Two threads keep two direct writes of up to 4 MiB in flight, which is what it takes to keep an
//! NVMe disk busy; they serve all dumps. The data is written from where the process put it (its
//! staging buffer): there is no copy in between.
//!
//! Not here: where in a pack something goes.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use nix::{errno::Errno, sys::uio::pwritev};

use super::AlignedPage;
use crate::{directory::is_at, error::StoreError, failpoint::FailPoint, hash::PAGE_SIZE, staging::Staging};

/// The most pages of one write: 4 MiB, and the kernel's limit of parts of a write (IOV_MAX).
pub const MAX_PAGES: usize = 1024;

const THREADS: usize = 2;

/// How many writes may wait for a thread before the dump that asks for more waits, too.
const QUEUE: usize = 8;

/// A pack's file, open for writing.
#[derive(Debug)]
pub struct PackFile {
    pub number: u32,
    pub path: PathBuf,
    pub file: File,
    /// Opened with O_DIRECT.
    pub direct: bool,
}

impl PackFile {
    /// Whether it is what has its name.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        is_at(&self.file, &self.path).unwrap_or(false)
    }
}

/// What is written.
pub enum Source {
    /// Ranges of a staging buffer: offset and length in bytes.
    Staged(Arc<Staging>, Vec<(usize, usize)>),
    /// Pages of our own: a footer.
    Owned(Vec<AlignedPage>),
}

/// One write, and who is told when it is done.
pub struct Job {
    pub pack: Arc<PackFile>,
    /// Where in the pack, in bytes.
    pub offset: u64,
    pub source: Source,
    pub done: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

/// A write that is being put together.
pub struct DraftWrite {
    pub file: Arc<PackFile>,
    /// Where in the pack, in bytes.
    pub offset: u64,
    /// Of the staging buffer: offset and length in bytes.
    pub ranges: Vec<(usize, usize)>,
    pub pages: usize,
}

impl DraftWrite {
    /// A write of the page that lies at `staged` in the staging buffer.
    #[must_use]
    pub fn new(file: Arc<PackFile>, offset: u64, staged: usize) -> Self {
        Self { file, offset, ranges: vec![(staged, PAGE_SIZE)], pages: 1 }
    }

    /// The page at `staged` follows.
    pub fn add(&mut self, staged: usize) {
        self.pages += 1;
        match self.ranges.last_mut() {
            Some((at, len)) if *at + *len == staged => *len += PAGE_SIZE,
            _ => self.ranges.push((staged, PAGE_SIZE)),
        }
    }
}

/// The writing threads. Dropping it waits for what was submitted.
pub struct Writers {
    queue: Option<mpsc::SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts the threads.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start() -> io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        let threads = (0..THREADS)
            .map(|_| {
                let jobs = Arc::clone(&jobs);
                thread::Builder::new().name("pack-writer".into()).spawn(move || {
                    while let Some(job) = next(&jobs) {
                        let result = job.run();
                        (job.done)(result);
                    }
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { queue: Some(queue), threads })
    }

    /// Hands a job over; waits while the queue is full.
    pub fn submit(&self, job: Job) {
        let Some(queue) = &self.queue else { return };
        if let Err(mpsc::SendError(job)) = queue.send(job) {
            // Both threads are gone, which only a panic in them can cause: write here.
            let result = job.run();
            (job.done)(result);
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn next(jobs: &Mutex<mpsc::Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

impl Job {
    fn run(&self) -> Result<(), StoreError> {
        let parts: Vec<&[u8]> = match &self.source {
            Source::Staged(staging, ranges) => {
                ranges.iter().filter_map(|&(at, len)| staging.bytes(at, len)).collect()
            }
            Source::Owned(pages) => pages.iter().map(|page| &page.0[..]).collect(),
        };
        let mut offset = self.offset;
        for parts in parts.chunks(MAX_PAGES) {
            offset += write_all_at(&self.pack.file, parts, offset)
                .map_err(StoreError::io("cannot write to", &self.pack.path))?;
        }
        if !self.pack.direct {
            start_writeback(&self.pack.file, self.offset, offset - self.offset);
        }
        match self.source {
            Source::Staged(..) => FailPoint::PagesWritten.hit(),
            Source::Owned(_) => FailPoint::FooterWritten.hit(),
        }
        Ok(())
    }
}

/// Writes all parts at `offset`; returns how many bytes.
pub(super) fn write_all_at(file: &File, parts: &[&[u8]], offset: u64) -> io::Result<u64> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    let mut written = 0;
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match pwritev(file, rest, (offset + written) as i64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                written += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(written)
}

/// Without O_DIRECT: lets the disk begin now, so that the fdatasync at the end has little left to do.
/// A hint; an error changes nothing.
fn start_writeback(file: &File, offset: u64, len: u64) {
    // SAFETY: sync_file_range(2) takes no memory, and the descriptor is open as long as `file`.
    let _ = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE)
    };
}

/// Counts what has been submitted and not finished, and waits for it.
#[derive(Default)]
pub struct Outstanding {
    state: Mutex<OutstandingState>,
    changed: Condvar,
}

#[derive(Default)]
struct OutstandingState {
    next: u64,
    open: std::collections::BTreeSet<u64>,
}

impl Outstanding {
    /// Notes one more; returns its ticket.
    pub fn begin(&self) -> u64 {
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        state.open.insert(ticket);
        ticket
    }

    /// The one with this ticket is finished.
    pub fn end(&self, ticket: u64) {
        self.lock().open.remove(&ticket);
        self.changed.notify_all();
    }

    /// Waits until everything that has begun by now has ended.
    pub fn wait(&self) {
        let mut state = self.lock();
        let limit = state.next;
        while state.open.first().is_some_and(|first| *first < limit) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, OutstandingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
