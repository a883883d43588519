//! The command line.

use std::{env, ffi::OsString, path::PathBuf};

use anyhow::{Context as _, bail};

const USAGE: &str = "\
usage: stasis-tracer [OPTION]...
  --runtime DIR      where its socket and its lock are [/run/stasis-tracer]
  --pin DIR          where its programs are pinned, in a bpf file system [/sys/fs/bpf/stasis-tracer]
  --object FILE      its programs [beside this program, or in ../lib/stasis]
  --user-tasks N     how many processes of one user are tracked [16384]
  --no-userfaultfd   hand out no userfaultfd: a user who has one can make the kernel wait for them
  --no-pids          let nobody choose pids
  --keep             leave programs and maps in the kernel at the end, for the next start
  --no-seccomp       allow itself every system call
  --remove           remove programs and maps that were left in the kernel, and do nothing else
";

/// The file of the programs.
const OBJECT: &str = "stasis-tracer.bpf.o";

pub struct Arguments {
    pub runtime: PathBuf,
    pub pin: PathBuf,
    pub object: PathBuf,
    pub user_tasks: u64,
    pub userfaultfd: bool,
    pub pids: bool,
    pub keep: bool,
    pub seccomp: bool,
    pub remove: bool,
}

impl Arguments {
    /// `None` when only help was asked for.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn from_command_line() -> anyhow::Result<Option<Self>> {
        Self::parse(env::args_os().skip(1))
    }

    fn parse(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Option<Self>> {
        let mut parsed = Self {
            runtime: "/run/stasis-tracer".into(),
            pin: "/sys/fs/bpf/stasis-tracer".into(),
            object: object(),
            user_tasks: 16_384,
            userfaultfd: true,
            pids: true,
            keep: false,
            seccomp: true,
            remove: false,
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().with_context(|| format!("{} needs a value\n{USAGE}", argument.display()));
            match argument.to_str() {
                Some("--runtime") => parsed.runtime = std::path::absolute(PathBuf::from(value()?))?,
                Some("--pin") => parsed.pin = std::path::absolute(PathBuf::from(value()?))?,
                Some("--object") => parsed.object = value()?.into(),
                Some("--user-tasks") => {
                    let number = value()?;
                    parsed.user_tasks = number
                        .to_str()
                        .and_then(|number| number.parse().ok())
                        .with_context(|| format!("--user-tasks {}: no number", number.display()))?;
                }
                Some("--no-userfaultfd") => parsed.userfaultfd = false,
                Some("--no-pids") => parsed.pids = false,
                Some("--keep") => parsed.keep = true,
                Some("--no-seccomp") => parsed.seccomp = false,
                Some("--remove") => parsed.remove = true,
                Some("--help") => {
                    print!("{USAGE}");
                    return Ok(None);
                }
                _ => bail!("{}: unknown\n{USAGE}", argument.display()),
            }
        }
        Ok(Some(parsed))
    }
}

/// Where it is built, and where it is installed.
fn object() -> PathBuf {
    let this = env::current_exe().unwrap_or_default();
    let beside = this.with_file_name(OBJECT);
    let installed = this.ancestors().nth(2).map(|prefix| prefix.join("lib/stasis").join(OBJECT));
    installed.filter(|installed| !beside.exists() && installed.exists()).unwrap_or(beside)
}
