//! `stasis status`.

use crate::{client::Client, context::Context, failure::ExitCode, output, process, report};

pub fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let status = report::Status::from(Client::connect(&context.address()?)?.status()?);
    if context.json {
        output::json(&status)?;
    } else {
        output::print(&render(&status, context.quiet))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(status: &report::Status, quiet: bool) -> String {
    let mut text = String::new();
    if !quiet {
        let checkpoints = format!(
            "{} taken, {} failed{}{}",
            status.checkpoints_taken,
            status.checkpoints_failed,
            status.last_checkpoint.as_ref().map(|id| format!(", last {id}")).unwrap_or_default(),
            match status.interval_us {
                Some(interval) => format!(
                    ", one every {} ({} skipped)",
                    output::duration(interval),
                    status.interval_ticks_skipped
                ),
                None => String::new(),
            }
        );
        for (name, value) in [
            ("computation", status.computation.as_str()),
            ("coordinator", &format!("{} (pid {})", status.address, status.coordinator_pid)),
            ("store", &status.store),
            ("checkpoints", &checkpoints),
        ] {
            text.push_str(&format!("{name:<12} {}\n", output::printable(value)));
        }
        if status.processes.is_empty() {
            text.push_str("no process\n");
            return text;
        }
        text.push('\n');
    }
    let mut table = output::Table::new(
        &["PID", "HERE", "STATE", "PHASE", "TRACKER", "PAUSE", "MEMORY", "COMMAND"],
        &[0, 1, 5, 6],
    );
    for process in &status.processes {
        table.row([
            process.pid.to_string(),
            process.real_pid.to_string(),
            process::state_name(process.state).to_string(),
            format!("{} for {}", process.phase, output::duration(process.phase_for_us)),
            or_dash(Some(&process.tracker).filter(|tracker| !tracker.is_empty()).cloned()),
            or_dash(process.last_pause_us.map(|pause| pauses(pause, process.last_stood_us))),
            or_dash(process.last_memory.map(output::bytes)),
            process.command.clone(),
        ]);
    }
    text.push_str(&table.render());
    text
}

/// How long a process stood still; in all, where that was several times.
fn pauses(longest_us: u64, total_us: Option<u64>) -> String {
    match total_us {
        Some(total) if total > 4 * longest_us => {
            format!("{} ({} in all)", output::duration(longest_us), output::duration(total))
        }
        _ => output::duration(longest_us),
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}
