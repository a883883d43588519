//! The coordinator: one process per computation, which tells its processes when to dump themselves and
//! makes a checkpoint of their dumps.
//!
//! It knows only what the processes and the store tell it, so that it can be killed and another one
//! started. It runs on one thread; the store is spoken to from the runtime's blocking threads.
//! [`start`] brings one up in the background, [`serve`] is its main loop, [`connection`] speaks with one
//! peer, [`computation`] is its state, [`checkpoint`] takes one checkpoint, in a [`round`] of all processes, [`interval`] one now and then;
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
mod log;
mod message;
mod namespaces;
mod newborn;
mod round;
mod serve;
mod socket;
pub mod start;
mod stopped;
mod together;

use stasis_protocol::coordinator::{ClientRequest, IntervalLasts};

use crate::{args::CoordinatorArgs, client::Client, context::Context, failure::ExitCode, output, report};

/// `stasis coordinator`.
pub fn run(context: &Context, args: &CoordinatorArgs) -> anyhow::Result<ExitCode> {
    let address = context.address()?;
    if args.stop {
        let mut client = Client::connect(&address)?;
        client.count(&ClientRequest::Shutdown)?;
        client.await_end();
        return Ok(ExitCode::SUCCESS);
    }
    let store = context.store()?;
    if args.foreground {
        serve::run(address, store, args)?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = start::Options { idle: Some(args.idle_seconds), deadline: Some(args.deadline_seconds) };
    let mut client = start::connect_or_start(&address, &store, &options)?;
    if let Some(interval) = args.interval {
        client.count(&start::interval_request(interval, IntervalLasts::Coordinator))?;
    }
    let report =
        report::Coordinator { address: address.to_string(), coordinator_pid: client.coordinator_pid() };
    if context.json {
        output::json(&report)?;
    } else if !context.quiet {
        output::print(&format!("coordinator {} at {}\n", report.coordinator_pid, report.address))?;
    }
    Ok(ExitCode::SUCCESS)
}
