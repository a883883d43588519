//! Memory that several restarts of a checkpoint share: loaded once, before any of their processes is made, so that all of
//! them inherit it (fork(2)) and have the same pages until they write to them.
//!
//! It is anonymous from the beginning, and so it stays what the program had: discarding it gives zeros, a checkpoint sees no
//! file, and nothing has to look after it. It lies where no process of the checkpoint has anything; the restorer
//! moves it to its place (mremap(2)), which moves page tables only.

use std::{
    io,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, bail};
use stasis_protocol::{
    PAGE_SIZE,
    image::{Mapping, flag},
    store::{MEMORY, kind},
};
use stasis_store::pager::{Damage, Source};

use super::{computation::Saved, layout, lazy};
use crate::failure::Failure;

const PAGE: u64 = PAGE_SIZE as u64;
const HUGE: u64 = 2 << 20;

/// Huge pages are asked for so much at a time: each call drains the page caches of all processors.
const PIECE: u64 = 16 << 20;

/// So much is read into huge pages at a time.
const STEP: u64 = 2 << 20;

/// Where it lies in this process and in those that were forked from it; 0: nowhere.
static START: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);

/// A mapping of a process, and where its memory lies for now.
struct Part {
    mapping: Range<u64>,
    at: u64,
}

pub struct Staging {
    range: Range<u64>,
    /// By process, in address order.
    parts: Vec<Vec<Part>>,
}

/// What is to be read into staged memory: its first page in the process and its place here; both as long.
struct Job {
    process: usize,
    pages: Range<u64>,
    at: u64,
}

impl Staging {
    /// Loads what of the processes' memory can be shared.
    ///
    /// # Errors
    /// A page is damaged or cannot be read; there is no memory for it.
    pub fn load(processes: &[Saved]) -> anyhow::Result<Self> {
        let regions: Vec<Vec<Range<u64>>> =
            processes.iter().map(|saved| lazy::regions(&saved.image, &saved.pages).0).collect();
        let gap = |region: &Range<u64>| (region.end - region.start).next_multiple_of(HUGE) + 2 * HUGE;
        let len: u64 = regions.iter().flatten().map(gap).sum();
        let occupied = processes.iter().flat_map(|saved| layout::occupied(&saved.image)).collect();
        let start = layout::free_area(occupied, len).context("the checkpoint leaves no addresses free")?;
        let mut at = start;
        let mut staging = Self { range: start..start + len, parts: Vec::new() };
        for (saved, regions) in processes.iter().zip(regions) {
            let mut parts = Vec::new();
            for region in regions {
                // At the same place in a huge page: they are moved whole.
                let part = at.next_multiple_of(HUGE) + region.start % HUGE;
                at += gap(&region);
                let mapping = saved.image.mappings.iter().find(|mapping| mapping.start == region.start);
                map(part, region.end - region.start, mapping).context("no memory for the clones")?;
                parts.push(Part { mapping: region, at: part });
            }
            staging.parts.push(parts);
        }
        START.store(start as usize, Ordering::Relaxed);
        LEN.store(len as usize, Ordering::Relaxed);
        staging.fill(processes)?;
        Ok(staging)
    }

    /// Where it lies.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// What of a process is staged.
    pub fn regions(&self, process: usize) -> Vec<Range<u64>> {
        self.parts[process].iter().map(|part| part.mapping.clone()).collect()
    }

    /// For the restorer: from where, to where, how much.
    pub fn moves(&self, process: usize) -> Vec<[u64; 3]> {
        let of = |part: &Part| [part.at, part.mapping.start, part.mapping.end - part.mapping.start];
        self.parts[process].iter().map(of).collect()
    }

    fn fill(&self, processes: &[Saved]) -> anyhow::Result<()> {
        let mut sources = Vec::new();
        let mut jobs = Vec::new();
        for (process, saved) in processes.iter().enumerate() {
            let pages = &saved.pages;
            let in_pages = |part: &Part| part.mapping.start / PAGE..part.mapping.end / PAGE;
            let wanted: Vec<Range<u64>> = self.parts[process].iter().map(in_pages).collect();
            let names = pages.hashes.try_clone()?;
            sources.push(
                Source::open(&pages.directory, &saved.key, &pages.extents, names, &wanted)
                    .context("the store's packs")?,
            );
            for part in &self.parts[process] {
                jobs.extend(jobs_of(process, saved, part));
            }
        }
        let (jobs, failed) = (Mutex::new(jobs.into_iter()), Mutex::new(None));
        let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some(job) = next() {
                if processes[job.process].image.settings.thp_disable == 0 {
                    collapse(&job);
                }
                if let Err(damage) = read(&sources[job.process], &job) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some((job.process, damage));
                    while next().is_some() {}
                }
            }
        };
        // All of them end here: this process forks afterwards.
        thread::scope(|scope| {
            // While one waits for the disk another computes hashes.
            let others = thread::available_parallelism().map_or(1, usize::from).clamp(2, 8) - 1;
            let started: Vec<_> =
                (0..others).map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
            work();
            drop(started);
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some((process, damage)) => bail!(Failure::Store {
                directory: processes[process].pages.directory.clone(),
                message: damage.to_string()
            }),
        }
    }
}

/// In a process that was forked from one with staged memory, and in that one: has no part in it any more. Otherwise
/// whoever writes to a page that this one still has gets a copy of it, and the page is kept for nobody.
pub fn let_go() {
    let (start, len) = (START.swap(0, Ordering::Relaxed), LEN.swap(0, Ordering::Relaxed));
    if start != 0 {
        // SAFETY: staged memory only, of which nobody holds a reference.
        unsafe { libc::munmap(start as *mut libc::c_void, len) };
    }
}

fn map(at: u64, len: u64, mapping: Option<&Mapping>) -> io::Result<()> {
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // What the program could not write to, or had not reserved, was not counted either.
    let is_counted = |mapping: &Mapping| {
        mapping.protection & libc::PROT_WRITE as u32 != 0 && mapping.flags & flag::NORESERVE == 0
    };
    if !mapping.is_some_and(is_counted) {
        flags |= libc::MAP_NORESERVE;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
    let mapped = unsafe { libc::mmap(at as *mut libc::c_void, len as usize, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What is in the checkpoint of a part, in pieces.
fn jobs_of(process: usize, saved: &Saved, part: &Part) -> Vec<Job> {
    let (first, end) = (part.mapping.start / PAGE, part.mapping.end / PAGE);
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (extent, _) in saved.pages.of(MEMORY).filter(|(extent, _)| extent.kind != kind::ZERO) {
        let run = extent.first_page.max(first)..(extent.first_page + extent.pages).min(end);
        match runs.last_mut() {
            _ if run.is_empty() => {}
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        }
    }
    let mut jobs = Vec::new();
    for run in runs {
        let mut page = run.start;
        while page < run.end {
            let at = part.at + (page - first) * PAGE;
            let next = page + ((at / PIECE + 1) * PIECE - at) / PAGE;
            jobs.push(Job { process, pages: page..next.min(run.end), at });
            page = next;
        }
    }
    jobs
}

/// Gives huge pages to what will be full of it, as the restorer does (preload/restorer/src/fill.rs).
fn collapse(job: &Job) {
    const MADV_COLLAPSE: i32 = 25;
    let end = job.at + (job.pages.end - job.pages.start) * PAGE;
    let (from, to) = (job.at.next_multiple_of(HUGE), end / HUGE * HUGE);
    for page in (from..to).step_by(HUGE as usize) {
        // SAFETY: mapped writable, and zero there already.
        unsafe { (page as *mut u8).write_volatile(0) };
    }
    if from < to {
        // SAFETY: content stays what it is.
        unsafe { libc::madvise(from as *mut libc::c_void, (to - from) as usize, MADV_COLLAPSE) };
    }
}

fn read(source: &Source, job: &Job) -> Result<(), Damage> {
    let mut page = job.pages.start;
    while page < job.pages.end {
        let end = job.pages.end.min(page + STEP / PAGE);
        let at = job.at + (page - job.pages.start) * PAGE;
        // SAFETY: mapped writable, and this job's only.
        let memory = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, ((end - page) * PAGE) as usize) };
        source.load(std::slice::from_ref(&(page..end)), memory)?;
        page = end;
    }
    Ok(())
}
