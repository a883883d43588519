//! `stasis diff`: which mappings changed between two checkpoints.
//!
//! Processes are matched by the pid that they know themselves by. A page that changed or is new belongs to the mapping
//! that it lies in afterwards, one that is gone to the mapping that it lay in before.

use std::collections::BTreeMap;

use serde::Serialize;
use stasis_protocol::{
    PAGE_SIZE,
    image::ProcessImage,
    store::{Change, CheckpointRecord, Difference, Hash, MEMORY},
};

use super::show;
use crate::{
    args::DiffArgs,
    context::Context,
    failure::ExitCode,
    output::{self, bytes, printable},
    report,
    store::Store,
};

const PAGE: u64 = PAGE_SIZE as u64;

#[derive(Serialize)]
struct Report {
    from: String,
    to: String,
    processes: Vec<Process>,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    command: String,
    /// `both`, or the only one that has it: `from`, `to`.
    presence: &'static str,
    mappings: Vec<Mapping>,
}

#[derive(Default, Serialize)]
struct Mapping {
    /// 0 for memory that is in no mapping, and for objects, which have no address.
    start: u64,
    end: u64,
    protection: String,
    backing: String,
    changed_bytes: u64,
    added_bytes: u64,
    removed_bytes: u64,
}

pub fn run(context: &Context, args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let mut store = Store::open(&context.store()?)?;
    let (from, to) = (store.resolve(&args.from)?, store.resolve(&args.to)?);
    let sides = [side(&mut store, &from)?, side(&mut store, &to)?];
    let mut pids: Vec<u32> = sides.iter().flat_map(BTreeMap::keys).copied().collect();
    pids.sort_unstable();
    pids.dedup();
    let mut processes = Vec::new();
    for pid in pids {
        let (presence, mappings, one) = match (sides[0].get(&pid), sides[1].get(&pid)) {
            (Some(old), Some(new)) => {
                let ranges = store.diff(&old.manifest, &new.manifest)?;
                ("both", attribute(&ranges, &old.image, &new.image), new)
            }
            (Some(one), None) => ("from", Vec::new(), one),
            (None, Some(one)) => ("to", Vec::new(), one),
            (None, None) => continue,
        };
        processes.push(Process { pid, command: one.command.clone(), presence, mappings });
    }
    let report = Report { from: from.id, to: to.id, processes };
    if context.json {
        output::json(&report)?;
    } else {
        output::print(&render(&report, context.quiet))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A process of one of the checkpoints.
struct Side {
    manifest: Hash,
    command: String,
    image: ProcessImage,
}

fn side(store: &mut Store, record: &CheckpointRecord) -> anyhow::Result<BTreeMap<u32, Side>> {
    let images = show::read_images(store, record)?;
    let processes = record.draft.processes.iter().zip(images);
    Ok(processes
        .map(|(entry, image)| {
            (entry.pid, Side { manifest: entry.manifest, command: entry.command.clone(), image })
        })
        .collect())
}

/// Sums ranges up by mapping, in the order of addresses; objects come last.
fn attribute(ranges: &[Difference], old: &ProcessImage, new: &ProcessImage) -> Vec<Mapping> {
    let shown = [show::describe(old).mappings, show::describe(new).mappings];
    let mut sums: BTreeMap<(u32, u64, u64), Mapping> = BTreeMap::new();
    for range in ranges {
        let image = usize::from(range.change != Change::Removed);
        if range.space != MEMORY {
            let objects = if image == 1 { &new.objects } else { &old.objects };
            let sum = sums.entry((range.space, 0, 0)).or_default();
            sum.backing = show::object(range.space, objects);
            add(sum, range.change, range.pages.saturating_mul(PAGE));
            continue;
        }
        let (mut at, end) = (
            range.first_page.saturating_mul(PAGE),
            range.first_page.saturating_add(range.pages).saturating_mul(PAGE),
        );
        while at < end {
            let mappings = &shown[image];
            let found = mappings.iter().find(|mapping| mapping.start <= at && at < mapping.end);
            let stop = match found {
                Some(mapping) => mapping.end.min(end),
                None => {
                    let next = mappings.iter().map(|mapping| mapping.start).filter(|start| *start > at);
                    next.min().unwrap_or(end).min(end)
                }
            };
            let key = found.map_or((0, 0, 0), |mapping| (0, mapping.start, mapping.end));
            let sum = sums.entry(key).or_insert_with(|| named(found));
            add(sum, range.change, stop - at);
            at = stop;
        }
    }
    sums.into_values().collect()
}

fn named(mapping: Option<&report::Mapping>) -> Mapping {
    match mapping {
        Some(mapping) => Mapping {
            start: mapping.start,
            end: mapping.end,
            protection: mapping.protection.clone(),
            backing: mapping.backing.clone(),
            ..Mapping::default()
        },
        None => Mapping { backing: "in no mapping".into(), ..Mapping::default() },
    }
}

fn add(sum: &mut Mapping, change: Change, bytes: u64) {
    let field = match change {
        Change::Changed => &mut sum.changed_bytes,
        Change::Added => &mut sum.added_bytes,
        Change::Removed => &mut sum.removed_bytes,
    };
    *field = field.saturating_add(bytes);
}

fn render(report: &Report, quiet: bool) -> String {
    let mut text = String::new();
    for process in &report.processes {
        let note = match process.presence {
            "from" => format!(" (only in {})", report.from),
            "to" => format!(" (only in {})", report.to),
            _ if process.mappings.is_empty() => " (the same memory)".into(),
            _ => String::new(),
        };
        text.push_str(&format!("pid {}: {}{note}\n", process.pid, printable(&process.command)));
        if process.mappings.is_empty() {
            continue;
        }
        let mut table =
            output::Table::new(&["MAPPING", "PROT", "CHANGED", "NEW", "GONE", "BACKING"], &[2, 3, 4]);
        let mut total = Mapping::default();
        for mapping in &process.mappings {
            let place = match mapping.end {
                0 => "-".into(),
                end => format!("{:x}-{end:x}", mapping.start),
            };
            let sizes = [mapping.changed_bytes, mapping.added_bytes, mapping.removed_bytes];
            let [changed, added, removed] = sizes.map(bytes);
            let protection = mapping.protection.clone();
            table.row([place, protection, changed, added, removed, mapping.backing.clone()]);
            total.changed_bytes += mapping.changed_bytes;
            total.added_bytes += mapping.added_bytes;
            total.removed_bytes += mapping.removed_bytes;
        }
        text.push_str(&table.render());
        if !quiet {
            text.push_str(&format!(
                "{} changed, {} new, {} gone\n",
                bytes(total.changed_bytes),
                bytes(total.added_bytes),
                bytes(total.removed_bytes)
            ));
        }
    }
    text
}
