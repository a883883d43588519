//! `stasis-benches`: measures what Stasis claims, beside the machine's own speed and beside other
//! checkpointers where they are installed. `cargo xtask bench` builds everything and runs it.
//!
//! Everything that is compared is measured in the same run, in turns (A B A B), because a machine's speed
//! drifts by more than what is to be seen. A figure is the median of its rounds; the spread is that of
//! the quartiles. Each line says the goal, where there is one, and whether it was met.
//!
//! - [`measurements`]: what is measured, each under a name for `--only`
//! - [`tools`]: how Stasis, DMTCP and CRIU are told to launch, checkpoint and restart
//! - [`workload`]: the programs that are measured: this binary itself, run as `stasis-benches workload …`
//! - [`dumper`]: a store server alone, and memory that is dumped to it without a program
//! - [`place`], [`shared_page`], [`disk`]: where it happens, how the workload is seen, what the disk can do
//! - [`statistics`], [`report`]: from samples to lines
//!
//! Not here: whether what is restored is right (`tests/`).

mod disk;
mod dumper;
mod machine;
mod measurements;
mod place;
mod report;
mod shared_page;
mod statistics;
mod tools;
mod workload;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "stasis-benches", about = "Measures Stasis")]
struct Arguments {
    /// Small sizes and few rounds: to see that everything runs, not how fast
    #[arg(long)]
    quick: bool,
    /// Measure only what has this in its name (may be given several times)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print the names for --only
    #[arg(long)]
    list: bool,
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure Stasis only
    #[arg(long)]
    no_peers: bool,
    /// On which disk: a directory for stores and images, emptied afterwards [default: beside the binaries]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    #[command(subcommand)]
    workload: Option<Hidden>,
}

#[derive(Debug, Subcommand)]
enum Hidden {
    /// A program to be measured
    #[command(hide = true, subcommand)]
    Workload(workload::Workload),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.workload {
        Some(Hidden::Workload(workload)) => workload::run(workload),
        None => measure(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stasis-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let all = measurements::all(arguments.quick);
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|part| name.contains(part.as_str()))
    };
    let chosen: Vec<_> = all.into_iter().filter(|measurement| wanted(&measurement.name)).collect();
    ensure!(!chosen.is_empty(), "nothing is named so: see --list");
    if arguments.list {
        for measurement in &chosen {
            println!("{}", measurement.name);
        }
        return Ok(());
    }
    let directory = match &arguments.directory {
        Some(directory) => directory.clone(),
        None => place::binary_directory()?,
    };
    place::adopt_orphans().context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    place::keep_descriptors().context("close_range(2)")?;

    let mut report = report::Report::new(machine::Machine::describe(&directory));
    report.begin();
    let peers = if arguments.no_peers { Vec::new() } else { tools::installed_peers(&mut report) };
    for measurement in chosen {
        let setting = measurements::Setting { directory: &directory, peers: &peers, quick: arguments.quick };
        let lines = (measurement.take)(&setting).with_context(|| measurement.name.clone())?;
        report.add(&measurement.name, lines);
    }
    report.end();
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    Ok(())
}
