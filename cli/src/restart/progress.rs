//! How far the memory of a computation has come, shown to who waits for it on a terminal.
//!
//! What the restorers have read the kernel tells (/proc/PID/io), so that they need not count.

use std::{
    fs,
    io::{self, IsTerminal},
    ops::Range,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use stasis_protocol::{
    PAGE_SIZE,
    store::{Extent, MEMORY, kind},
};

use super::{computation::Saved, running::Process, spawn::Request};

/// What takes less time is over before anybody has read how far it is.
const SOON: Duration = Duration::from_millis(500);
/// How often it is drawn, in milliseconds.
const STEP: u16 = 100;

pub struct Progress {
    /// In bytes of packs; `None` where nobody looks.
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl Progress {
    /// Of what is to be there before the computation goes on.
    pub fn new(request: &Request<'_>) -> Self {
        // The extents of gigabytes are gone through for somebody who looks.
        let is_looked_at = request.shows_progress && request.staging.is_none() && io::stderr().is_terminal();
        Self { bar: is_looked_at.then(|| bar(request)).flatten(), begun: Instant::now() }
    }

    /// After how many milliseconds [`Self::show`] has something new.
    pub fn step(&self) -> Option<u16> {
        self.bar.is_some().then_some(STEP)
    }

    /// Draws how much the processes have read.
    pub fn show(&self, processes: &[Process]) {
        let Some(bar) = &self.bar else { return };
        if self.begun.elapsed() >= SOON {
            bar.set_position(processes.iter().map(|process| has_read(process.here.as_raw())).sum());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A bar that is not drawn before it is given a value; `None` where nothing is to be read.
fn bar(request: &Request<'_>) -> Option<ProgressBar> {
    let processes = request.computation.processes.iter().enumerate();
    let total = processes.map(|(index, saved)| to_be_read(saved, request.memory.regions(index))).sum();
    let style = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    (total > 0).then(|| bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
}

/// How much of packs the restorer of a process reads, in bytes.
fn to_be_read(saved: &Saved, lazily: &[Range<u64>]) -> u64 {
    const PAGE: u64 = PAGE_SIZE as u64;
    let comes_later = |extent: &Extent| {
        let after = lazily.partition_point(|region| region.start <= extent.first_page * PAGE);
        after.checked_sub(1).is_some_and(|index| extent.first_page * PAGE < lazily[index].end)
    };
    saved
        .pages
        .of(MEMORY)
        .filter(|(extent, _)| extent.kind != kind::ZERO && !comes_later(extent))
        .map(|(extent, _)| match extent.kind {
            kind::LZ4 => u64::from(extent.stored),
            _ => extent.pages * PAGE,
        })
        .sum()
}

/// How much a process has read, in bytes (proc_pid_io(5)); 0 where that is not told.
fn has_read(pid: i32) -> u64 {
    let told = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let read = told.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}
