//! `stasis doctor`.
use crate::{context::Context, failure::ExitCode};
pub fn run(_context: &Context) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
