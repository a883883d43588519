//! Everything that must hold before a change is taken: format, lints, build, tests.

use std::{
    fs,
    path::Path,
    process::{ExitCode, Stdio},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    artifacts::{self, INSIDE},
    ebpf, orphans,
    run::{binary_directory, cargo, run, run_and_read},
    summary::Summary,
    vm,
};

/// Checks and tests everything; the last line says how many tests passed, failed and were skipped.
///
/// # Errors
/// When a check fails, or the tests could not be run; failed tests are an exit code.
pub fn test(filter: Option<&str>) -> Result<ExitCode> {
    orphans::adopt().context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    for component in ["fmt", "clippy"] {
        let there = cargo(&[component, "--version"]).stdout(Stdio::null()).status()?.success();
        ensure!(there, "cargo {component} is missing: rustup component add rustfmt clippy");
    }
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(&mut cargo(&["fmt", "--check", "--manifest-path", "ebpf/programs/Cargo.toml"]))?;
    run(&mut cargo(&["clippy", "--release", "--all-targets", "--", "-D", "warnings"]))?;
    run(cargo(&["clippy", "--release"]).args(INSIDE).args(["--", "-D", "warnings"]))?;
    run(&mut cargo(&["clippy", "--release", "-p", vm::INIT, "--", "-D", "warnings"]))?;
    artifacts::build()?;
    ebpf::build()?;
    let (mut all, mut good) = run_tests(filter)?;
    // What a filter names here need not be what is run there: `cargo xtask vm 6.1 -- FILTER`.
    if filter.is_none() {
        let here = format!("this machine: {all}");
        println!("{here}");
        match vm::prepare(VM_KERNEL) {
            Ok(machine) => {
                let there = machine.test(&[])?;
                println!();
                println!("{here}");
                there.show();
                all.add(there.summary);
                good &= there.good;
            }
            Err(why) => {
                println!("skipped: all tests under Linux {VM_KERNEL}: {why:#}");
                all.skipped += 1;
            }
        }
    }
    println!("{all}");
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The kernel under which tests are run too: the last one of Debian's that has soft-dirty bits and nothing better.
const VM_KERNEL: &str = "6.1";

/// Runs all tests on this machine; how they ended, and whether the runner was content.
fn run_tests(filter: Option<&str>) -> Result<(Summary, bool)> {
    let skipped = binary_directory().join("skipped-tests");
    // The list of an earlier run must not count for this one.
    if skipped.exists() {
        fs::remove_file(&skipped).with_context(|| skipped.display().to_string())?;
    }

    let nextest = cargo(&["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = if nextest {
        cargo(&["nextest", "run", "--release", "--no-fail-fast"])
    } else {
        cargo(&["test", "--release", "--no-fail-fast"])
    };
    command.env("STASIS_SKIPPED", &skipped).args(filter);

    let counted = Arc::new(Mutex::new((Summary::default(), 0)));
    let counting = Arc::clone(&counted);
    let (status, left_behind) = run_and_read(&mut command, move |line| {
        let mut counted = counting.lock().expect("no panic holds it");
        let (summary, found) = &mut *counted;
        *found += u32::from(summary.add_line(line));
    })?;
    let (mut summary, found) = *counted.lock().expect("no panic holds it");

    let by_name = skipped_by_name(&skipped)?;
    summary.skip_passed(by_name.len() as u64);
    println!();
    for line in &by_name {
        println!("skipped: {line}");
    }
    for process in &left_behind {
        println!("left behind by a test, and ended: {process}");
    }
    if found == 0 {
        bail!("the test runner ended without a summary: {status}");
    }
    // A runner that fails though no test did has its reason (a test that left a process, say).
    Ok((summary, status.success() && summary.failed == 0))
}

/// One line for each test that found out by itself that it cannot run here: `name: reason`.
fn skipped_by_name(path: &Path) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    Ok(lines)
}
