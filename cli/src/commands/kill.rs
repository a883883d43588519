//! `stasis kill`.

use stasis_protocol::coordinator::ClientRequest;

use crate::{
    address::Target, client::Client, context::Context, failure::ExitCode, output, process::Pidfd, report,
    tracer::escapes,
};

pub fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let target = context.coordinator()?;
    let mut client = Client::reach(&target)?;
    // Those that the library is not in belong to it, too. Of a pid that is used again it is not known whose it is.
    let outside: Vec<Pidfd> = match &target {
        Target::Here(address) => {
            let found = escapes::present(address, &mut client).unwrap_or_else(|error| {
                output::note(&format!("the tracer: {error:#}"));
                Vec::new()
            });
            found.iter().filter_map(|escape| Pidfd::open(escape.pid).ok()).collect()
        }
        Target::Afar(_) => Vec::new(),
    };
    let members = client.count(&ClientRequest::Kill)?;
    let ended = outside.iter().filter(|process| process.signal(libc::SIGKILL).is_ok()).count();
    let processes = members + ended as u32;
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
