//! `stasis show`.
use crate::{args::ShowArgs, context::Context, failure::ExitCode};
pub fn run(_context: &Context, _args: &ShowArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
