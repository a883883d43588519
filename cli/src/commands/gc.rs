//! `stasis gc`: gives back the room of what no checkpoint needs, and compresses the rest.

use stasis_protocol::store::Collected;

use crate::{
    args::GcArgs,
    context::Context,
    failure::{ExitCode, Failure},
    output, report,
    store::Store,
};

pub fn run(context: &Context, args: &GcArgs) -> anyhow::Result<ExitCode> {
    let directory = context.store()?;
    let is_disabled =
        std::env::var("STASIS_DISABLE").is_ok_and(|names| names.split(',').any(|name| name == "compression"));
    let collected = Store::open(&directory)?.collect(!args.no_compression && !is_disabled)?;
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
    let moved = match collected.packs_compacted + collected.packs_compressed {
        0 => String::new(),
        packs => format!(
            ", {packs} compacted ({} moved)",
            output::bytes(collected.pages_moved * stasis_protocol::PAGE_SIZE as u64)
        ),
    };
    let compressed = match collected.compressed_from {
        0 => String::new(),
        from => {
            format!(", {} compressed to {}", output::bytes(from), output::bytes(collected.compressed_to))
        }
    };
    format!(
        "{} given back{waiting}: {} removed{moved}{compressed}, {} removed\n",
        output::bytes(collected.freed),
        output::count(collected.packs_removed, "pack"),
        output::count(collected.nodes_removed, "manifest node")
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
