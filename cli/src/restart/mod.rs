//! `stasis restart`: from a checkpoint to a running program.
//!
//! Everything that can be refused is refused first, by name, with nothing made and nothing ended. Then a
//! child is made with the program's pid, given its session, limits and descriptors, and made the
//! restorer, which follows the plan written here. What remains of this process stands in for the
//! program: signals that it gets are passed on, and it ends as the program does.
//!
//! - `computation`: all processes of the checkpoint, read and checked
//! - `machine`, `credentials`, `layout`, `settings`, `descriptors`: what is checked, and what goes into the plan
//! - `lazy`: which memory is left to a pager, and starting it
//! - `objects`: content of memory and files that exist in the checkpoint only
//! - `tree`: who makes whom; `assembly`, `board`: they are made, and wait for each other
//! - `spawn`: the children that become the processes of the computation; `session`: where init belongs
//! - `terminal`: controlling terminals, of the computation's own and the one that this runs on
//! - `place`, `namespace`: where their ids can be had: here, or in a pid namespace of their own
//! - `running`: until all of them are there; `supervise`: standing in for the program

mod assembly;
mod board;
mod computation;
mod credentials;
mod descriptors;
mod layout;
mod lazy;
mod machine;
pub mod namespace;
mod objects;
mod place;
mod plan;
mod report;
mod running;
pub mod session;
mod settings;
mod spawn;
mod supervise;
mod terminal;
mod tree;

use stasis_protocol::coordinator::{ClientRequest, Refusal};

use self::{computation::Computation, running::Child};
use crate::{
    address::Address, args::RestartArgs, context::Context, coordinator::start, failure::ExitCode, locate,
    output, tracer,
};

/// `stasis restart`; ends as the program does, or returns why it could not be restarted.
pub fn run(context: &Context, args: &RestartArgs) -> anyhow::Result<ExitCode> {
    let passed = descriptors::Passed::look();
    descriptors::raise_limit();
    let policy = descriptors::Policy { missing: args.on_missing_file, changed: args.on_changed_file };
    let computation = Computation::read(context, &args.reference)?;
    let tree = computation.check(&policy, args.detach)?;
    let restorer = locate::find(locate::RESTORER)?;
    let wish = match (args.lazy, args.eager) {
        (true, _) => lazy::Wish::Lazy,
        (_, true) => lazy::Wish::Eager,
        _ => lazy::Wish::Auto,
    };
    let address = context.address()?;
    let memory = lazy::choose(wish, &computation.processes, &address);
    if let Some(why_not) = memory.why_not.as_deref().filter(|_| !context.quiet) {
        let _ = lazy::explain(why_not);
    }

    let directory = context.store()?;
    let mut client = start::connect_or_start(&address, &directory, &start::Options::default())?;
    client.count(&ClientRequest::Resume {
        computation: computation.record.draft.computation.clone(),
        checkpoint: computation.record.id.clone(),
        processes: computation.processes.iter().map(|process| process.image.ids.pid as u32).collect(),
    })?;
    if let Some(interval) = args.interval {
        client.count(&start::interval_request(interval))?;
    }
    tracer::join(&address);
    let request = spawn::Request {
        computation: &computation,
        tree: &tree,
        policy: &policy,
        memory: &memory,
        passed: &passed,
        restorer: &restorer,
        address: &address,
        detach: args.detach,
    };
    let child = place::spawn(&request)?;
    child.await_others(&request, client)?;
    if args.detach {
        print(context, &computation, &address, &child)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Or the store's server would stay for as long as the program runs.
    drop((computation, tree));
    supervise::stand_in(child)
}

fn refusal(what: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { what: what.into(), reason: reason.into(), remedy: remedy.into() }
}

/// What `--detach` prints.
fn print(
    context: &Context,
    computation: &Computation,
    address: &Address,
    child: &Child,
) -> anyhow::Result<()> {
    #[derive(serde::Serialize)]
    struct Restarted<'a> {
        checkpoint: &'a str,
        computation: &'a str,
        coordinator: String,
        pids: Vec<i32>,
    }
    let restarted = Restarted {
        checkpoint: &computation.record.id,
        computation: &computation.record.draft.computation,
        coordinator: address.to_string(),
        pids: child.processes.iter().map(|process| process.here.as_raw()).collect(),
    };
    if context.json {
        output::json(&restarted)?;
    } else if !context.quiet {
        let here: Vec<String> = restarted.pids.iter().map(ToString::to_string).collect();
        let own: Vec<String> = child.processes.iter().map(|process| process.own.to_string()).collect();
        let inside = if own == here {
            String::new()
        } else {
            let themselves = if own.len() == 1 { "itself" } else { "themselves" };
            format!(" (for {themselves}, in a pid namespace: {})", own.join(" "))
        };
        println!(
            "computation {} goes on from {}: pid {}{inside}",
            restarted.computation,
            restarted.checkpoint,
            here.join(" ")
        );
    }
    Ok(())
}
