//! `stasis store`: becomes the store server.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::Context as _;

use crate::{args::StoreArgs, context::Context, failure::ExitCode, locate};

pub fn run(context: &Context, args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let server = locate::find(locate::STORE_SERVER)?;
    let error = Command::new(&server).arg(context.store()?).args(&args.options).exec();
    Err(error).with_context(|| format!("cannot execute {}", server.display()))
}
