//! `stasis gc`: gives back the room of what no checkpoint needs.

use stasis_protocol::store::Collected;

use crate::{
    context::Context,
    failure::{ExitCode, Failure},
    output, report,
    store::Store,
};

pub fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let directory = context.store()?;
    let collected = Store::open(&directory)?.collect()?;
    if context.json {
        output::json(&report::Collected::from(&collected))?;
    } else if !context.quiet {
        output::print(&render(&collected))?;
    }
    complete(context, &collected)
}

/// One line.
pub fn render(collected: &Collected) -> String {
    let waiting = if collected.waiting { ", some of it when a restart under way has read it" } else { "" };
    let moved = match collected.packs_compacted {
        0 => String::new(),
        packs => format!(
            ", {packs} compacted ({} moved)",
            output::bytes(collected.pages_moved * stasis_protocol::PAGE_SIZE as u64)
        ),
    };
    format!(
        "{} given back{waiting}: {} packs removed{moved}, {} manifest nodes removed\n",
        output::bytes(collected.freed),
        collected.packs_removed,
        collected.nodes_removed
    )
}

/// # Errors
/// What garbage is left, and why.
pub fn complete(context: &Context, collected: &Collected) -> anyhow::Result<ExitCode> {
    if collected.left.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let message = format!("some garbage is left:\n{}", collected.left.join("\n"));
    Err(Failure::Store { directory: context.store()?, message }.into())
}
