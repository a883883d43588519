//! The coordinator: one process per computation, which tells its processes when to dump themselves and
//! makes a checkpoint of their dumps.
//!
//! It knows only what the processes and the store tell it, so that it can be killed and another one
//! started. It runs on one thread; the store is spoken to from the runtime's blocking threads.
//! [`start`] brings one up in the background, [`serve`] is its main loop, [`tcp`] lets commands of other hosts in, [`connection`]
//! speaks with one peer, [`computation`] is its state, [`checkpoint`] takes one checkpoint, in a [`round`] of all processes,
//! [`interval`] one now and then;
//! [`newborn`] waits for those that are about to join, [`births`] knows of those whose parents have
//! ended, [`dormant`] of those that have not said hello since nobody needed them; [`together`] finds what they share,
//! [`stopped`] wakes processes that a signal stopped, [`claim`] has the computation's id for itself.
//!
//! Not here: what happens inside a process, or what a page is.

mod admission;
mod births;
mod checkpoint;
mod claim;
pub mod computation;
mod connection;
mod dormant;
mod entangled;
mod interval;
mod loans;
mod log;
mod message;
mod namespaces;
mod newborn;
mod round;
mod serve;
mod socket;
pub mod start;
mod stopped;
mod tcp;
mod together;

use anyhow::bail;
use stasis_protocol::coordinator::{ClientRequest, IntervalLasts};

use crate::{
    address::Target,
    args::CoordinatorArgs,
    client::Client,
    context::Context,
    failure::{ExitCode, Failure},
    output,
    remote::token,
    report,
};
pub use stopped::CHECKPOINT_THREAD;
use tcp::Listen;

/// `stasis coordinator`.
pub fn run(context: &Context, args: &CoordinatorArgs) -> anyhow::Result<ExitCode> {
    let target = context.coordinator()?;
    if args.stop {
        let mut client = Client::reach(&target)?;
        client.count(&ClientRequest::Shutdown)?;
        let stopped = report::CoordinatorStopped { coordinator_pid: client.coordinator_pid() };
        client.await_end();
        if context.json {
            output::json(&stopped)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let listen = args.listen.as_ref().map(|at| listen(context, at)).transpose()?;
    let mut client = match &target {
        Target::Afar(remote) if args.foreground || listen.is_some() => bail!(Failure::refused(
            format!("--coord {remote} with --foreground or --listen"),
            "a coordinator is started, and told where to listen, on its own host",
            format!("run `stasis coordinator` on {}, with --coord HOST:PORT or unix:PATH", remote.host())
        )),
        Target::Afar(_) => Client::reach(&target)?,
        Target::Here(address) => {
            let store = context.store()?;
            // The command that starts it has looked, or only reads there (`restart`).
            if args.ready_fd.is_none() {
                start::check_store(address, &store, false, false)?;
            }
            if let Some(listen) = &listen {
                token::make_where_missing(&listen.token_file)?;
            }
            if args.foreground {
                serve::run(address.clone(), store, args, listen.as_ref())?;
                return Ok(ExitCode::SUCCESS);
            }
            let options =
                start::Options { idle: Some(args.idle_seconds), deadline: Some(args.deadline_seconds) };
            start::connect_or_start(address, &store, &options)?
        }
    };
    if let Some(Listen { at, token_file }) = listen {
        let token_file = token_file.to_string_lossy().into_owned();
        client.count(&ClientRequest::Listen { at, token_file })?;
    }
    if let Some(interval) = args.interval {
        client.count(&start::interval_request(interval, IntervalLasts::Coordinator))?;
    }
    let report = report::Coordinator {
        address: target.to_string(),
        coordinator_pid: client.coordinator_pid(),
        network: client.status()?.network,
    };
    if context.json {
        output::json(&report)?;
    } else if !context.quiet {
        let network = report.network.filter(|_| matches!(target, Target::Here(_)));
        let network = network.map(|network| format!(" and {network}")).unwrap_or_default();
        output::print(&format!("coordinator {} at {}{network}\n", report.coordinator_pid, report.address))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--listen` asks for.
///
/// # Errors
/// [`Failure::Usage`] where there is no token to be asked for.
fn listen(context: &Context, at: &str) -> Result<Listen, Failure> {
    let token_file = context.token_file()?.ok_or_else(|| {
        Failure::Usage(format!(
            "--listen {at} would let anybody in who can connect: name a file with a token that they must know, \
             --token-file FILE (made if it is not there)"
        ))
    })?;
    Ok(Listen { at: at.into(), token_file })
}
