//! `stasis-store DIR [--idle-seconds N] [--foreground]`: the store server of one directory.
//!
//! Returns as soon as the server is ready (status 0) or could not start (status 1, the reason on
//! stderr); the server itself goes on in the background, detached from terminal and session, and
//! writes what it has to say to `server.log` in the directory. With `--foreground` it does neither:
//! it prints the line `listening on SOCKET` when it is ready, and refuses at once when another server has the store open instead of waiting for it.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    sys::stat::{Mode, umask},
    unistd::{ForkResult, Pid, dup2_stdin, fork, setsid},
};
use stasis_store::{
    limit, log,
    server::{LOG, Server},
};
use stasis_sys::process;

const USAGE: &str = "usage: stasis-store DIR [--idle-seconds N] [--foreground]";

/// How long a server may take to open its store, which includes waiting for one that is just ending.
const READY: Duration = Duration::from_secs(30);

/// What a server that is ready tells the process that started it.
const OK: &[u8] = b"ok";

struct Arguments {
    directory: PathBuf,
    idle: Duration,
    foreground: bool,
}

fn main() -> ExitCode {
    let outcome = arguments().and_then(|arguments| {
        umask(Mode::from_bits_truncate(0o077));
        keep_freed_memory();
        // Programs wait for it while they are copied.
        process::take_short_turns();
        limit::lift().map_err(|errno| format!("cannot set RLIMIT_FSIZE: {errno}"))?;
        if arguments.foreground { serve(&arguments, None) } else { start(&arguments) }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(io::stderr(), "stasis-store: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Tells malloc to keep some of what is freed. A dump allocates and frees some hundred KiB for each block of
/// pages; by default (mallopt(3), M_TRIM_THRESHOLD) they go back to the kernel each time, and a tenth of
/// the time goes into zeroing them again. What is large goes back, and threads share two arenas: what each keeps to itself
/// would add up to more than all that is in use.
fn keep_freed_memory() {
    // SAFETY: mallopt(3) takes two numbers, and there is one thread.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 << 20);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

fn arguments() -> Result<Arguments, String> {
    let mut directory = None;
    let mut idle = Duration::from_secs(60);
    let mut foreground = false;
    let mut rest = std::env::args_os().skip(1);
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("--foreground") => foreground = true,
            Some("--idle-seconds") => {
                let value = rest.next().and_then(|value| value.to_str()?.parse::<f64>().ok());
                idle = value
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                    .ok_or("--idle-seconds needs a number of seconds")?;
            }
            Some(option) if option.starts_with("--") => {
                return Err(format!("unknown option {option}\n{USAGE}"));
            }
            _ if directory.is_none() => directory = Some(PathBuf::from(argument)),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(Arguments { directory: directory.ok_or(USAGE)?, idle, foreground })
}

/// Starts the server in the background and waits until it is ready.
fn start(arguments: &Arguments) -> Result<(), String> {
    let (ready, told) = io::pipe().map_err(|error| format!("no pipe: {error}"))?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() }.map_err(|errno| format!("fork: {errno}"))? {
        ForkResult::Parent { child } => {
            drop(told);
            wait_until_ready(ready, child, &arguments.directory)
        }
        ForkResult::Child => {
            drop(ready);
            let _ = setsid();
            let told = close_inherited(told)?;
            serve(arguments, Some(told))
        }
    }
}

fn wait_until_ready(mut ready: PipeReader, child: Pid, directory: &Path) -> Result<(), String> {
    let mut events = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(READY).unwrap_or(PollTimeout::MAX);
    let came = loop {
        match poll(&mut events, timeout) {
            Err(nix::Error::EINTR) => {}
            other => break other.map_err(|errno| format!("poll: {errno}"))?,
        }
    };
    if came == 0 {
        let _ = kill(child, Signal::SIGKILL);
        return Err(format!(
            "the server of {} was not ready after {} s; another one seems to hold the store (its pid is in the \
             file LOCK there) without answering: end it",
            directory.display(),
            READY.as_secs()
        ));
    }
    let mut said = Vec::new();
    ready.read_to_end(&mut said).map_err(|error| format!("the pipe of the server: {error}"))?;
    match said {
        said if said == OK => Ok(()),
        said if said.is_empty() => {
            Err(format!("the server died while starting; see {}", directory.join(LOG).display()))
        }
        said => Err(String::from_utf8_lossy(&said).into_owned()),
    }
}

/// Opens the store and serves; tells `told` how that went.
fn serve(arguments: &Arguments, told: Option<PipeWriter>) -> Result<(), String> {
    let background = told.is_some();
    let opened = Server::open(&arguments.directory, arguments.idle, background)
        .map_err(|error| error.to_string())
        .and_then(|server| {
            if background {
                detach(&arguments.directory)?;
            }
            Ok(server)
        });
    if let Some(mut told) = told {
        let said = opened.as_ref().err().map_or(OK, |message| message.as_bytes());
        let _ = told.write_all(said);
        if opened.is_err() {
            // The process that started this one says it.
            return Ok(());
        }
    }
    let server = opened?;
    if !background {
        let _ = writeln!(io::stdout(), "listening on {}", server.socket().display());
    }
    server.run().map_err(|error| error.to_string())
}

/// Closes what the starting process happened to have open: a server that lives on must not keep
/// somebody's pipe from ending.
fn close_inherited(told: PipeWriter) -> Result<PipeWriter, String> {
    let keep = told.as_raw_fd();
    for (first, last) in [(3, keep - 1), (keep + 1, i32::MAX)] {
        if first <= last {
            // SAFETY: close_range(2) takes numbers only. Nothing in this process owns a descriptor in
            // these ranges yet: standard streams are below 3, and the pipe is left out.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    Ok(told)
}

/// Leaves the directory it was started in and the terminal.
fn detach(directory: &Path) -> Result<(), String> {
    let null = File::open("/dev/null").map_err(|error| format!("cannot open /dev/null: {error}"))?;
    dup2_stdin(&null).map_err(|errno| format!("cannot redirect input: {errno}"))?;
    log::begin(directory)
        .map_err(|error| format!("cannot write to {}: {error}", directory.join(LOG).display()))?;
    std::env::set_current_dir("/").map_err(|error| format!("cannot change to /: {error}"))
}
