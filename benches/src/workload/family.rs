//! A process and its children, which all tick; the page ticks when every one of them has.

use std::{
    num::NonZero,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use crate::shared_page::SharedPage;

/// Of so many processes each ticks every millisecond; of more, all together as often.
const EACH_MILLISECOND: usize = 32;

/// Memory that each process has written, in bytes: little, so that what is measured is the processes.
const OWN: usize = 64 << 10;

/// What each does between two ticks.
#[derive(Clone, Copy)]
enum Between {
    Sleeps,
    Computes,
}

impl Between {
    fn pass(self, period: Duration) {
        match self {
            Self::Sleeps => thread::sleep(period),
            Self::Computes => {
                let begun = Instant::now();
                while begun.elapsed() < period {}
            }
        }
    }
}

/// Forks until there are `count` processes, and ticks until it is told to end.
pub fn run(count: usize, computes: bool, page: &Path) -> anyhow::Result<()> {
    let shared = SharedPage::open(page)?;
    let between = if computes { Between::Computes } else { Between::Sleeps };
    let ticks = ticks(count)?;
    let period = Duration::from_millis(count.div_ceil(EACH_MILLISECOND) as u64);
    for own in &ticks[1..] {
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            0 => {
                live(&shared, own, between, period);
                // SAFETY: nothing of the parent's is to be run here.
                unsafe { libc::_exit(0) };
            }
            -1 => return Err(std::io::Error::last_os_error()).context("fork(2)"),
            _ => {}
        }
    }
    let mut seen = counts(ticks);
    let mut awaited = false;
    while !shared.is_to_stop() {
        ticks[0].fetch_add(1, Ordering::Relaxed);
        // Those who ticked before they were asked do not count.
        let is_awaited = shared.is_tick_awaited();
        if is_awaited && !awaited {
            seen = counts(ticks);
        } else if ticks.iter().zip(&seen).all(|(now, before)| now.load(Ordering::Relaxed) != *before) {
            shared.tick();
            seen = counts(ticks);
        }
        awaited = is_awaited;
        between.pass(period);
    }
    for _ in 1..count {
        // SAFETY: any child; nothing is written.
        unsafe { libc::wait(std::ptr::null_mut()) };
    }
    Ok(())
}

/// A child's life.
fn live(shared: &SharedPage, ticks: &AtomicU32, between: Between, period: Duration) {
    let mut own = vec![1u8; OWN];
    while !shared.is_to_stop() {
        let tick = ticks.fetch_add(1, Ordering::Relaxed) as usize;
        own[tick % OWN] = tick as u8;
        between.pass(period);
    }
    std::hint::black_box(&own);
}

/// Numbers that all processes have.
fn ticks(count: usize) -> anyhow::Result<&'static [AtomicU32]> {
    let bytes = NonZero::new(count * size_of::<AtomicU32>()).context("no process is asked for")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, where the kernel finds room.
    let start =
        unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_SHARED) }.context("mmap(2)")?;
    // SAFETY: mapped for as long as the process lives; zeros are numbers.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU32>().as_ptr(), count) })
}

fn counts(ticks: &[AtomicU32]) -> Vec<u32> {
    ticks.iter().map(|ticks| ticks.load(Ordering::Relaxed)).collect()
}
