//! Letting the program run for slices of time only, while its memory is copied: the way to a short pause where it writes
//! faster than even memory can be copied. What it loses is told as time that it stood still.

use alloc::{vec, vec::Vec};

use stasis_protocol::coordinator::Refusal;
use stasis_sys::sync;

use crate::{
    quiesce::{self, Quiet},
    state::{self, Stop},
};

/// How long it stands still at a time, in nanoseconds.
const STAND: u64 = 4_000_000;

pub struct Slices {
    /// How long it runs at a time, in nanoseconds.
    run: u64,
    /// While it stands still.
    quiet: Option<Quiet>,
    /// When it is to run, or to stand.
    until: u64,
    /// How long it has stood at most at a time, and in all, in microseconds.
    pub longest_us: u64,
    pub total_us: u64,
}

impl Slices {
    pub const fn new(run: u64) -> Self {
        Self { run, quiet: None, until: 0, longest_us: 0, total_us: 0 }
    }

    /// Halves the time for which it runs, unless that is less than `shortest` then.
    pub const fn shorten(&mut self, shortest: u64) {
        if self.run / 2 >= shortest {
            self.run /= 2;
        }
    }

    /// Lets the program run, or stops it, if it is time.
    ///
    /// # Errors
    /// A thread could not be stopped.
    pub fn turn(&mut self) -> Result<(), Vec<Refusal>> {
        let now = sync::monotonic_ns();
        if now < self.until {
            return Ok(());
        }
        if self.quiet.is_some() {
            self.run();
        } else {
            self.quiet = Some(quiesce::quiesce(Stop::Anywhere).map_err(|refusal| vec![refusal])?);
            self.until = sync::monotonic_ns() + STAND;
        }
        Ok(())
    }

    pub const fn stands_still(&self) -> bool {
        self.quiet.is_some()
    }

    /// Sleeps until it is time to stop the program, if it runs; how long it still stands otherwise, in milliseconds.
    pub fn wait(&self) -> Option<i32> {
        let left = self.until.saturating_sub(sync::monotonic_ns());
        if self.quiet.is_some() {
            return Some(left.div_ceil(1_000_000) as i32);
        }
        state::pause(left);
        None
    }

    /// Lets it run, if it stands still.
    pub fn run(&mut self) {
        if let Some(quiet) = self.quiet.take() {
            let stood = quiet.release();
            self.longest_us = self.longest_us.max(stood);
            self.total_us += stood;
            self.until = sync::monotonic_ns() + self.run;
        }
    }
}

impl Drop for Slices {
    fn drop(&mut self) {
        self.run();
    }
}
