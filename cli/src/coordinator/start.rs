//! Bringing a coordinator up in the background, and waiting until it listens.

use std::{
    env,
    io::{self, PipeReader, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::fcntl::{FcntlArg, fcntl};
use stasis_protocol::coordinator::{ClientRequest, IntervalLasts};

use super::log;
use crate::{address::Address, args, client::Client, failure::Failure, output, store};

/// What a coordinator writes to its starter when it listens.
pub const READY: &[u8] = b"ready";

/// The same, when another one does.
pub const TAKEN: &[u8] = b"taken";

/// The lowest number that the readiness pipe may have in the coordinator, out of the way of what
/// [`Command`] puts at 0, 1 and 2.
const LOWEST_READY_FD: RawFd = 3;

/// Often enough for coordinators that end just when they are found, seldom enough to end.
const ATTEMPTS: u32 = 5;

/// What a coordinator is started with; `None` is its own default.
#[derive(Debug, Default)]
pub struct Options {
    pub idle: Option<Duration>,
    pub deadline: Option<Duration>,
}

/// Connects to the coordinator at `address`; where none listens, starts one for the store at `store`.
///
/// # Errors
/// Why it could not be started or spoken to.
pub fn connect_or_start(address: &Address, store: &Path, options: &Options) -> anyhow::Result<Client> {
    for _ in 0..ATTEMPTS {
        if let Some(client) = Client::try_connect(address)? {
            return Ok(client);
        }
        start(address, store, options)?;
    }
    bail!("coordinators at {address} end as soon as they listen: see {}", log::path(address).display())
}

/// Starts a coordinator at the first address from `first` on at which none listens. Nobody else is given the same one.
///
/// # Errors
/// Why none could be started.
pub fn start_new(first: &Address, store: &Path, options: &Options) -> anyhow::Result<(Address, Client)> {
    for address in first.and_the_next() {
        if Client::try_connect(&address)?.is_some() || start(&address, store, options)? == Listens::Another {
            continue;
        }
        let client = Client::connect(&address)?;
        return Ok((address, client));
    }
    bail!(Failure::refused(
        "a coordinator of its own",
        format!("at all addresses from {first} on one listens already"),
        "name another one with --coord"
    ))
}

/// The coordinator for what a command is to run: its own (`new`), or the one at `address`.
///
/// # Errors
/// Why there is none.
pub fn coordinator(address: Address, store: &Path, new: bool) -> anyhow::Result<(Address, Client)> {
    let options = Options::default();
    if new {
        return start_new(&address, store, &options);
    }
    let client = connect_or_start(&address, store, &options)?;
    Ok((address, client))
}

/// Looks whether checkpoints can be kept at all, before anything runs that relies on them. What listens already keeps its own
/// where it was told to, unless that is named (`is_named`), too.
///
/// # Errors
/// [`Failure::Store`].
pub fn check_store(address: &Address, store: &Path, new: bool, is_named: bool) -> anyhow::Result<()> {
    match store::check(store) {
        Err(failure) if new || is_named || Client::try_connect(address)?.is_none() => bail!(failure),
        _ => Ok(()),
    }
}

/// Tells people where a coordinator is whose address nobody has named.
pub fn tell(address: &Address, new: bool, quiet: bool) {
    if new && !quiet {
        output::note(&format!("stasis: the coordinator is at {address} (--coord)"));
    }
}

/// [`ClientRequest::Interval`]; zero means none.
pub fn interval_request(interval: Duration, lasts: IntervalLasts) -> ClientRequest {
    let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
    ClientRequest::Interval { micros: (micros > 0).then_some(micros), lasts }
}

/// Who listens at an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listens {
    TheOneStarted,
    Another,
}

/// Returns when a coordinator listens: the one started, or one that was faster.
fn start(address: &Address, store: &Path, options: &Options) -> anyhow::Result<Listens> {
    if let Some(text) = env::var_os("STASIS_DEADLINE_SECONDS") {
        // The coordinator's own complaint would go to its log.
        args::deadline(&text.to_string_lossy())
            .map_err(|error| Failure::Usage(format!("STASIS_DEADLINE_SECONDS is {text:?}: {error}")))?;
    }
    let executable = env::current_exe().context("cannot tell where `stasis` itself is")?;
    let log_path = log::path(address);
    let log = log::open(address).map_err(|error| {
        Failure::refused(
            format!("the coordinator's log {}", log_path.display()),
            format!("it cannot be opened: {error}"),
            "name a place of your own: --coord unix:PATH, or XDG_RUNTIME_DIR",
        )
    })?;
    let (ready, low) = io::pipe().context("cannot make a pipe")?;
    // Descriptors 0 to 2 may be closed here, and then the pipe would be one of them.
    let report =
        fcntl(&low, FcntlArg::F_DUPFD_CLOEXEC(LOWEST_READY_FD)).context("cannot duplicate a pipe")?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    let report = unsafe { OwnedFd::from_raw_fd(report) };
    drop(low);

    let mut command = Command::new(executable);
    command.args(["coordinator", "--foreground", "--ready-fd", &report.as_raw_fd().to_string()]);
    command.arg("--coord").arg(format_unix(address)).arg("--store").arg(store);
    for (option, duration) in [("--idle-seconds", options.idle), ("--deadline-seconds", options.deadline)] {
        if let Some(duration) = duration {
            command.arg(option).arg(duration.as_secs_f64().to_string());
        }
    }
    // Its working directory would keep a file system from being unmounted; the library, if `stasis` runs
    // under `stasis launch`, would make it a process of the computation.
    command.current_dir("/").env_remove("LD_PRELOAD").env_remove("STASIS_COORD");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let report_fd = report.as_raw_fd();
    // SAFETY: `detach` makes system calls only, which are all async-signal-safe; `report` stays open until
    // the command has been spawned.
    unsafe { command.pre_exec(move || detach(report_fd)) };
    let mut intermediate = command.spawn().context("cannot start the coordinator")?;
    drop(report);
    intermediate.wait().context("waiting for the coordinator to detach")?;
    drop(command);
    await_ready(ready).with_context(|| {
        format!("the coordinator at {address} did not start (its log is {})", log_path.display())
    })
}

/// `--coord`'s argument.
fn format_unix(address: &Address) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from("unix:");
    text.push(address.path());
    text
}

/// Between fork(2) and execve(2): goes on in a grandchild in a session of its own, with no descriptor but
/// `report`. The launched program takes this process' place, and must not find a child that it did not make.
fn detach(report: RawFd) -> io::Result<()> {
    // SAFETY: setsid(2), fork(2), _exit(2), umask(2), fcntl(2) and close_range(2) take integers only; the
    // process has one thread. Descriptors are marked close-on-exec rather than closed: the standard library
    // still needs the one through which it reports a failing execve(2).
    unsafe {
        check(libc::setsid())?;
        match libc::fork() {
            -1 => return Err(io::Error::last_os_error()),
            0 => {}
            _ => libc::_exit(0),
        }
        libc::umask(0o077);
        check(libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32))?;
        check(libc::fcntl(report, libc::F_SETFD, 0))
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads what the coordinator has to say about its start.
fn await_ready(mut ready: PipeReader) -> anyhow::Result<Listens> {
    let mut said = Vec::new();
    ready.read_to_end(&mut said)?;
    match said.as_slice() {
        READY => Ok(Listens::TheOneStarted),
        TAKEN => Ok(Listens::Another),
        b"" => bail!("it ended without a word"),
        reason => bail!("{}", String::from_utf8_lossy(reason)),
    }
}
