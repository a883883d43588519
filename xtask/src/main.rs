//! `cargo xtask`: builds, demonstrates, tests, measures and installs Stasis, with nothing to be set up
//! by hand before.
//!
//! Everything is built in one cargo profile, release: RocksDB's C++ takes some twelve minutes of two
//! cores for each.
//!
//! Not here: what is tested (each crate, and `tests/`) and what is measured (`benches/`).

mod artifacts;
mod demo;
mod ebpf;
mod install;
mod orphans;
mod packages;
mod run;
mod summary;
mod test;
mod vm;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, demonstrates, tests, measures and installs Stasis")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build everything (release)
    Build,
    /// Build the programs that the tracer loads into the kernel
    BuildEbpf,
    /// Launch a program, checkpoint and kill it while it works, restart it
    Demo,
    /// Check the format, lint, build, and run every test, some of them under another kernel too
    Test {
        /// Run only tests whose name contains this
        filter: Option<String>,
    },
    /// Run end-to-end tests under a kernel of Debian's, in a virtual machine
    Vm {
        /// Its version, as 6.1
        kernel: String,
        /// Files (`incremental`) or parts of names of tests; without: those that depend on the kernel most
        #[arg(last = true)]
        filters: Vec<String>,
    },
    /// Run the measurements
    Bench {
        /// Arguments for the measuring program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build, and copy the result to PREFIX/bin and PREFIX/lib/stasis
    Install {
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match carry_out(arguments.task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(task: Task) -> Result<ExitCode> {
    match task {
        Task::Build => {
            packages::ensure(packages::For::Build)?;
            artifacts::build()?;
        }
        Task::BuildEbpf => ebpf::build()?,
        Task::Demo => {
            packages::ensure(packages::For::Build)?;
            artifacts::build()?;
            demo::show()?;
        }
        Task::Test { filter } => {
            packages::ensure(packages::For::Test)?;
            return test::test(filter.as_deref());
        }
        Task::Vm { kernel, filters } => {
            packages::ensure(packages::For::Test)?;
            artifacts::build()?;
            let report = vm::prepare(&kernel)?.test(&filters)?;
            report.show();
            return Ok(if report.good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Bench { arguments } => {
            packages::ensure(packages::For::Build)?;
            artifacts::build()?;
            run::run(run::program("stasis-benches").args(arguments))?;
        }
        Task::Install { prefix } => {
            packages::ensure(packages::For::Build)?;
            artifacts::build()?;
            install::install(&prefix)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
