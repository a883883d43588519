//! `stasis doctor`: what of this machine Stasis can use. Every probe does what the program itself does,
//! since version numbers and configurations promise what is not there (soft-dirty bits that are never
//! set) and say nothing of containers, seccomp filters and security modules.

mod kernel;
mod memory;
mod parts;
mod store;
mod tracer;

use crate::{context::Context, failure::ExitCode, output, report};

/// What a probe found.
enum Finding {
    /// It works; what there is to say about it.
    Works(String),
    /// It does not, but something takes its place.
    Falls { why: String, remedy: String },
    /// It does not, and something that people want depends on it.
    Missing { why: String, remedy: String },
}

impl Finding {
    fn falls(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Falls { why: why.into(), remedy: remedy.into() }
    }

    fn missing(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Missing { why: why.into(), remedy: remedy.into() }
    }
}

/// A thing to look for, and what it is for.
struct Probe {
    name: &'static str,
    purpose: &'static str,
    finding: Finding,
}

pub fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let probe = |name, purpose, finding| Probe { name, purpose, finding };
    let probes = [
        probe("kernel", "all", kernel::release()),
        probe("preload library", "launch", parts::library()),
        probe("restorer", "restart", parts::restorer()),
        probe("store server", "checkpoint, restart", parts::store_server()),
        probe("store", "checkpoint, restart", store::directory(context)),
        probe("direct writes", "checkpoint", store::direct_writes(context)),
        probe("write tracking", "incremental checkpoint", memory::write_tracking()),
        probe("tid addresses", "checkpoint", kernel::tid_address()),
        probe("timer list", "checkpoint", kernel::timers()),
        probe("pidfd_getfd", "restart", kernel::pidfd_getfd()),
        probe("original pids", "restart", kernel::set_tid(context)),
        probe("pid namespaces", "restart beside the original", kernel::namespaces()),
        probe("tracer", "naming escapes, stasis trace", tracer::service(context)),
        probe("coordinator", "checkpoint, status", parts::coordinator(context)),
    ];
    let missing = probes.iter().any(|probe| matches!(probe.finding, Finding::Missing { .. }));
    let reports: Vec<report::Probe> = probes.iter().map(report).collect();
    if context.json {
        output::json(&report::Doctor { healthy: !missing, probes: reports })?;
    } else {
        output::print(&render(&reports, context.quiet))?;
    }
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn report(probe: &Probe) -> report::Probe {
    let (state, detail, remedy) = match &probe.finding {
        Finding::Works(detail) => ("ok", detail, None),
        Finding::Falls { why, remedy } => ("fallback", why, Some(remedy)),
        Finding::Missing { why, remedy } => ("missing", why, Some(remedy)),
    };
    report::Probe {
        name: probe.name,
        purpose: probe.purpose,
        state,
        detail: detail.clone(),
        remedy: remedy.cloned(),
    }
}

fn render(probes: &[report::Probe], quiet: bool) -> String {
    let mut text = String::new();
    for probe in probes.iter().filter(|probe| !quiet || probe.state != "ok") {
        let (name, state, detail) = (probe.name, probe.state, output::printable(&probe.detail));
        text.push_str(&format!("{name:<16} {state:<9} {detail}\n"));
        if let Some(remedy) = &probe.remedy {
            text.push_str(&format!("{:<27}for {}: {}\n", "", probe.purpose, output::printable(remedy)));
        }
    }
    text
}
