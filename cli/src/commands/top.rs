//! `stasis top`: the computations of this machine, again and again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use anyhow::bail;
use serde::Serialize;
use stasis_protocol::tracer::Task;

use super::{trace, written};
use crate::{
    address::{self, Address},
    args::TopArgs,
    client::Client,
    context::Context,
    coordinator::CHECKPOINT_THREAD,
    failure::ExitCode,
    output, process,
    tracer::{self, client::Tracer, escapes},
};

/// A computation, as it is now. The names are an interface.
#[derive(Serialize)]
struct Computation {
    /// Of its coordinator.
    address: String,
    /// `null` when its coordinator cannot be asked (another user's, or gone).
    id: Option<String>,
    uid: u32,
    /// Processes; all of them where the tracer runs, else those that joined.
    tasks: usize,
    threads: usize,
    /// Of those, without the library; `null` without the tracer.
    outside: Option<usize>,
    resident_bytes: u64,
    /// Written since the last checkpoint; `null` where that is not tracked.
    written_bytes: Option<u64>,
    /// How much more that was than when this was looked at before, in bytes a second. What is written again counts once.
    written_rate: Option<f64>,
    checkpoints_taken: Option<u64>,
    last_pause_us: Option<u64>,
    /// On disk; several computations may share a store.
    store_bytes: Option<u64>,
    /// Since this was looked at before, in bytes a second.
    store_growth: Option<f64>,
}

/// What is missing where no tracer runs.
const NOT_TRACED: &str = "no tracer runs: of computations at unix:PATH, only the one at --coord is known\n";

pub fn run(context: &Context, args: &TopArgs) -> anyhow::Result<ExitCode> {
    let live = std::io::stdout().is_terminal() && !args.once && !context.json;
    let mut before = Before::default();
    let mut is_first = true;
    loop {
        let (found, is_traced) = look(context, &mut before)?;
        if std::mem::take(&mut is_first) && found.is_empty() && !is_traced {
            bail!(trace::no_tracer());
        }
        if context.json {
            output::json(&found)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = render(&found);
        if !is_traced && !context.quiet {
            table.push_str(NOT_TRACED);
        }
        if !live {
            output::print(&table)?;
            return Ok(ExitCode::SUCCESS);
        }
        // Home, and what was below is erased.
        output::print(&format!("\x1b[H\x1b[J{table}"))?;
        thread::sleep(args.every);
    }
}

/// What there was when it was looked at before.
#[derive(Default)]
struct Before {
    /// What a store had, in bytes.
    stores: HashMap<PathBuf, (Instant, u64)>,
    /// What a computation had written, in bytes, since so many checkpoints.
    written: HashMap<String, (Instant, u64, u64)>,
}

impl Before {
    /// How fast a computation writes, in bytes a second; not across a checkpoint, which begins anew.
    fn written(&mut self, id: &str, now: Instant, bytes: Option<u64>, checkpoints: u64) -> Option<f64> {
        let bytes = bytes?;
        let (then, before, since) = self.written.insert(id.into(), (now, bytes, checkpoints))?;
        (since == checkpoints).then(|| {
            let passed = now.saturating_duration_since(then).as_secs_f64().max(0.001);
            bytes.saturating_sub(before) as f64 / passed
        })
    }
}

/// The computations, and whether a tracer has told of them.
fn look(context: &Context, earlier: &mut Before) -> anyhow::Result<(Vec<Computation>, bool)> {
    let own = nix::unistd::geteuid().as_raw();
    let tasks = match Tracer::connect() {
        Ok(Some(mut tracer)) => {
            let mut tasks = tracer.tasks(None)?.0;
            tasks.retain(|task| !escapes::is_ours(task.pid));
            Some(tasks)
        }
        Ok(None) => None,
        Err(error) => {
            output::note(&format!("the tracer: {error:#}"));
            None
        }
    };
    let mut by_computation: BTreeMap<(u32, u64), Vec<&Task>> = BTreeMap::new();
    for task in tasks.iter().flatten() {
        by_computation.entry((task.owner, task.computation)).or_default().push(task);
    }
    let mut found = Vec::new();
    let mut before = earlier.stores.clone();
    for address in addresses(context, &by_computation)? {
        let Ok(Some(mut client)) = Client::try_connect(&address) else { continue };
        let status = client.status()?;
        let traced = by_computation.remove(&(own, tracer::number(&address))).unwrap_or_default();
        let members: BTreeSet<u32> = status.processes.iter().map(|process| process.real_pid).collect();
        let pids: BTreeSet<u32> = members.iter().copied().chain(traced.iter().map(|task| task.pid)).collect();
        if pids.is_empty() {
            continue;
        }
        let store_bytes = size(Path::new(&status.store));
        let now = Instant::now();
        let store_growth = before.remove(Path::new(&status.store)).map(|(then, bytes)| {
            (store_bytes as f64 - bytes as f64) / now.duration_since(then).as_secs_f64().max(0.001)
        });
        earlier.stores.insert(status.store.clone().into(), (now, store_bytes));
        let written_bytes =
            pids.iter().filter_map(|&pid| written::bytes(pid)).reduce(|one, other| one + other);
        let taken = status.checkpoints_taken;
        let written_rate = earlier.written(&status.computation, now, written_bytes, taken);
        found.push(Computation {
            address: address.to_string(),
            id: Some(status.computation),
            uid: own,
            tasks: pids.len(),
            threads: pids.iter().map(|&pid| threads(pid)).sum(),
            outside: tasks.as_ref().map(|_| pids.difference(&members).count()),
            resident_bytes: pids.iter().map(|&pid| process::memory(pid)).sum(),
            written_bytes,
            written_rate,
            checkpoints_taken: Some(taken),
            last_pause_us: status.processes.iter().filter_map(|process| process.last_pause_us).max(),
            store_bytes: Some(store_bytes),
            store_growth,
        });
    }
    // Those of others, for root, and those whose coordinator has gone.
    for ((uid, _), traced) in by_computation {
        found.push(Computation {
            address: traced.first().map(|task| task.label.clone()).unwrap_or_default(),
            id: None,
            uid,
            tasks: traced.len(),
            threads: traced.iter().map(|task| threads(task.pid)).sum(),
            outside: None,
            resident_bytes: traced.iter().map(|task| process::memory(task.pid)).sum(),
            written_bytes: traced
                .iter()
                .filter_map(|task| written::bytes(task.pid))
                .reduce(|one, other| one + other),
            written_rate: None,
            checkpoints_taken: None,
            last_pause_us: None,
            store_bytes: None,
            store_growth: None,
        });
    }
    Ok((found, tasks.is_some()))
}

/// Where coordinators of this user may be: at the address that was asked for, beside the default one, and where the
/// tracer heard of one.
fn addresses(context: &Context, traced: &BTreeMap<(u32, u64), Vec<&Task>>) -> anyhow::Result<Vec<Address>> {
    let mut found = vec![context.address()?];
    let mut add = |address: Address| {
        if !found.contains(&address) {
            found.push(address);
        }
    };
    address::all().into_iter().for_each(&mut add);
    let labels: BTreeSet<&str> = traced.values().flatten().map(|task| task.label.as_str()).collect();
    for label in labels {
        // A label that was cut names no address, or one where nobody listens.
        if let Ok(address) = Address::resolve(Some(label.as_ref())) {
            add(address);
        }
    }
    Ok(found)
}

/// Of the program.
fn threads(pid: u32) -> usize {
    process::threads(pid)
        .map_or(0, |threads| threads.iter().filter(|thread| thread.name != CHECKPOINT_THREAD).count())
}

/// What the files of a store take on disk.
fn size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, meta)| if meta.is_dir() { size(&path) } else { meta.blocks() * 512 })
        .sum()
}

fn render(found: &[Computation]) -> String {
    let header = [
        "COMPUTATION",
        "UID",
        "TASKS",
        "THREADS",
        "OUTSIDE",
        "MEMORY",
        "WRITTEN",
        "RATE",
        "TAKEN",
        "PAUSE",
        "STORE",
        "GROWTH",
        "ADDRESS",
    ];
    let mut table = output::Table::new(&header, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let rate = |rate: f64| format!("{}/s", output::bytes(rate.max(0.0) as u64));
    for computation in found {
        table.row([
            or_dash(computation.id.clone()),
            computation.uid.to_string(),
            computation.tasks.to_string(),
            computation.threads.to_string(),
            or_dash(computation.outside.map(|count| count.to_string())),
            output::bytes(computation.resident_bytes),
            or_dash(computation.written_bytes.map(output::bytes)),
            or_dash(computation.written_rate.map(rate)),
            or_dash(computation.checkpoints_taken.map(|count| count.to_string())),
            or_dash(computation.last_pause_us.map(output::duration)),
            or_dash(computation.store_bytes.map(output::bytes)),
            or_dash(computation.store_growth.map(rate)),
            computation.address.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_written_counts_by_the_second_and_not_across_a_checkpoint() {
        let (mut before, now) = (Before::default(), Instant::now());
        assert_eq!(before.written("a", now, Some(100), 1), None);
        let later = now + Duration::from_secs(2);
        assert_eq!(before.written("a", later, Some(500), 1), Some(200.0));
        assert_eq!(before.written("b", later, Some(500), 1), None);
        assert_eq!(before.written("a", later, Some(10), 2), None);
        assert_eq!(before.written("a", later, None, 2), None);
    }
}
