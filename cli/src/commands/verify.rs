//! `stasis verify`.

use serde::Serialize;
use stasis_store::client::Verification;

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
    damaged: u64,
    /// A line for each damaged page or node.
    damage: Vec<String>,
    /// A line for what of a pack the same checkpoints need.
    summary: Vec<String>,
}

/// Reads every page of the checkpoints against its hash.
pub fn run(context: &Context, args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let directory = context.store()?;
    let mut store = Store::open(&directory)?;
    let id = match &args.reference {
        Some(reference) => Some(store.resolve(reference)?.id),
        None => None,
    };
    let Verification { pages, damaged, damage, summary } = store.verify(id.as_deref())?;
    let report = Report { pages, damaged, damage, summary };
    if context.json {
        output::json(&report)?;
    } else {
        let mut text = String::new();
        for line in &report.summary {
            text.push_str(line);
            text.push('\n');
        }
        if !context.quiet || !report.damage.is_empty() {
            text.push_str(&format!("{} read, {damaged} damaged\n", output::count(pages, "page")));
        }
        output::print(&text)?;
    }
    if report.damage.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let message = match damaged {
        1 => "one of its pages is damaged".into(),
        _ => format!("{damaged} of its pages or packs are damaged"),
    };
    Err(Failure::Store { directory, message }.into())
}
