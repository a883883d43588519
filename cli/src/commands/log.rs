//! `stasis log`: checkpoints newest first, with the tree that they form.

use std::collections::{HashMap, HashSet};

use crate::{args::LogArgs, context::Context, failure::ExitCode, output, report, store::Store};

pub fn run(context: &Context, args: &LogArgs) -> anyhow::Result<ExitCode> {
    let mut store = Store::open(&context.store()?)?;
    let from = match &args.reference {
        Some(reference) => Some(store.resolve(reference)?.id),
        None => None,
    };
    let checkpoints = store.list()?.into_iter().map(report::Checkpoint::from).collect();
    let history = history(checkpoints, from.as_deref());
    if context.json {
        output::json(&history)?;
    } else {
        output::print(&render(&history))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Newest first; with `from`, only it and what it goes back to.
fn history(mut checkpoints: Vec<report::Checkpoint>, from: Option<&str>) -> Vec<report::Checkpoint> {
    // They come oldest first; not by sequence, which says of imported ones when they were imported.
    checkpoints.reverse();
    let Some(from) = from else { return checkpoints };
    let parents: HashMap<&str, Option<&str>> =
        checkpoints.iter().map(|checkpoint| (checkpoint.id.as_str(), checkpoint.parent.as_deref())).collect();
    let mut wanted = HashSet::new();
    let mut next = Some(from);
    while let Some(id) = next.filter(|id| wanted.insert(id.to_string())) {
        next = parents.get(id).copied().flatten();
    }
    checkpoints.retain(|checkpoint| wanted.contains(&checkpoint.id));
    checkpoints
}

/// A line for each checkpoint, with lanes to its left: one for each line of descent, which begins at its
/// newest checkpoint and ends at its first, or where it joins another.
fn render(history: &[report::Checkpoint]) -> String {
    let known: HashSet<&str> = history.iter().map(|checkpoint| checkpoint.id.as_str()).collect();
    // What each lane leads down to.
    let mut lanes: Vec<Option<&str>> = Vec::new();
    let mut text = String::new();
    for checkpoint in history {
        let id = checkpoint.id.as_str();
        let lane = lanes.iter().position(|lane| *lane == Some(id)).unwrap_or_else(|| {
            let free = lanes.iter().position(Option::is_none).unwrap_or(lanes.len());
            if free == lanes.len() {
                lanes.push(None);
            }
            lanes[free] = Some(id);
            free
        });
        let joins: Vec<usize> =
            (0..lanes.len()).filter(|&other| other != lane && lanes[other] == Some(id)).collect();
        let mut marks = String::new();
        for (index, other) in lanes.iter().enumerate() {
            marks.push_str(match (index == lane, joins.contains(&index), other) {
                (true, ..) => "o ",
                (_, true, _) => "/ ",
                (_, _, Some(_)) => "| ",
                (_, _, None) => "  ",
            });
        }
        for join in joins {
            lanes[join] = None;
        }
        text.push_str(&format!("{marks}{}\n", summary(checkpoint)));
        lanes[lane] = checkpoint.parent.as_deref().filter(|parent| known.contains(parent));
        if let (None, Some(parent)) = (lanes[lane], &checkpoint.parent) {
            let marks: String = lanes.iter().map(|lane| if lane.is_some() { "| " } else { "  " }).collect();
            text.push_str(&format!(
                "{marks}  (goes back to {}, which is not in this store)\n",
                output::printable(parent)
            ));
        }
        while lanes.last().is_some_and(Option::is_none) {
            lanes.pop();
        }
    }
    text
}

fn summary(checkpoint: &report::Checkpoint) -> String {
    let label = checkpoint.label.as_ref().map(|label| format!(" [{label}]")).unwrap_or_default();
    let command = checkpoint.processes.first().map(|process| process.command.as_str()).unwrap_or_default();
    output::printable(&format!(
        "{}{label}  {}  {} written, pause {}  {command}",
        checkpoint.id,
        checkpoint.taken,
        output::bytes(checkpoint.written_bytes),
        output::pause(checkpoint.pause_us)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(sequence: u64, id: &str, parent: Option<&str>) -> report::Checkpoint {
        report::Checkpoint {
            id: id.into(),
            sequence,
            taken_us: 0,
            taken: "T".into(),
            computation: "c".into(),
            parent: parent.map(Into::into),
            label: None,
            host: "h".into(),
            pause_us: 0,
            size_bytes: 0,
            written_bytes: 0,
            processes: Vec::new(),
        }
    }

    fn forked() -> Vec<report::Checkpoint> {
        vec![
            checkpoint(1, "a", None),
            checkpoint(2, "b", Some("a")),
            checkpoint(3, "x", Some("a")),
            checkpoint(4, "c", Some("b")),
            checkpoint(5, "q", Some("pruned")),
        ]
    }

    #[test]
    fn lines_of_descent_join_where_they_parted() {
        let text = render(&history(forked(), None));
        let lanes: Vec<&str> = text.lines().map(|line| line.split("  T").next().unwrap()).collect();
        assert_eq!(
            lanes,
            [
                "o q",
                "    (goes back to pruned, which is not in this store)",
                "o c",
                "| o x",
                "o | b",
                "o / a"
            ]
        );
    }

    #[test]
    fn a_history_is_the_way_back_from_one_checkpoint() {
        let ids: Vec<String> =
            history(forked(), Some("c")).into_iter().map(|checkpoint| checkpoint.id).collect();
        assert_eq!(ids, ["c", "b", "a"]);
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let circle = vec![checkpoint(1, "a", Some("b")), checkpoint(2, "b", Some("a"))];
        assert_eq!(history(circle, Some("a")).len(), 2);
    }
}
