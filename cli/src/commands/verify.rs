//! `stasis verify`.

use serde::Serialize;

use crate::{
    args::VerifyArgs,
    context::Context,
    failure::{ExitCode, Failure},
    output,
    store::Store,
};

#[derive(Serialize)]
struct Report {
    pages: u64,
    damage: Vec<String>,
}

/// Reads every page of the checkpoints against its hash.
pub fn run(context: &Context, args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let directory = context.store()?;
    let mut store = Store::open(&directory)?;
    let id = match &args.reference {
        Some(reference) => Some(store.resolve(reference)?.id),
        None => None,
    };
    let found = store.verify(id.as_deref())?;
    let report = Report { pages: found.pages, damage: found.damage };
    if context.json {
        output::json(&report)?;
    } else {
        let mut text = String::new();
        for line in &report.damage {
            text.push_str(line);
            text.push('\n');
        }
        if !context.quiet || !report.damage.is_empty() {
            text.push_str(&format!("{} pages read, {} damaged\n", report.pages, report.damage.len()));
        }
        output::print(&text)?;
    }
    if report.damage.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let message = format!("{} of its pages or packs are damaged", report.damage.len());
    Err(Failure::Store { directory, message }.into())
}
