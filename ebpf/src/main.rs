//! `stasis-tracer`: the one privileged part of Stasis, a service for all users of a machine. Its programs in the kernel
//! follow what the processes of computations make, execute and connect to; it tells each user of their own, hands
//! full userfaultfds to processes that are tracked, and lets them have their original pids.
//!
//! It loads the programs, opens what it hands out, and then gives up all it can: capabilities, system calls. Programs
//! and maps are pinned, so that nothing is missed while it is started again. Its absence is no error: Stasis works
//! without it, and knows less.
//!
//! [`programs`] are loaded at the offsets that [`btf`] finds and kept as [`pinned`] says; [`server`] is the loop,
//! [`client`] a connection, [`answer`] what is done for a request, [`turns`] ids that are asked for, [`users`] how much
//! anybody may ask;
//! [`privilege`] and [`seccomp`] are what is given up.
//!
//! Not here: the programs (`ebpf/programs`), what is made of their news (`cli/`).

mod answer;
mod arguments;
mod btf;
mod client;
mod connections;
mod events;
mod notify;
mod pidfd;
mod pinned;
mod privilege;
mod programs;
mod seccomp;
mod server;
mod turns;
mod users;
mod values;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use arguments::Arguments;
use server::{Server, Settings};

fn main() -> ExitCode {
    let outcome = Arguments::from_command_line().and_then(|arguments| match arguments {
        Some(arguments) if arguments.remove => {
            pinned::remove_all(&arguments.pin).with_context(|| arguments.pin.display().to_string())
        }
        Some(arguments) => serve(&arguments),
        None => Ok(()),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stasis-tracer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let passed = notify::passed_listener();
    let manager = notify::Manager::connect();
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("only root can load programs into the kernel; `stasis doctor` says what is lost without it");
    }
    fs::create_dir_all(&arguments.runtime)
        .and_then(|()| fs::set_permissions(&arguments.runtime, fs::Permissions::from_mode(0o755)))
        .with_context(|| arguments.runtime.display().to_string())?;
    let _lock = lock(&arguments.runtime)?;
    let signals = signals()?;
    let object = programs::object(&arguments.object)?;
    let (pinned, loaded) = programs::load(&object, &arguments.pin)?;
    drop(object);
    let (settings, last_pid) = (settings(arguments), last_pid(arguments));
    let (listener, socket) = match passed {
        Some(listener) => (listener, None),
        None => {
            let path = arguments.runtime.join("socket");
            (listen(&path)?, Some(path))
        }
    };
    listener.set_nonblocking(true)?;
    let kept = privilege::give_up(last_pid.is_some(), || loaded.try_maps())?;
    if arguments.seccomp {
        seccomp::confine().context("seccomp")?;
        loaded.try_maps().context("with the system calls that are left")?;
    }
    announce(&loaded, &kept);
    manager.tell("READY=1");

    let ended_by = Server::new(listener, signals, loaded, settings, last_pid).run()?;
    manager.tell("STOPPING=1");
    // SIGHUP: to be started again, by whoever watches over it.
    let leaves = !arguments.keep && ended_by != Signal::SIGHUP as u32;
    if let Some(socket) = socket {
        let _ = fs::remove_file(socket);
    }
    if leaves {
        pinned.remove_all().context("what was pinned stays behind")?;
    }
    Ok(())
}

fn announce(loaded: &programs::Loaded, kept: &[&str]) {
    let how = if loaded.taken_over { "took over" } else { "loaded" };
    println!(
        "{how} {}; keeps {}",
        loaded.features.join(", "),
        if kept.is_empty() { "no capability".into() } else { kept.join(", ") }
    );
    for (feature, why) in &loaded.missing {
        println!("without {feature}: {why}");
    }
}

/// One service reads a ring buffer: a second one would take the first one's records.
fn lock(runtime: &Path) -> anyhow::Result<File> {
    let directory = File::open(runtime).with_context(|| runtime.display().to_string())?;
    directory
        .try_lock()
        .map_err(|error| anyhow::anyhow!("{}: another tracer runs here ({error})", runtime.display()))?;
    Ok(directory)
}

fn signals() -> anyhow::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// What is handed out is opened while that is allowed.
fn settings(arguments: &Arguments) -> Settings {
    let device = arguments.userfaultfd.then(|| open("/dev/userfaultfd", false)).flatten();
    Settings { limit: arguments.user_tasks, userfaultfd: device.map(Into::into) }
}

/// And what the service itself writes to.
fn last_pid(arguments: &Arguments) -> Option<File> {
    arguments.pids.then(|| open("/proc/sys/kernel/ns_last_pid", true)).flatten()
}

fn open(path: &str, write: bool) -> Option<File> {
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.inspect_err(|error| eprintln!("{path}: {error}")).ok()
}

/// Everybody may connect: who it is the kernel tells.
fn listen(path: &PathBuf) -> anyhow::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => bail!("{} is there and is no socket", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}
