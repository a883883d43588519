//! `stasis restart`: from a checkpoint to a running program.
//!
//! Everything that can be refused is refused first, by name, with nothing made and nothing ended. Then a
//! child is made with the program's pid, given its session, limits and descriptors, and made the
//! restorer, which follows the plan written here. What remains of this process stands in for the
//! program: signals that it gets are passed on, and it ends as the program does.
//!
//! - `machine`, `credentials`, `layout`, `settings`, `descriptors`: what is checked, and what goes into the plan
//! - `objects`: content of memory and files that exist in the checkpoint only
//! - `spawn`: the child that becomes the program; `session`: where it belongs
//! - `place`, `namespace`: where its ids can be had: here, or in a pid namespace of its own
//! - `supervise`: standing in for the program

mod credentials;
mod descriptors;
mod layout;
mod machine;
pub mod namespace;
mod objects;
mod place;
mod plan;
mod report;
pub mod session;
mod settings;
mod spawn;
mod supervise;

use anyhow::bail;
use stasis_protocol::{
    coordinator::{ClientRequest, Refusal},
    image::ProcessImage,
    store::CheckpointRecord,
};

use crate::{
    address::Address,
    args::RestartArgs,
    context::Context,
    coordinator::start,
    failure::{ExitCode, Failure},
    image, locate, output,
    store::Store,
};

/// A process of a checkpoint, as it came from the store.
struct Saved {
    record: CheckpointRecord,
    image: ProcessImage,
    pages: layout::Pages,
    key: [u8; 32],
    /// While it is open the packs stay where they are.
    _store: Store,
}

/// `stasis restart`; ends as the program does, or returns why it could not be restarted.
pub fn run(context: &Context, args: &RestartArgs) -> anyhow::Result<ExitCode> {
    let policy = descriptors::Policy { missing: args.on_missing_file, changed: args.on_changed_file };
    let saved = read(context, &args.reference)?;
    check(&saved.image, &policy)?;
    let restorer = locate::find(locate::RESTORER)?;

    let address = context.address()?;
    let directory = context.store()?;
    let mut client = start::connect_or_start(&address, &directory, &start::Options::default())?;
    client.count(&ClientRequest::Resume {
        computation: saved.record.draft.computation.clone(),
        checkpoint: saved.record.id.clone(),
        processes: 1,
    })?;
    if let Some(interval) = args.interval {
        client.count(&start::interval_request(interval))?;
    }
    let request = spawn::Request {
        saved: &saved,
        policy: &policy,
        restorer: &restorer,
        address: &address,
        detach: args.detach,
    };
    let child = place::spawn(&request)?;
    drop(client);
    if args.detach {
        print(context, &saved, &address, child.pid.as_raw())?;
        return Ok(ExitCode::SUCCESS);
    }
    // Or the store's server would stay for as long as the program runs.
    drop(saved);
    supervise::stand_in(child)
}

/// Reads a checkpoint of one process.
fn read(context: &Context, reference: &str) -> anyhow::Result<Saved> {
    let directory = context.store()?;
    let mut store = Store::open(&directory)?;
    let failed = |message: String| Failure::Store { directory: directory.clone(), message };
    let record = store.resolve(reference)?;
    let [entry] = record.draft.processes.as_slice() else {
        bail!(Failure::refused(
            format!("checkpoint {}", record.id),
            format!(
                "it holds {} processes; computations of several are not supported yet",
                record.draft.processes.len()
            ),
            "restart a checkpoint of a single process"
        ))
    };
    let process = store.read_process(&entry.manifest)?;
    let whose = format!("pid {} in checkpoint {}", entry.pid, record.id);
    let image = image::decode(&process.record)
        .map_err(|error| error.failure(&whose, |error| failed(error.to_string())))?;
    let (extents, hashes) = process.pages().map_err(|error| failed(error.to_string()))?;
    let pages = layout::Pages { extents, hashes, directory: process.directory };
    Ok(Saved { record, image, pages, key: process.key, _store: store })
}

fn check(image: &ProcessImage, policy: &descriptors::Policy) -> anyhow::Result<()> {
    let mut refusals = Vec::new();
    layout::check(image, &mut refusals);
    machine::check(&image.machine, &mut refusals);
    credentials::check(image, &mut refusals);
    settings::check(image, &mut refusals);
    refusals.extend(descriptors::check(image, policy));
    if refusals.is_empty() { Ok(()) } else { Err(Failure::Refused(refusals).into()) }
}

fn refusal(what: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { what: what.into(), reason: reason.into(), remedy: remedy.into() }
}

/// What `--detach` prints.
fn print(context: &Context, saved: &Saved, address: &Address, pid: i32) -> anyhow::Result<()> {
    #[derive(serde::Serialize)]
    struct Restarted<'a> {
        checkpoint: &'a str,
        computation: &'a str,
        coordinator: String,
        pids: [i32; 1],
    }
    let restarted = Restarted {
        checkpoint: &saved.record.id,
        computation: &saved.record.draft.computation,
        coordinator: address.to_string(),
        pids: [pid],
    };
    if context.json {
        output::json(&restarted)?;
    } else if !context.quiet {
        let own = saved.image.ids.pid;
        let inside =
            if own == pid { String::new() } else { format!(" (for itself, in a pid namespace: {own})") };
        println!(
            "computation {} goes on from {}: pid {pid}{inside}",
            restarted.computation, restarted.checkpoint
        );
    }
    Ok(())
}
