//! Checkpointers behind one interface, so that all are measured by the same code.

mod criu;
mod dmtcp;
mod stasis;

use std::{
    ffi::OsStr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

pub use stasis::{Stasis, StasisSession};

use crate::{place, report::Report};

/// The name that lines of Stasis have; its goals are for it alone.
pub const STASIS: &str = "stasis";

/// A checkpointer.
pub trait Tool {
    fn name(&self) -> &'static str;

    /// Whether a program must be started by it: then that may slow the program down.
    fn is_present_at_run_time(&self) -> bool;

    /// Makes all ready that is to be there before a program is launched: what the tool starts by itself
    /// when it is first used, and keeps for later, is started here.
    ///
    /// # Errors
    /// When it does not start.
    fn open(&self, directory: &Path) -> anyhow::Result<Box<dyn Session>>;
}

/// A checkpointer at work for one program; dropped, it ends what it started.
pub trait Session {
    /// The command that runs a program so that it can be checkpointed.
    ///
    /// # Errors
    /// When the log cannot be opened.
    fn launch(&self, program: &[&OsStr]) -> anyhow::Result<Command>;

    /// Returns when the program, whose process is `pid`, can be checkpointed.
    ///
    /// # Errors
    /// When that does not come to pass.
    fn await_joined(&self, _pid: u32) -> anyhow::Result<()> {
        Ok(())
    }

    /// Takes a checkpoint of the program, whose process is `pid`, and leaves it running.
    ///
    /// # Errors
    /// When it is refused or fails.
    fn checkpoint(&mut self, pid: u32) -> anyhow::Result<Taken>;

    /// The command that restarts the program, which is gone, from the last checkpoint, with all its memory.
    ///
    /// # Errors
    /// When there is no checkpoint.
    fn restart(&self) -> anyhow::Result<Command>;

    /// What its images take on the disk, in bytes.
    fn image_bytes(&self) -> u64;

    /// How long a command takes that asks and changes nothing, where there is one.
    ///
    /// # Errors
    /// When it fails.
    fn ask(&self) -> anyhow::Result<Option<Duration>> {
        Ok(None)
    }
}

/// A checkpoint that was taken.
pub struct Taken {
    /// From the start of the command to its end.
    pub latency: Duration,
    /// How long the program stood still, by what the tool says.
    pub said_pause: Option<Duration>,
    /// The bytes written for it, by what the tool says.
    pub said_written: Option<u64>,
}

/// Stasis itself.
///
/// # Errors
/// When it has not been built.
pub fn stasis() -> anyhow::Result<Box<dyn Tool>> {
    Ok(Box::new(stasis::Stasis::find()?))
}

/// The other checkpointers that are installed and work here; the report says which are not, and why.
pub fn installed_peers(report: &mut Report) -> Vec<Box<dyn Tool>> {
    let mut peers: Vec<Box<dyn Tool>> = Vec::new();
    match dmtcp::Dmtcp::find() {
        Ok(tool) => peers.push(Box::new(tool)),
        Err(error) => report.remark(format!("not compared with DMTCP: {error:#}")),
    }
    match criu::Criu::find() {
        Ok(tool) => peers.push(Box::new(tool)),
        Err(error) => report.remark(format!("not compared with CRIU: {error:#}")),
    }
    peers
}

/// How long a command that must succeed takes, and what it prints.
fn timed(command: &mut Command) -> anyhow::Result<(Duration, Vec<u8>)> {
    let begun = Instant::now();
    let output = place::succeed(command)?;
    Ok((begun.elapsed(), output.stdout))
}

/// Where a program is that PATH leads to.
fn in_path(name: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| anyhow::anyhow!("{name} is not installed"))
}
