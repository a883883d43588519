//! Where it happens: a directory of its own for each measurement, children that are ended by their pid, and
//! commands that must succeed.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

/// Makes this process the one that orphans below it are given to (prctl(2), PR_SET_CHILD_SUBREAPER): not
/// every machine's pid 1 collects them, and a coordinator detaches itself.
///
/// # Errors
/// What prctl says.
pub fn adopt_orphans() -> nix::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Marks all descriptors but 0 to 2 close-on-exec: what this process was started with (a shell's pipes, a job
/// server's) is no measured program's business, and a checkpointer would have to account for it.
///
/// # Errors
/// What close_range(2) says.
pub fn keep_descriptors() -> io::Result<()> {
    // SAFETY: takes numbers; with this flag it closes nothing.
    match unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the binaries are: `STASIS_BIN_DIR`, or where this one is.
///
/// # Errors
/// When that cannot be told.
pub fn binary_directory() -> anyhow::Result<PathBuf> {
    if let Some(directory) = env::var_os("STASIS_BIN_DIR") {
        return Ok(directory.into());
    }
    let this = env::current_exe().context("cannot tell where this program is (/proc/self/exe)")?;
    Ok(this.parent().unwrap_or(Path::new("/")).to_owned())
}

/// A binary that `cargo xtask build` made.
///
/// # Errors
/// When it has not been made.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let path = binary_directory()?.join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo xtask build`", path.display());
    Ok(path)
}

/// A new directory below `parent`, removed when dropped.
///
/// # Errors
/// When it cannot be made.
pub fn directory(parent: &Path) -> anyhow::Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("stasis-bench-").tempdir_in(parent);
    directory.with_context(|| format!("no directory can be made in {}", parent.display()))
}

/// A command with an environment that no other Stasis reaches into, in `directory`, its output in the
/// file `log` there.
///
/// # Errors
/// When the log cannot be opened.
pub fn command(program: impl AsRef<std::ffi::OsStr>, directory: &Path) -> anyhow::Result<Command> {
    let log = File::options().create(true).append(true).open(directory.join("log"))?;
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("STASIS_") || name.starts_with("DMTCP_") || name == "LD_PRELOAD" {
            command.env_remove(name.as_ref());
        }
    }
    command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// Makes the command's process the leader of a session: no terminal that a checkpointer would have to
/// account for.
pub fn detached(command: &mut Command) -> &mut Command {
    let detach = || nix::unistd::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(detach) }
}

/// The end of the log of what [`command`]s in `directory` said, for a message about a failure.
pub fn log_end(directory: &Path) -> String {
    let content = fs::read(directory.join("log")).unwrap_or_default();
    let end = &content[content.len().saturating_sub(2000)..];
    format!("its log ends:\n{}", String::from_utf8_lossy(end).trim_end())
}

/// Runs a command that must succeed; what it printed.
///
/// # Errors
/// When it fails: with its arguments, and what it said.
pub fn succeed(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim_end());
    }
    Ok(output)
}

/// A child process, ended (SIGKILL) and collected when dropped.
pub struct Started(Child);

impl Started {
    /// # Errors
    /// When it cannot be started.
    pub fn new(command: &mut Command) -> anyhow::Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// As wait4(2).
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.0.wait()
    }

    /// # Errors
    /// The child has ended.
    pub fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            Some(status) => bail!("pid {} has ended: {status}", self.0.id()),
            None => Ok(()),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Collects a process that was given to this one ([`adopt_orphans`]), once it ends.
pub fn collect(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    while nix::sys::wait::waitpid(pid, None) == Err(nix::Error::EINTR) {}
}

/// What the files below a directory take on the disk, in bytes. Files that vanish meanwhile do not count.
pub fn disk_usage(directory: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { disk_usage(&entry.path()) } else { metadata.blocks() * 512 };
    }
    bytes
}
