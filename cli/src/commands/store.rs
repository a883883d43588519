//! `stasis store`: starts the store server, becomes it, or ends it.

use std::{os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::{
    args::StoreArgs,
    context::Context,
    failure::{ExitCode, Failure},
    locate, output,
    store::{self, Client},
};

#[derive(Serialize)]
struct Stopped {
    /// `null`: there was none.
    server_pid: Option<u32>,
}

#[derive(Serialize)]
struct Serving<'a> {
    store: &'a Path,
    server_pid: u32,
}

pub fn run(context: &Context, args: &StoreArgs) -> anyhow::Result<ExitCode> {
    if args.stop {
        return stop(context);
    }
    let directory = context.store()?;
    if args.foreground {
        let server = locate::find(locate::STORE_SERVER)?;
        let error = Command::new(&server).arg(directory).arg("--foreground").args(&args.options).exec();
        return Err(error).with_context(|| format!("cannot execute {}", server.display()));
    }
    let client = match Client::connect(&directory) {
        Ok(client) if !args.options.is_empty() => bail!(Failure::refused(
            format!("the server of the store {} (pid {})", directory.display(), client.server_pid()),
            "runs already, and takes no more options",
            "end it first, `stasis store --stop`, or leave them out"
        )),
        Ok(client) => client,
        Err(_) => store::start(&directory, &args.options).map_err(|error| Failure::Store {
            directory: directory.clone(),
            message: format!("{error:#}"),
        })?,
    };
    if context.json {
        output::json(&Serving { store: &directory, server_pid: client.server_pid() })?;
    } else if !context.quiet {
        output::print(&format!("store server {} of {}\n", client.server_pid(), directory.display()))?;
    }
    Ok(ExitCode::SUCCESS)
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
