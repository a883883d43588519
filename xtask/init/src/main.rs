//! The first process of the virtual machine that `cargo xtask vm` boots: it makes the host's files the root, read-only,
//! runs test programs there, and ends the machine.
//!
//! It is linked statically and lies in the initramfs with the kernel's modules and `/job`, which says what is to
//! be done.
//!
//! What the tests write goes to the second serial port. The last line there is `stasis-vm: ` and how it ended; a machine
//! that ends without has failed, and the first serial port (the kernel's console) tells why.
//!
//! Not here: the machine itself, and what its answers mean (`xtask/src/vm`).

mod job;
mod root;

use std::{
    env,
    fs::{self, File},
    io::Write,
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        reboot::{RebootMode, reboot},
        termios::tcdrain,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use crate::job::{Job, Program};

/// Where tests that cannot run here say so.
const SKIPPED: &str = "/run/skipped-tests";

fn main() {
    if let Err(error) = run() {
        // On the console: there may be nothing else yet.
        eprintln!("stasis-vm-init: {error:#}");
    }
    let _ = reboot(RebootMode::RB_AUTOBOOT);
}

fn run() -> Result<()> {
    let job = Job::read("/job")?;
    root::load_modules(&job)?;
    root::prepare(&job)?;
    let mut output = File::options().write(true).open("/dev/ttyS1").context("/dev/ttyS1")?;
    writeln!(output, "stasis-vm: up")?;
    let mut good = true;
    for program in &job.programs {
        let status = run_program(&job, program, &output).with_context(|| program.path.clone())?;
        if !status.success() {
            writeln!(output, "stasis-vm: {}: {status}", program.path)?;
            good = false;
        }
    }
    for line in fs::read_to_string(SKIPPED).unwrap_or_default().lines() {
        writeln!(output, "stasis-vm: skipped: {line}")?;
    }
    writeln!(output, "stasis-vm: {}", if good { "passed" } else { "failed" })?;
    tcdrain(output.as_fd())?;
    Ok(())
}

/// Runs one program to its end, and collects what others leave behind meanwhile: they are given to this process.
fn run_program(job: &Job, program: &Program, output: &File) -> Result<ExitStatus> {
    let child = Command::new(&program.path)
        .args(&program.arguments)
        .env_clear()
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        // From the kernel's command line.
        .envs(env::vars().filter(|(name, _)| name.starts_with("STASIS_")))
        .env("STASIS_SKIPPED", SKIPPED)
        .current_dir(&job.directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        let (pid, status) = match waitid(Id::All, WaitPidFlag::WEXITED)? {
            WaitStatus::Exited(pid, code) => (pid, ExitStatus::from_raw(code << 8)),
            WaitStatus::Signaled(pid, signal, _) => (pid, ExitStatus::from_raw(signal as i32)),
            other => bail!("waitid(WEXITED) says {other:?}"),
        };
        if pid == child {
            return Ok(status);
        }
    }
}
