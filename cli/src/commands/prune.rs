//! `stasis prune`: deletes checkpoints, by name or all that a rule does not keep, and gives their room back.

use std::collections::{HashMap, HashSet};

use anyhow::bail;
use serde::Serialize;

use crate::{
    args::PruneArgs,
    commands::gc,
    context::Context,
    failure::{ExitCode, Failure},
    output, report,
    store::Store,
};

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// Oldest first.
    removed: Vec<report::Checkpoint>,
    kept: usize,
    /// `null` where it was not asked for, or there was nothing to do.
    gc: Option<report::Collected>,
}

pub fn run(context: &Context, args: &PruneArgs) -> anyhow::Result<ExitCode> {
    let rule = Rule::from(args);
    if args.references.is_empty() && rule.keeps_nothing() {
        return Err(Failure::Usage(
            "say which checkpoints to delete (REF...), or which to keep (--keep-last N, --keep-hourly N, --keep-daily N)"
                .into(),
        )
        .into());
    }
    let mut store = Store::open(&context.store()?)?;
    let mut doomed = HashSet::new();
    for reference in &args.references {
        doomed.insert(store.resolve(reference)?.id);
    }
    let all: Vec<report::Checkpoint> = store.list()?.into_iter().map(report::Checkpoint::from).collect();
    if let Some(id) = rule.computation
        && !all.iter().any(|checkpoint| checkpoint.computation == id)
    {
        bail!(Failure::refused(
            format!("computation {id}"),
            "it has no checkpoint in this store",
            "`stasis show REF` says which computation a checkpoint is of"
        ));
    }
    if args.references.is_empty() {
        doomed = rule.doomed(&all);
    }
    let total = all.len();
    let mut removed: Vec<report::Checkpoint> =
        all.into_iter().filter(|checkpoint| doomed.contains(&checkpoint.id)).collect();
    if !args.dry_run {
        let ids = removed.iter().map(|checkpoint| checkpoint.id.clone()).collect();
        removed = store.prune(ids)?.into_iter().map(report::Checkpoint::from).collect();
    }
    let report =
        Report { dry_run: args.dry_run, kept: total.saturating_sub(removed.len()), removed, gc: None };
    if !context.json {
        output::print(&render(&report, context.quiet))?;
    }
    let collected = if args.dry_run || args.no_gc || report.removed.is_empty() {
        None
    } else {
        // They are deleted, whatever comes of this.
        Some(store.collect(false)?)
    };
    if context.json {
        output::json(&Report { gc: collected.as_ref().map(report::Collected::from), ..report })?;
    } else if let Some(collected) = collected.as_ref().filter(|_| !context.quiet) {
        output::print(&gc::render(collected))?;
    }
    collected.map_or(Ok(ExitCode::SUCCESS), |collected| gc::complete(context, &collected))
}

/// Which checkpoints are kept. It goes for each computation by itself.
struct Rule<'a> {
    last: usize,
    hourly: usize,
    daily: usize,
    labelled: bool,
    computation: Option<&'a str>,
}

impl<'a> From<&'a PruneArgs> for Rule<'a> {
    fn from(args: &'a PruneArgs) -> Self {
        Self {
            last: args.keep_last.unwrap_or(0),
            hourly: args.keep_hourly.unwrap_or(0),
            daily: args.keep_daily.unwrap_or(0),
            labelled: !args.labels,
            computation: args.computation.as_deref(),
        }
    }
}

impl Rule<'_> {
    fn keeps_nothing(&self) -> bool {
        self.last == 0 && self.hourly == 0 && self.daily == 0
    }

    /// The ids of those that are not kept; `all` are all checkpoints, oldest first.
    fn doomed(&self, all: &[report::Checkpoint]) -> HashSet<String> {
        // A label belongs to the last checkpoint that was given it.
        let bearers: HashMap<&str, &str> = all
            .iter()
            .filter_map(|checkpoint| Some((checkpoint.label.as_deref()?, checkpoint.id.as_str())))
            .collect();
        let mut computations: HashMap<&str, Kept> = HashMap::new();
        let mut doomed = HashSet::new();
        for checkpoint in all.iter().rev() {
            if self.computation.is_some_and(|only| only != checkpoint.computation) {
                continue;
            }
            let kept = computations.entry(&checkpoint.computation).or_default();
            let by_label = self.labelled
                && checkpoint.label.as_deref().and_then(|label| bearers.get(label))
                    == Some(&checkpoint.id.as_str());
            if !kept.keep(self, checkpoint) && !by_label {
                doomed.insert(checkpoint.id.clone());
            }
        }
        doomed
    }
}

/// What of a computation has been kept, newest first.
#[derive(Default)]
struct Kept {
    last: usize,
    hours: HashSet<u64>,
    days: HashSet<u64>,
}

impl Kept {
    /// Whether this one is kept: it is one of the last, or the newest of its hour or day.
    fn keep(&mut self, rule: &Rule<'_>, checkpoint: &report::Checkpoint) -> bool {
        let seconds = checkpoint.taken_us / 1_000_000;
        let newest = |of: &mut HashSet<u64>, period: u64, limit: usize| of.len() < limit && of.insert(period);
        let last = self.last < rule.last;
        self.last += usize::from(last);
        let hour = newest(&mut self.hours, seconds / 3600, rule.hourly);
        let day = newest(&mut self.days, seconds / 86_400, rule.daily);
        last || hour || day
    }
}

fn render(report: &Report, quiet: bool) -> String {
    let mut table = output::Table::new(&["ID", "TAKEN", "LABEL", "SIZE", "COMMAND"], &[3]);
    for checkpoint in &report.removed {
        let first = checkpoint.processes.first();
        table.row([
            checkpoint.id.clone(),
            checkpoint.taken.clone(),
            checkpoint.label.clone().unwrap_or_else(|| "-".into()),
            output::bytes(checkpoint.size_bytes),
            first.map(|process| process.command.clone()).unwrap_or_default(),
        ]);
    }
    let mut text = if report.removed.is_empty() { String::new() } else { table.render() };
    if !quiet {
        let verb = if report.dry_run { "would be deleted" } else { "deleted" };
        text.push_str(&format!("{} {verb}, {} kept\n", report.removed.len(), report.kept));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000;

    fn checkpoint(sequence: u64, computation: &str, label: Option<&str>) -> report::Checkpoint {
        report::Checkpoint {
            id: sequence.to_string(),
            sequence,
            // One every twenty minutes.
            taken_us: sequence * HOUR / 3,
            taken: "T".into(),
            computation: computation.into(),
            parent: None,
            label: label.map(Into::into),
            host: "h".into(),
            pause_us: 0,
            size_bytes: 0,
            written_bytes: 0,
            processes: Vec::new(),
        }
    }

    fn kept(rule: &Rule<'_>, all: &[report::Checkpoint]) -> Vec<u64> {
        let doomed = rule.doomed(all);
        let kept = all.iter().filter(|checkpoint| !doomed.contains(&checkpoint.id));
        kept.map(|checkpoint| checkpoint.sequence).collect()
    }

    const NONE: Rule<'static> = Rule { last: 0, hourly: 0, daily: 0, labelled: true, computation: None };

    #[test]
    fn a_rule_keeps_the_newest_of_each_period() {
        let all: Vec<_> = (0..200).map(|at| checkpoint(at, "c", None)).collect();
        assert_eq!(kept(&Rule { last: 2, ..NONE }, &all), [198, 199]);
        assert_eq!(kept(&Rule { hourly: 3, ..NONE }, &all), [194, 197, 199]);
        assert_eq!(kept(&Rule { daily: 9, ..NONE }, &all), [71, 143, 199]);
        assert_eq!(kept(&Rule { last: 2, hourly: 2, daily: 2, ..NONE }, &all), [143, 197, 198, 199]);
    }

    #[test]
    fn each_computation_keeps_its_own_and_labels_are_kept_where_they_are() {
        let all = [
            checkpoint(1, "a", Some("gone")),
            checkpoint(2, "a", Some("gone")),
            checkpoint(3, "a", None),
            checkpoint(4, "b", None),
            checkpoint(5, "b", None),
        ];
        assert_eq!(kept(&Rule { last: 1, ..NONE }, &all), [2, 3, 5]);
        assert_eq!(kept(&Rule { last: 1, labelled: false, ..NONE }, &all), [3, 5]);
        assert_eq!(kept(&Rule { last: 1, computation: Some("b"), ..NONE }, &all), [1, 2, 3, 5]);
    }
}
