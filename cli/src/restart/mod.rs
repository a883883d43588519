//! `stasis restart`: from a checkpoint to a running program.
//!
//! Everything that can be refused is refused first, by name, with nothing made and nothing ended. Then a
//! child is made with the program's pid, given its session, limits and descriptors, and made the
//! restorer, which follows the plan written here. What remains of this process stands in for the
//! program: signals that it gets are passed on, and it ends as the program does.
//!
//! - `computation`: all processes of the checkpoint, read and checked
//! - `machine`, `credentials`, `layout`, `settings`, `descriptors`: what is checked, and what goes into the plan
//! - `vdso`: this kernel's, and the image's where that is another
//! - `lazy`: which memory is left to a pager, and starting it
//! - `objects`, `system_v`: content of memory, files and queues that exist in the checkpoint only
//! - `clones`: one checkpoint several times; `staging`: the memory that they share; `takeover`: becoming the restorer with it
//! - `tree`: who makes whom; `assembly`, `board`: they are made, and wait for each other
//! - `spawn`: the children that become the processes of the computation; `session`: where init belongs
//! - `terminal`: controlling terminals, of the computation's own and the one that this runs on
//! - `place`, `namespace`: where their ids can be had: here, or in a pid namespace of their own; `ids`: who gives them
//! - `running`: until all of them are there; `progress`: how far their memory has come; `supervise`: standing in for the program

mod assembly;
mod board;
mod clones;
mod computation;
mod credentials;
mod descriptors;
mod ids;
mod layout;
mod lazy;
mod machine;
pub mod namespace;
mod objects;
mod place;
mod plan;
mod progress;
mod report;
mod running;
pub mod session;
mod settings;
mod spawn;
mod staging;
mod supervise;
mod system_v;
mod takeover;
mod terminal;
mod tree;
mod vdso;

use std::path::PathBuf;

use stasis_protocol::coordinator::{ClientRequest, IntervalLasts, Refusal};

use self::{computation::Computation, running::Child, staging::Staging, tree::Tree};
use crate::{
    address::Address, args::RestartArgs, client::Client, context::Context, coordinator::start,
    failure::ExitCode, locate, output, report as reports, tracer,
};

/// What every restart of a checkpoint needs, however often it is restarted.
pub struct Prepared {
    passed: descriptors::Passed,
    policy: descriptors::Policy,
    computation: Computation,
    tree: Tree,
    restorer: PathBuf,
    wish: lazy::Wish,
    shows_progress: bool,
}

/// `stasis restart`; ends as the program does, or returns why it could not be restarted.
pub fn run(context: &Context, args: &RestartArgs) -> anyhow::Result<ExitCode> {
    let address = context.address()?;
    let mut prepared = Prepared::new(context, args)?;
    if let Some(count) = args.clones {
        return clones::run(context, args, prepared, count);
    }
    let (address, mut client) = start::coordinator(address, &context.store()?, args.new)?;
    let memory = lazy::choose(prepared.wish, &prepared.computation.processes, &address);
    if let Some(why_not) = memory.why_not.as_deref().filter(|_| !context.quiet) {
        let _ = lazy::explain(why_not);
    }
    prepared.computation.complete(&memory)?;
    client.count(&prepared.resume(prepared.computation.record.draft.computation.clone()))?;
    // Another one than the checkpoint's, where that runs elsewhere.
    let id = if args.detach { client.status()?.computation } else { String::new() };
    let coordinator_pid = client.coordinator_pid();
    tracer::join(&address);
    let child = prepared.go(args, &memory, None, &address, client)?;
    start::tell(&address, args.new, context.quiet || context.json);
    if args.detach {
        let address = address.to_string();
        let restarted = reports::Restarted {
            checkpoint: &prepared.computation.record.id,
            computation: &id,
            coordinator: &address,
            address: &address,
            coordinator_pid,
            pids: child.processes.iter().map(|process| process.here.as_raw()).collect(),
        };
        print(context, &restarted, &child)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Or the store's server would stay for as long as the program runs.
    drop(prepared);
    supervise::stand_in(child)
}

impl Prepared {
    /// Reads the checkpoint and checks it.
    fn new(context: &Context, args: &RestartArgs) -> anyhow::Result<Self> {
        let passed = descriptors::Passed::look(args.detach);
        descriptors::raise_limit();
        let policy = descriptors::Policy { missing: args.on_missing_file, changed: args.on_changed_file };
        // Clones share their memory, which is all loaded.
        let outline = args.clones.is_none() && !args.eager && !disabled("lazy");
        let computation = Computation::read(context, &args.reference, outline)?;
        let tree = computation.check(&policy, args.detach)?;
        let restorer = locate::find(locate::RESTORER)?;
        let wish = match (args.lazy, args.eager) {
            (true, _) => lazy::Wish::Lazy,
            (_, true) => lazy::Wish::Eager,
            _ => lazy::Wish::Auto,
        };
        let shows_progress = !context.quiet && !context.json;
        Ok(Self { passed, policy, computation, tree, restorer, wish, shows_progress })
    }

    /// Tells a coordinator what is going to run there.
    fn resume(&self, computation: String) -> ClientRequest {
        let processes = self.computation.processes.iter();
        ClientRequest::Resume {
            computation,
            checkpoint: self.computation.record.id.clone(),
            processes: processes.map(|process| process.image.ids.pid as u32).collect(),
        }
    }

    /// Makes the processes; returns when all of them run.
    fn go(
        &self,
        args: &RestartArgs,
        memory: &lazy::Choice,
        staging: Option<&Staging>,
        address: &Address,
        mut client: Client,
    ) -> anyhow::Result<Child> {
        if let Some(interval) = args.interval {
            client.count(&start::interval_request(interval, IntervalLasts::Computation))?;
        }
        let request = spawn::Request {
            computation: &self.computation,
            tree: &self.tree,
            policy: &self.policy,
            memory,
            staging,
            passed: &self.passed,
            restorer: &self.restorer,
            address,
            detach: args.detach,
            foreground: terminal::foreground(&self.computation.images(), &self.tree, args.detach),
            shows_progress: self.shows_progress,
        };
        let child = place::spawn(&request)?;
        child.await_others(&request, client)?;
        Ok(child)
    }
}

fn refusal(what: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { what: what.into(), reason: reason.into(), remedy: remedy.into() }
}

/// Whether STASIS_DISABLE names this part.
fn disabled(part: &str) -> bool {
    std::env::var("STASIS_DISABLE").is_ok_and(|names| names.split(',').any(|name| name == part))
}

/// What `--detach` prints.
fn print(context: &Context, restarted: &reports::Restarted<'_>, child: &Child) -> anyhow::Result<()> {
    let here: Vec<String> = restarted.pids.iter().map(ToString::to_string).collect();
    if context.json {
        output::json(restarted)?;
    } else if context.quiet {
        output::print(&format!("{} {}\n", restarted.computation, here.join(" ")))?;
    } else {
        let own: Vec<String> = child.processes.iter().map(|process| process.own.to_string()).collect();
        let inside = if own == here {
            String::new()
        } else {
            let themselves = if own.len() == 1 { "itself" } else { "themselves" };
            format!(" (for {themselves}, in a pid namespace: {})", own.join(" "))
        };
        output::print(&format!(
            "computation {} goes on from {}: pid {}{inside}\n",
            restarted.computation,
            restarted.checkpoint,
            here.join(" ")
        ))?;
    }
    Ok(())
}
