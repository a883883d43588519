//! What a computation loses by being launched, and by checkpoints once and ten times a second: one that has next to no memory, and
//! one that changes what it has.

use std::ffi::{OsStr, OsString};

use anyhow::ensure;

use super::{Setting, printed_number, workload};
use crate::{
    place,
    report::{Goal, Line, Unit},
    statistics::Samples,
    tools::{self, StasisSession},
};

/// Seconds between checkpoints; 0: none.
const INTERVALS: [f64; 3] = [0.0, 1.0, SHORTEST];
const SHORTEST: f64 = 0.1;

/// How much of its memory the program changes between two checkpoints of the shortest interval.
const CHANGED: f64 = 0.01;

/// The program prints how long its computation took, so that its start does not count; runs in turns. `mib`: with so much
/// memory that it changes.
pub fn measure(setting: &Setting<'_>, mib: usize) -> anyhow::Result<Vec<Line>> {
    // Long enough with memory that the first checkpoint, which is taken while it is filled or soon after, is little of it.
    let seconds = if mib == 0 { 3.0 } else { 8.0 };
    let (rounds, seconds) = if setting.quick { (1, 0.5) } else { (5, seconds) };
    let directory = place::directory(setting.directory)?;
    let native = |program: &[OsString]| {
        printed_number(place::command(&program[0], directory.path())?.args(&program[1..]))
    };
    const CALIBRATION: u64 = 20_000_000;
    let calibrated = native(&workload(&["compute", "--steps", &CALIBRATION.to_string()])?)?;
    let a_second = CALIBRATION as f64 * 1e9 / calibrated;
    let steps = (a_second * seconds) as u64;
    let pages_a_second = (mib << 8) as f64 * CHANGED / SHORTEST;
    let every = (a_second / pages_a_second.max(1.0)) as u64;
    let owned = workload(&[
        "compute",
        "--steps",
        &steps.to_string(),
        "--mib",
        &mib.to_string(),
        "--every",
        &every.to_string(),
    ])?;
    let program: Vec<&OsStr> = owned.iter().map(AsRef::as_ref).collect();

    let stasis = StasisSession::open(&tools::Stasis::find()?, directory.path())?;
    let mut alone = Samples::default();
    let mut launched = vec![Samples::default(); INTERVALS.len()];
    let mut taken = [0; INTERVALS.len()];
    for _ in 0..rounds {
        alone.push(native(&owned)? / 1e6);
        for (index, &interval) in INTERVALS.iter().enumerate() {
            let (before, failed_before) = stasis.checkpoints()?;
            let took = printed_number(&mut stasis.launch_with_interval(&program, interval)?)?;
            let (after, failed) = stasis.checkpoints()?;
            launched[index].push(took / 1e6);
            taken[index] += after - before;
            // One may be under way when the program ends.
            ensure!(failed <= failed_before + 1, "{} checkpoints failed", failed - failed_before);
            // The interval's ticks are left out while a checkpoint is being taken, on a slow disk most of them.
            let expected = u64::from(interval > 0.0 && seconds >= 2.0 * interval);
            ensure!(
                after - before >= expected,
                "no checkpoint was taken in {seconds} s, asked for every {interval} s"
            );
        }
    }
    let mut lines =
        vec![Line::new("native", format!("a computation, {mib} MiB"), Unit::Milliseconds, alone.clone())];
    for ((interval, samples), taken) in INTERVALS.iter().zip(launched).zip(taken) {
        let quantity = match interval {
            0.0 => "ratio to native, launched".to_owned(),
            seconds => format!("ratio to native, a checkpoint every {seconds} s"),
        };
        let mut line = Line::new(tools::STASIS, quantity, Unit::Ratio, samples.ratio(&alone));
        if *interval == SHORTEST {
            line = line.goal(Goal::AtMost(1.05));
        }
        lines
            .push(line.note(format!("{:.1} checkpoints a run of {seconds} s", taken as f64 / rounds as f64)));
    }
    Ok(lines)
}
