//! `stasis restart`.

use anyhow::bail;

use crate::{args::RestartArgs, context::Context, failure::ExitCode};

/// Goes on from a checkpoint.
pub fn run(_context: &Context, args: &RestartArgs) -> anyhow::Result<ExitCode> {
    bail!("restart from {} is not there yet", args.reference)
}
