//! Running cargo and what it built.

use std::{
    env,
    io::{BufRead, BufReader, PipeReader, Write},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::LazyLock,
    thread,
};

use anyhow::{Context, Result, bail};

use crate::orphans;

/// The workspace's root. Cargo says at each run where that is; it takes what was built in another clone into the same target
/// directory for built here.
pub fn workspace() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let own = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&own).parent().expect("xtask lies in the workspace").to_owned()
    });
    &ROOT
}

/// Where release binaries are. This program lies in `<target>/debug`, whatever told cargo so.
pub fn binary_directory() -> PathBuf {
    let this = env::current_exe().expect("the path of this program");
    this.ancestors().nth(2).expect("a binary lies in <target>/<profile>").join("release")
}

/// A command that runs a built binary.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(binary_directory().join(name));
    command.env("STASIS_BIN_DIR", binary_directory());
    command
}

/// The cargo that runs this, in the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace()).env("STASIS_BIN_DIR", binary_directory());
    command
}

/// Runs a command, shown to the user, that must succeed.
///
/// # Errors
/// When it cannot be started, or fails: with the command line.
pub fn run(command: &mut Command) -> Result<()> {
    let line = announce(command);
    let status = command.status().with_context(|| format!("`{line}` cannot be run"))?;
    if !status.success() {
        bail!("`{line}`: {status}");
    }
    Ok(())
}

/// Runs a command, passes on what it writes and hands each line of it to `look`. Processes that it leaves
/// behind are ended: named in what is returned.
///
/// # Errors
/// When it cannot be started.
pub fn run_and_read(
    command: &mut Command,
    look: impl FnMut(&str) + Send + 'static,
) -> Result<(ExitStatus, Vec<String>)> {
    let line = announce(command);
    let (reader, writer) = std::io::pipe()?;
    // One pipe for both streams keeps their order.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("`{line}` cannot be run"))?;
    // The command holds the pipe's writing end too, and with it the reader would wait for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let passing_on = thread::spawn(move || pass_on(reader, look));
    let status = child.wait()?;
    // Before the pipe is read to its end: they may hold it.
    let left_behind = orphans::end_all();
    let _ = passing_on.join();
    Ok((status, left_behind))
}

fn pass_on(reader: PipeReader, mut look: impl FnMut(&str)) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let mut stdout = std::io::stdout().lock();
        // What is read is counted even where nobody reads on: a closed stdout ends nothing here.
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
        look(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

/// Shows a command to the user.
pub fn announce(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut line = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    println!("+ {line}");
    line
}
