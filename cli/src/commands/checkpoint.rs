//! `stasis checkpoint`.

use anyhow::bail;
use stasis_protocol::coordinator::{ClientReply, ClientRequest, Outside};

use crate::{
    args::{CheckpointArgs, ExternalSockets},
    client::Client,
    context::Context,
    failure::{ExitCode, Failure},
    output, report,
};

pub fn run(context: &Context, args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    let mut client = Client::connect(&context.address()?)?;
    if args.kill && args.external_sockets == ExternalSockets::Keep {
        bail!(Failure::Usage(
            "--external-sockets=keep is for programs that run on, and --kill ends them: use =close".into()
        ));
    }
    let outside = match args.external_sockets {
        ExternalSockets::Refuse => Outside::Refuse,
        ExternalSockets::Close | ExternalSockets::Keep => Outside::Reset,
    };
    let request = ClientRequest::Checkpoint { kill: args.kill, label: args.label.clone(), outside };
    let (record, outside) = match client.request(&request)? {
        ClientReply::Checkpoint { record, outside } => (record, outside),
        reply => bail!(client.unexpected(&reply)),
    };
    let checkpoint = report::Checkpoint::from(record);
    for socket in outside {
        output::note(&format!("{}: a restarted program finds it reset", socket.what));
    }
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
