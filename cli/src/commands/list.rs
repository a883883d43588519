//! `stasis list`.

use crate::{context::Context, failure::ExitCode, output, report, store::Store};

pub fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let checkpoints: Vec<_> =
        Store::open(&context.store()?)?.list()?.into_iter().map(report::Checkpoint::from).collect();
    if context.json {
        output::json(&checkpoints)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&table(&checkpoints))?;
    Ok(ExitCode::SUCCESS)
}

/// One line for each checkpoint.
fn table(checkpoints: &[report::Checkpoint]) -> String {
    let header = ["ID", "TAKEN", "LABEL", "PIDS", "SIZE", "WRITTEN", "PAUSE", "COMMAND"];
    let mut table = output::Table::new(&header, &[3, 4, 5, 6]);
    for checkpoint in checkpoints {
        table.row(row(checkpoint));
    }
    table.render()
}

fn row(checkpoint: &report::Checkpoint) -> [String; 8] {
    let first = checkpoint.processes.first();
    [
        checkpoint.id.clone(),
        checkpoint.taken.clone(),
        checkpoint.label.clone().unwrap_or_else(|| "-".into()),
        checkpoint.processes.len().to_string(),
        output::bytes(checkpoint.size_bytes),
        output::bytes(checkpoint.written_bytes),
        output::pause(checkpoint.pause_us),
        first.map(|process| process.command.clone()).unwrap_or_default(),
    ]
}
