//! `stasis checkpoint`.

use anyhow::bail;
use stasis_protocol::coordinator::{ClientReply, ClientRequest};

use crate::{args::CheckpointArgs, client::Client, context::Context, failure::ExitCode, output, report};

pub fn run(context: &Context, args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    let mut client = Client::connect(&context.address()?)?;
    let request = ClientRequest::Checkpoint { kill: args.kill, label: args.label.clone() };
    let record = match client.request(&request)? {
        ClientReply::Checkpoint(record) => record,
        reply => bail!(client.unexpected(&reply)),
    };
    let checkpoint = report::Checkpoint::from(record);
    if context.json {
        output::json(&checkpoint)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&format!("{}\n", checkpoint.id))?;
    if !context.quiet {
        let pause = match checkpoint.pause_us {
            // Held until it was ended.
            0 => String::new(),
            pause => format!(", pause {}", output::duration(pause)),
        };
        output::note(&format!(
            "{} of memory, {} written{pause}",
            output::bytes(checkpoint.size_bytes),
            output::bytes(checkpoint.written_bytes)
        ));
    }
    Ok(ExitCode::SUCCESS)
}
