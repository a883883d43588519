//! `stasis kill`.

use stasis_protocol::coordinator::ClientRequest;

use crate::{client::Client, context::Context, failure::ExitCode, output, report};

pub fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let processes = Client::reach(&context.coordinator()?)?.count(&ClientRequest::Kill)?;
    if context.json {
        output::json(&report::Killed { processes })?;
    } else if !context.quiet {
        output::print(&format!(
            "{processes} {} ended\n",
            if processes == 1 { "process" } else { "processes" }
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
