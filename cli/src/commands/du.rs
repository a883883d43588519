//! `stasis du`: how much room checkpoints take.

use std::collections::HashMap;

use serde::Serialize;
use stasis_protocol::store::DiskUsage;

use crate::{
    args::DuArgs,
    context::Context,
    failure::ExitCode,
    output::{self, bytes},
    report,
    store::Store,
};

#[derive(Serialize)]
struct Report {
    /// Pages of all checkpoints, counted as often as they are named.
    logical_bytes: u64,
    /// Of those, once each and without pages of zeros.
    distinct_bytes: u64,
    /// Pages in packs that no checkpoint needs.
    garbage_bytes: u64,
    /// On disk.
    packs_bytes: u64,
    /// On disk.
    index_bytes: u64,
    /// Pages in packs that are compressed where that pays, as they were, and what those packs take.
    compressed_from_bytes: u64,
    compressed_to_bytes: u64,
    checkpoints: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    id: String,
    label: Option<String>,
    logical_bytes: u64,
    distinct_bytes: u64,
    /// Pages that no other checkpoint needs.
    own_bytes: u64,
    /// What deleting it would give back: those pages as they lie on the disk.
    own_on_disk_bytes: u64,
    #[serde(skip)]
    command: String,
}

pub fn run(context: &Context, args: &DuArgs) -> anyhow::Result<ExitCode> {
    let mut store = Store::open(&context.store()?)?;
    let only = match &args.reference {
        Some(reference) => Some(store.resolve(reference)?.id),
        None => None,
    };
    let usage = store.disk_usage()?;
    let records = store.list()?.into_iter().map(report::Checkpoint::from);
    let records: HashMap<String, report::Checkpoint> =
        records.map(|record| (record.id.clone(), record)).collect();
    let report = report(usage, &records, only.as_deref());
    if context.json {
        output::json(&report)?;
    } else {
        output::print(&render(&report, only.is_none() && !context.quiet))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(usage: DiskUsage, records: &HashMap<String, report::Checkpoint>, only: Option<&str>) -> Report {
    let entries = usage.checkpoints.into_iter().filter(|entry| only.is_none_or(|only| only == entry.id));
    let checkpoints = entries
        .map(|entry| {
            let record = records.get(&entry.id);
            let first = record.and_then(|record| record.processes.first());
            Entry {
                label: record.and_then(|record| record.label.clone()),
                logical_bytes: entry.logical,
                distinct_bytes: entry.distinct,
                own_bytes: entry.own,
                own_on_disk_bytes: entry.own_on_disk,
                command: first.map(|process| process.command.clone()).unwrap_or_default(),
                id: entry.id,
            }
        })
        .collect();
    Report {
        logical_bytes: usage.logical,
        distinct_bytes: usage.distinct,
        garbage_bytes: usage.stored.saturating_sub(usage.distinct),
        packs_bytes: usage.packs,
        index_bytes: usage.index,
        compressed_from_bytes: usage.compressed,
        compressed_to_bytes: usage.compressed_packs,
        checkpoints,
    }
}

fn render(report: &Report, totals: bool) -> String {
    let mut table = output::Table::new(&["ID", "LABEL", "SIZE", "DISTINCT", "OWN", "COMMAND"], &[2, 3, 4]);
    for entry in &report.checkpoints {
        table.row([
            entry.id.clone(),
            entry.label.clone().unwrap_or_else(|| "-".into()),
            bytes(entry.logical_bytes),
            bytes(entry.distinct_bytes),
            bytes(entry.own_on_disk_bytes),
            entry.command.clone(),
        ]);
    }
    let mut text = table.render();
    if totals {
        text.push_str(&format!(
            "\n{} of memory in {}, {} of it distinct; on disk {} of packs ({} garbage: `stasis gc`) \
             and {} of index; {}\n",
            bytes(report.logical_bytes),
            output::count(report.checkpoints.len() as u64, "checkpoint"),
            bytes(report.distinct_bytes),
            bytes(report.packs_bytes),
            bytes(report.garbage_bytes),
            bytes(report.index_bytes),
            match report.compressed_from_bytes.saturating_sub(report.compressed_to_bytes) {
                0 => "nothing is compressed".into(),
                saved => format!(
                    "compression saves {}: {} are {}",
                    bytes(saved),
                    bytes(report.compressed_from_bytes),
                    bytes(report.compressed_to_bytes)
                ),
            }
        ));
    }
    text
}
