//! `stasis checkpoint`.

use anyhow::bail;
use stasis_protocol::coordinator::{ClientReply, ClientRequest, Outside, Refusal};

use crate::{
    address::{Address, Target},
    args::{CheckpointArgs, ExternalSockets, OnEscape},
    client::Client,
    context::Context,
    failure::{ExitCode, Failure},
    locate, output,
    process::Pidfd,
    report,
    tracer::{
        client::Tracer,
        ends,
        escapes::{self, Escape},
    },
};

pub fn run(context: &Context, args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    let target = context.coordinator()?;
    let on_escape = args.on_escape.unwrap_or(OnEscape::Refuse);
    if matches!(target, Target::Afar(_)) && on_escape != OnEscape::Refuse {
        bail!(Failure::refused(
            format!("--on-escape for the computation at {target}"),
            "what it is about is seen by the tracer of that host, by pids there",
            "run `stasis checkpoint` there"
        ));
    }
    let mut client = Client::reach(&target)?;
    if args.kill && args.external_sockets == ExternalSockets::Keep {
        bail!(Failure::Usage(
            "--external-sockets=keep is for programs that run on, and --kill ends them: use =close".into()
        ));
    }
    let external = match args.external_sockets {
        ExternalSockets::Refuse => Outside::Refuse,
        ExternalSockets::Close | ExternalSockets::Keep => Outside::Reset,
    };
    if args.on_escape.is_some() && matches!(target, Target::Here(_)) && !runs() {
        output::note(
            "--on-escape does nothing without the tracer, which tells the processes that the library is not in: have root \
             start it (systemctl start stasis-tracer, or stasis-tracer by hand)",
        );
    }
    let outside = match &target {
        Target::Here(address) => outside(&mut client, address, on_escape)?,
        Target::Afar(_) => Vec::new(),
    };
    let request = ClientRequest::Checkpoint {
        kill: args.kill,
        label: args.label.clone(),
        without: outside.iter().map(|escape| escape.pid).collect(),
        outside: external,
    };
    // A pid is used again; these are the processes that were seen.
    let ends = args.kill && on_escape != OnEscape::LeaveRunning;
    let to_end: Vec<Pidfd> =
        outside.iter().filter(|_| ends).filter_map(|escape| Pidfd::open(escape.pid).ok()).collect();
    let answer = client.request(&request).map_err(|error| match &target {
        Target::Here(address) => with_remedy(ends::named(error, address)),
        Target::Afar(_) => error,
    });
    let (record, reset) = match answer? {
        ClientReply::Checkpoint { record, outside } => (record, outside),
        reply => bail!(client.unexpected(&reply)),
    };
    for pidfd in to_end {
        // It may have ended with the others, or be another user's.
        let _ = pidfd.signal(libc::SIGKILL);
    }
    let checkpoint = report::Checkpoint::from(record);
    for socket in reset {
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

/// Whether a tracer runs.
fn runs() -> bool {
    !matches!(Tracer::connect(), Ok(None))
}

/// Says what a tracer would be good for in a refusal because of a process without the library, where none runs.
fn with_remedy(error: anyhow::Error) -> anyhow::Error {
    let is_because_of_one = |refusal: &Refusal| {
        refusal.reason.starts_with("it runs without") && refusal.reason.contains(locate::LIBRARY.file)
    };
    match error.downcast::<Failure>() {
        Ok(Failure::Refused(mut refusals)) => {
            if refusals.iter().any(is_because_of_one) && !runs() {
                for refusal in refusals.iter_mut().filter(|refusal| is_because_of_one(refusal)) {
                    refusal
                        .remedy
                        .push_str(", or without it (--on-escape), for which root must start the tracer");
                }
            }
            Failure::Refused(refusals).into()
        }
        Ok(failure) => failure.into(),
        Err(error) => error,
    }
}

/// The processes that the checkpoint is to be taken without.
///
/// # Errors
/// [`Failure::Refused`] when there are any and none is to be taken then.
fn outside(client: &mut Client, address: &Address, policy: OnEscape) -> anyhow::Result<Vec<Escape>> {
    let found = match escapes::settled(address, client, policy == OnEscape::Refuse) {
        Ok(found) => found,
        // Without the tracer's news the coordinator finds what it can by itself.
        Err(error) => {
            output::note(&format!("the tracer: {error:#}"));
            return Ok(Vec::new());
        }
    };
    let refusals: Vec<Refusal> = found.iter().map(Refusal::from).collect();
    match policy {
        OnEscape::Refuse if !refusals.is_empty() => bail!(Failure::Refused(refusals)),
        OnEscape::Warn | OnEscape::LeaveRunning => {
            for refusal in &refusals {
                output::note(&format!("not in the checkpoint: {refusal}"));
            }
        }
        OnEscape::Refuse | OnEscape::Ignore => {}
    }
    Ok(found)
}
