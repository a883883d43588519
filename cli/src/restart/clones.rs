//! `stasis restart --clones N`: one checkpoint, restarted several times at once. Each clone is a computation of its own, with an
//! id, a coordinator and pids of its own, made by a copy of this process as `stasis restart` makes one.
//!
//! What they can share of their memory is loaded before ([`super::staging`]).

use std::{
    io::{self, PipeReader, Read, Write},
    os::fd::AsFd,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};
use stasis_protocol::{
    coordinator::{ClientRequest, Refusal},
    wire,
};

use super::{
    Prepared, lazy, namespace,
    staging::{self, Staging},
    supervise,
};
use crate::{
    address::Address,
    args::RestartArgs,
    client::Client,
    context::Context,
    coordinator::{computation::random, start},
    failure::{self, ExitCode, Failure},
    output,
    process::Pidfd,
    tracer,
};

/// An address for a clone, with its coordinator.
struct Place {
    address: Address,
    client: Client,
    /// Of the computation.
    id: String,
}

/// A clone that is being made, or runs.
struct Started {
    /// Of the process that makes it and stands in for it.
    stand_in: Pid,
    address: Address,
    id: String,
    report: PipeReader,
    /// As each knows itself, and its pid here.
    pids: Vec<(i32, i32)>,
    /// Once it has ended.
    code: Option<u8>,
}

/// What the process that makes a clone tells: of each process its own pid and its pid here; or why there is none.
type Told = Result<Vec<(i32, i32)>, (Vec<Refusal>, String)>;

/// Restarts so many clones. Without `--detach` returns when all have ended.
///
/// # Errors
/// Why one of them could not be made. None is left then.
pub fn run(
    context: &Context,
    args: &RestartArgs,
    prepared: Prepared,
    count: u32,
) -> anyhow::Result<ExitCode> {
    let mut places = places(context, &prepared, count)?.into_iter();
    let staging = match args.lazy {
        true => None,
        false => Some(Staging::load(&prepared.computation.processes)?),
    };
    let signals = namespace::hold_signals()?;
    let mut clones = Vec::new();
    while let Some(Place { address, client, id }) = places.next() {
        let (report, theirs) = io::pipe().context("no pipe")?;
        // SAFETY: this process has one thread, so that the child may do what it likes.
        match unsafe { fork() }.context("no process for a clone")? {
            ForkResult::Child => {
                drop((places, report, clones));
                be_clone(context, args, prepared, staging, Place { address, client, id }, theirs)
            }
            ForkResult::Parent { child } => {
                clones.push(Started { stand_in: child, address, id, report, pids: Vec::new(), code: None });
            }
        }
    }
    drop(staging);
    staging::let_go();
    let made = clones.iter_mut().try_for_each(Started::await_made);
    if made.is_err() {
        clones.iter_mut().for_each(Started::end);
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
    made?;
    let checkpoint = prepared.computation.record.id.clone();
    // Or the store's server would stay for as long as the programs run.
    drop(prepared);
    print(context, args, &checkpoint, &clones)?;
    stand_in(clones)
}

/// As many free addresses as there are to be clones, each with a coordinator that awaits one.
fn places(context: &Context, prepared: &Prepared, count: u32) -> anyhow::Result<Vec<Place>> {
    let (first, directory) = (context.address()?, context.store()?);
    let mut places = Vec::new();
    for address in first.and_the_next() {
        if places.len() == count as usize {
            return Ok(places);
        }
        let mut client = start::connect_or_start(&address, &directory, &start::Options::default())?;
        if !client.status()?.processes.is_empty() {
            continue;
        }
        let id = format!("{:016x}", random().context("/dev/urandom")?);
        if let Err(error) = client.count(&prepared.resume(id.clone())) {
            match error.downcast_ref() {
                // Somebody else has begun to restart something there.
                Some(Failure::Refused(_)) => continue,
                _ => return Err(error),
            }
        }
        places.push(Place { address, client, id });
    }
    if places.len() == count as usize {
        return Ok(places);
    }
    bail!(Failure::refused(
        format!("{count} clones"),
        format!("only {} addresses from {first} on are free", places.len()),
        "name another one with --coord"
    ))
}

/// In a child of this process: makes a clone, and stands in for it.
fn be_clone(
    context: &Context,
    args: &RestartArgs,
    prepared: Prepared,
    staging: Option<Staging>,
    place: Place,
    mut report: io::PipeWriter,
) -> ! {
    let Place { address, client, .. } = place;
    let wish = if staging.is_some() { lazy::Wish::Eager } else { prepared.wish };
    let memory = lazy::choose(wish, &prepared.computation.processes, &address);
    if let Some(why_not) = memory.why_not.as_deref().filter(|_| !context.quiet) {
        let _ = lazy::explain(why_not);
    }
    tracer::join(&address);
    let made = prepared.go(args, &memory, staging.as_ref(), &address, client);
    staging::let_go();
    let told: Told = match &made {
        Ok(child) => Ok(child.processes.iter().map(|process| (process.own, process.here.as_raw())).collect()),
        Err(error) => Err(match error.downcast_ref() {
            Some(Failure::Refused(refusals)) => (refusals.clone(), String::new()),
            _ => (Vec::new(), format!("{error:#}")),
        }),
    };
    let _ = report.write_all(&wire::encode(&told).unwrap_or_default());
    drop((report, prepared, memory));
    let code = match made {
        Ok(child) if !args.detach => {
            supervise::stand_in(child).unwrap_or_else(|error| failure::report(&error, context.json))
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    };
    // SAFETY: ends the process, without running what belongs to the one that it was forked from.
    unsafe { libc::_exit(code.0.into()) }
}

impl Started {
    /// Waits until all its processes are there.
    fn await_made(&mut self) -> anyhow::Result<()> {
        let mut told = Vec::new();
        self.report.read_to_end(&mut told)?;
        match wire::decode::<Told>(&told) {
            Ok(Ok(pids)) => {
                self.pids = pids;
                Ok(())
            }
            Ok(Err((refusals, _))) if !refusals.is_empty() => bail!(Failure::Refused(refusals)),
            Ok(Err((_, message))) => bail!("the clone at {}: {message}", self.address),
            Err(_) => bail!("the clone at {} was killed before it could go on", self.address),
        }
    }

    fn end(&mut self) {
        // Waits for those that are being made.
        let _ = self.await_made();
        if let Ok(Some(mut client)) = Client::try_connect(&self.address) {
            let _ = client.count(&ClientRequest::Kill);
        }
        // Some may not have spoken to their coordinator yet.
        for handle in self.pids.iter().filter_map(|(_, here)| Pidfd::open(*here as u32).ok()) {
            let _ = handle.signal(libc::SIGKILL);
        }
        while waitpid(self.stand_in, None) == Err(Errno::EINTR) {}
    }
}

/// Waits for the ends of all, and passes on signals; what the terminal sends they get themselves. The code is that of the
/// first one that did not end well.
fn stand_in(mut clones: Vec<Started>) -> anyhow::Result<ExitCode> {
    let all = SigSet::all();
    all.thread_block()?;
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        for clone in clones.iter_mut().filter(|clone| clone.code.is_none()) {
            clone.code = match waitpid(clone.stand_in, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => Some(code as u8),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32 as u8),
                Err(Errno::ECHILD) => Some(ExitCode::FAILURE.0),
                _ => None,
            };
        }
        let codes: Vec<u8> = clones.iter().filter_map(|clone| clone.code).collect();
        if codes.len() == clones.len() {
            return Ok(ExitCode(codes.into_iter().find(|code| *code != 0).unwrap_or(0)));
        }
        let mut ready = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(error) if error != Errno::EINTR => return Err(error.into()),
            _ => {}
        }
        while let Some(info) = signals.read_signal()? {
            if info.ssi_signo as i32 == libc::SIGCHLD || info.ssi_code == libc::SI_KERNEL {
                continue;
            }
            for clone in clones.iter().filter(|clone| clone.code.is_none()) {
                // SAFETY: kill(2) of a child that was not collected yet.
                unsafe { libc::kill(clone.stand_in.as_raw(), info.ssi_signo as i32) };
            }
        }
    }
}

/// On standard output with `--detach`; otherwise that is the programs'.
fn print(context: &Context, args: &RestartArgs, checkpoint: &str, clones: &[Started]) -> anyhow::Result<()> {
    #[derive(serde::Serialize)]
    struct Restarted<'a> {
        checkpoint: &'a str,
        clones: Vec<Computation<'a>>,
    }
    #[derive(serde::Serialize)]
    struct Computation<'a> {
        computation: &'a str,
        coordinator: String,
        pids: Vec<i32>,
    }
    if context.json && args.detach {
        let mut restarted = Restarted { checkpoint, clones: Vec::new() };
        for clone in clones {
            let pids = clone.pids.iter().map(|(_, here)| *here).collect();
            let coordinator = clone.address.to_string();
            restarted.clones.push(Computation { computation: &clone.id, coordinator, pids });
        }
        return output::json(&restarted);
    }
    if context.quiet {
        return Ok(());
    }
    let mut lines = String::new();
    for clone in clones {
        let words = |pids: Vec<i32>| pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let own = words(clone.pids.iter().map(|(own, _)| *own).collect());
        let here = words(clone.pids.iter().map(|(_, here)| *here).collect());
        let inside = if own == here { String::new() } else { format!(" (for itself: {own})") };
        lines += &format!(
            "computation {} goes on from {checkpoint} at {}: pid {here}{inside}\n",
            clone.id, clone.address
        );
    }
    if args.detach {
        output::print(&lines)?;
    } else {
        io::stderr().write_all(lines.as_bytes())?;
    }
    Ok(())
}
