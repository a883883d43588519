//! What is measured.

mod calls;
mod checkpoint;
mod compute;
mod lazy;
mod processes;
mod start;
mod store;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{place, report::Line, tools::Tool, workload::Call};

/// A measurement, under the name by which `--only` asks for it.
pub struct Measurement {
    pub name: String,
    pub take: Box<Take>,
}

type Take = dyn Fn(&Setting<'_>) -> anyhow::Result<Vec<Line>>;

/// In what a measurement is taken.
pub struct Setting<'a> {
    /// On whose disk.
    pub directory: &'a Path,
    pub peers: &'a [Box<dyn Tool>],
    pub quick: bool,
}

/// Of incompressible memory, in MiB.
const SIZES: &[usize] = &[1, 64, 512, 2048];
const QUICK_SIZES: &[usize] = &[1, 16];

/// Of processes.
const COUNTS: &[usize] = &[1, 10, 32, 100, 500];
const QUICK_COUNTS: &[usize] = &[4];

/// All measurements, in the order in which they are taken.
pub fn all(quick: bool) -> Vec<Measurement> {
    let measurement = |name: String, take: Box<Take>| Measurement { name, take };
    let mut all = vec![measurement("true".into(), Box::new(start::measure))];
    for &call in Call::ALL {
        all.push(measurement(call.name(), Box::new(move |setting| calls::measure(setting, call))));
    }
    for mib in [0, if quick { 16 } else { 512 }] {
        let name = format!("compute-{mib}");
        all.push(measurement(name, Box::new(move |setting| compute::measure(setting, mib))));
    }
    for &mib in if quick { QUICK_SIZES } else { SIZES } {
        let name = format!("checkpoint-{mib}");
        all.push(measurement(name, Box::new(move |setting| checkpoint::measure(setting, mib))));
    }
    for &count in if quick { QUICK_COUNTS } else { COUNTS } {
        let name = format!("processes-{count}");
        all.push(measurement(name, Box::new(move |setting| processes::measure(setting, count))));
    }
    all.push(measurement("processes-computing".into(), Box::new(processes::crowd)));
    let sizes = if quick { lazy::QUICK_FLAT } else { lazy::FLAT };
    all.push(measurement("lazy-first-tick".into(), Box::new(|setting| lazy::first_tick(setting, sizes))));
    let mib = if quick { 64 } else { 2048 };
    let name = format!("lazy-{mib}");
    all.push(measurement(name, Box::new(move |setting| lazy::arrival(setting, mib))));
    let (clones, mib) = if quick { (2, 64) } else { (8, 1024) };
    let name = format!("clones-{clones}");
    all.push(measurement(name, Box::new(move |setting| lazy::clones(setting, clones, mib))));
    all.push(measurement("store-bytes".into(), Box::new(store::bytes)));
    all.push(measurement("store-memory".into(), Box::new(store::memory)));
    all
}

/// A workload's command line: this binary, and what it is to do.
fn workload(arguments: &[&str]) -> anyhow::Result<Vec<OsString>> {
    let this: PathBuf = std::env::current_exe().context("cannot tell where this program is")?;
    let mut program = vec![this.into_os_string(), "workload".into()];
    program.extend(arguments.iter().map(OsString::from));
    Ok(program)
}

/// What a workload prints: one number.
fn printed_number(command: &mut Command) -> anyhow::Result<f64> {
    let output = place::succeed(command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("{command:?} printed {text:?} and no number"))
}
