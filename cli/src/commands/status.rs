//! `stasis status`.

use stasis_protocol::{PAGE_SIZE, coordinator};
use stasis_store::pager::{self, report::Progress};

use crate::{
    address::{Address, Target},
    client::Client,
    context::Context,
    failure::ExitCode,
    output, process,
    report::{self, FailedCheckpoint, Refusal},
    tracer::{client::Tracer, escapes},
};

pub fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let target = context.coordinator()?;
    let mut status = report::Status::from(Client::reach(&target)?.status()?);
    // Pagers and tracer tell of pids, which are others on another host.
    if let Target::Here(address) = &target {
        for process in &mut status.processes {
            process.memory = pager::report::ask(process.real_pid);
        }
        status = with_outside(status, address);
    }
    if context.json {
        output::json(&status)?;
    } else {
        output::print(&render(&status, context.quiet))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Adds the processes without the library, as far as a tracer tells them.
fn with_outside(mut status: report::Status, address: &Address) -> report::Status {
    let members: Vec<u32> = status.processes.iter().map(|process| process.real_pid).collect();
    let census = || -> anyhow::Result<_> {
        let Some(mut tracer) = Tracer::connect()? else { return Ok(None) };
        Ok(Some(escapes::census(&mut tracer, address, &members)?))
    };
    match census() {
        Ok(census) => {
            if let Some(refused) = census.as_ref().map(|census| census.refused).filter(|&refused| refused > 0)
            {
                output::note(&format!(
                    "{refused} processes of this user were not tracked: there were too many (stasis-tracer --user-tasks)"
                ));
            }
            status.outside = census.map(|census| census.strangers(&members.iter().copied().collect()));
        }
        Err(error) => output::note(&format!("the tracer: {error:#}")),
    }
    status
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
        let network = status.network.as_ref().map(|network| format!(", {network}")).unwrap_or_default();
        for (name, value) in [
            ("computation", status.computation.as_str()),
            ("coordinator", &format!("{} (pid {}){network}", status.address, status.coordinator_pid)),
            ("store", &status.store),
            ("checkpoints", &checkpoints),
        ] {
            text.push_str(&format!("{name:<12} {}\n", output::printable(value)));
        }
        if let Some(FailedCheckpoint { failed, refusal: Refusal { what, reason, remedy }, .. }) =
            &status.last_failure
        {
            let why = output::printable(&format!("{what}: {reason}; {remedy}"));
            text.push_str(&format!("{:<12} {failed}, {why}\n", "last failed"));
        }
        if status.processes.is_empty() {
            text.push_str("no process\n");
            text.push_str(&outside(status));
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
    for process in &status.processes {
        if let Some(memory) = process.memory.as_ref().filter(|_| !quiet) {
            text.push_str(&arriving(process.pid, memory));
        }
    }
    text.push_str(&outside(status));
    text
}

/// Whoever cannot be checkpointed, and why.
fn outside(status: &report::Status) -> String {
    let escapes = status.outside.iter().flatten();
    escapes.map(|escape| format!("\nnot checkpointed: {}\n", coordinator::Refusal::from(escape))).collect()
}

/// How the memory of a lazily restarted process arrives.
fn arriving(pid: u32, memory: &Progress) -> String {
    let size = |pages: u64| output::bytes(pages * PAGE_SIZE as u64);
    let state = match memory.complete_us {
        Some(us) => format!("{} in after {}", size(memory.pages), output::duration(us)),
        None => format!("{} in, {} left", size(memory.pages - memory.left), size(memory.left)),
    };
    let time = |ns: Option<u64>| or_dash(ns.map(|ns| output::duration(ns.div_ceil(1000))));
    format!(
        "\nmemory of {pid}: {state}; {} faults, median {}, p99 {}; from {} (pager {})\n",
        memory.faults,
        time(memory.fault_median_ns),
        time(memory.fault_p99_ns),
        memory.source,
        memory.pager_pid
    )
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
