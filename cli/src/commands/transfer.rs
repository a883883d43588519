//! `stasis export` and `stasis import`: checkpoints as a stream.
//!
//! The store's server writes and reads a pipe, this process copies: the server has nothing of ours in its hands
//! when we are gone.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    thread,
};

use anyhow::Context as _;

use crate::{
    args::ExportArgs,
    context::Context,
    failure::{ExitCode, Failure},
    output, report,
    store::Store,
};

pub fn export(context: &Context, args: &ExportArgs) -> anyhow::Result<ExitCode> {
    if io::stdout().is_terminal() {
        let advice = "standard output is a terminal: send it to a file, or through a pipe to `stasis import`";
        return Err(Failure::Usage(advice.into()).into());
    }
    let mut store = Store::open(&context.store()?)?;
    // One after the other, to tell which of them is none.
    let ids = args.references.iter().map(|reference| Ok(store.resolve(reference)?.id));
    let ids = ids.collect::<anyhow::Result<Vec<String>>>()?;
    let (mut reader, writer) = io::pipe().context("no pipe")?;
    let stdout = io::stdout().as_fd().try_clone_to_owned().context("standard output")?;
    let copier = thread::spawn(move || io::copy(&mut reader, &mut File::from(stdout)));
    let exported = store.export(ids, writer.into());
    match copier.join() {
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Failure::OutputGone.into()),
        Ok(Err(error)) => return Err(error).context("cannot write to standard output"),
        _ => {}
    }
    let exported = exported?;
    if context.json {
        eprintln!("{}", serde_json::to_string(&report::Exported::from(&exported))?);
    } else if !context.quiet {
        output::note(&format!(
            "{} exported, {}",
            output::count(exported.checkpoints, "checkpoint"),
            output::bytes(exported.bytes)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn import(context: &Context) -> anyhow::Result<ExitCode> {
    if io::stdin().is_terminal() {
        return Err(
            Failure::Usage("standard input is a terminal: give what `stasis export` wrote".into()).into()
        );
    }
    let mut store = Store::open_or_make(&context.store()?)?;
    let (reader, mut writer) = io::pipe().context("no pipe")?;
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
    // Not waited for: after a failure there may be more to come, which nobody wants.
    thread::spawn(move || io::copy(&mut File::from(stdin), &mut writer));
    let imported = report::Imported::from(store.import(reader.into())?);
    if context.json {
        output::json(&imported)?;
        return Ok(ExitCode::SUCCESS);
    }
    for checkpoint in &imported.checkpoints {
        output::print(&format!("{}\n", checkpoint.id))?;
    }
    if !context.quiet {
        output::note(&format!(
            "{} imported, {} were there already; {} of memory, {} written",
            output::count(imported.checkpoints.len() as u64, "checkpoint"),
            imported.known,
            output::bytes(imported.memory_bytes),
            output::bytes(imported.written_bytes)
        ));
    }
    Ok(ExitCode::SUCCESS)
}
