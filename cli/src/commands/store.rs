//! `stasis store`: becomes the store server, or ends it.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    args::StoreArgs,
    context::Context,
    failure::{ExitCode, Failure},
    locate, output,
    store::Client,
};

#[derive(Serialize)]
struct Stopped {
    /// `null`: there was none.
    server_pid: Option<u32>,
}

pub fn run(context: &Context, args: &StoreArgs) -> anyhow::Result<ExitCode> {
    if args.stop {
        return stop(context);
    }
    let server = locate::find(locate::STORE_SERVER)?;
    let foreground = args.foreground.then_some("--foreground");
    let error = Command::new(&server).arg(context.store()?).args(foreground).args(&args.options).exec();
    Err(error).with_context(|| format!("cannot execute {}", server.display()))
}

fn stop(context: &Context) -> anyhow::Result<ExitCode> {
    let directory = context.store()?;
    let server_pid = Client::stop(&directory)
        .map_err(|error| Failure::Store { directory: directory.clone(), message: error.to_string() })?;
    if context.json {
        output::json(&Stopped { server_pid })?;
    } else if !context.quiet {
        output::print(&match server_pid {
            Some(pid) => format!("the store server with pid {pid} has ended\n"),
            None => "no store server runs\n".into(),
        })?;
    }
    Ok(ExitCode::SUCCESS)
}
