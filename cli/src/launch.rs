//! `stasis launch`: puts the library into a program and becomes that program.
//!
//! Nothing of this process may stay behind in the program: no thread, no child, no descriptor, no changed
//! signal action, mask, limit or working directory. That is also why execve(2) is called by itself:
//! `CommandExt::exec` would reset the signal mask and SIGPIPE.

use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::AsFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::FileTypeExt,
        },
    },
    path::Path,
};

use anyhow::{Context as _, anyhow, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::{ForkResult, Pid, execve, fork, setsid},
};
use stasis_protocol::coordinator::{ClientReply, ClientRequest, IntervalLasts};

use crate::{
    address::Address,
    args::LaunchArgs,
    client::Client,
    context::Context,
    coordinator::start,
    failure::{ExitCode, Failure},
    locate, output,
    process::Pidfd,
    program, report, tracer,
};

/// `stasis launch`; returns only when the program could not be started, or runs in the background.
pub fn run(context: &Context, args: &LaunchArgs) -> anyhow::Result<ExitCode> {
    let name = args.program.first().ok_or_else(|| Failure::Usage("no program is named".into()))?;
    let address = context.address()?;
    let path = program::check(name)?;
    let library = locate::find(locate::LIBRARY)?;
    let store = context.store()?;
    start::check_store(&address, &store, args.new, context.store_is_named())?;
    let (address, mut client) = start::coordinator(address, &store, args.new)?;
    let image = Image::new(&path, &args.program, &library, &address, &store)?;
    if context.store_is_named() {
        same_store(&mut client, &store)?;
    }
    if let Some(interval) = args.interval {
        client.count(&start::interval_request(interval, IntervalLasts::Computation))?;
    }
    start::tell(&address, args.new, context.quiet || context.json);
    if args.detach {
        return detach(context, &image, client, &address);
    }
    drop(client);
    tracer::join(&address);
    let error = image.execute().unwrap_err();
    Err(Failure::ProgramNotExecutable(format!("{}: {error}", path.display())).into())
}

/// Refuses a store that is not the one in which the coordinator that listens keeps its checkpoints.
fn same_store(client: &mut Client, store: &Path) -> anyhow::Result<()> {
    let status = client.status()?;
    let theirs = Path::new(&status.store);
    if theirs == store || same_directory(theirs, store) {
        return Ok(());
    }
    bail!(Failure::refused(
        format!("the coordinator at {} (pid {})", status.address, status.coordinator_pid),
        format!("keeps its checkpoints in {} and not in {}", theirs.display(), store.display()),
        "leave --store out, or name another coordinator with --coord"
    ))
}

fn same_directory(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// What execve(2) is given.
struct Image {
    path: CString,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Image {
    fn new(
        path: &Path,
        argv: &[OsString],
        library: &Path,
        address: &Address,
        store: &Path,
    ) -> anyhow::Result<Self> {
        let preload = preload(library, env::var_os("LD_PRELOAD").as_deref())?;
        let ours = [
            ("LD_PRELOAD", preload),
            ("STASIS_COORD", address.path().as_os_str().into()),
            ("STASIS_STORE", store.as_os_str().into()),
        ];
        let mut environment = Vec::new();
        for (name, value) in env::vars_os() {
            if !ours.iter().any(|(our, _)| name == *our) {
                environment.push(variable(&name, &value)?);
            }
        }
        for (name, value) in &ours {
            environment.push(variable(OsStr::new(name), value)?);
        }
        Ok(Self {
            path: CString::new(path.as_os_str().as_bytes())?,
            argv: argv.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<_, _>>()?,
            environment,
        })
    }

    /// Becomes the program.
    fn execute(&self) -> Result<Infallible, io::Error> {
        execve(&self.path, &self.argv, &self.environment).map_err(Into::into)
    }
}

fn variable(name: &OsStr, value: &OsStr) -> anyhow::Result<CString> {
    Ok(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?)
}

/// LD_PRELOAD with our library in front, which is already there where `launch` runs under `launch`.
fn preload(library: &Path, theirs: Option<&OsStr>) -> anyhow::Result<OsString> {
    let separates = |byte: &u8| matches!(byte, b':' | b' ');
    let ours = library.as_os_str().as_bytes();
    if ours.iter().any(separates) {
        bail!(
            "{}: the dynamic linker takes a space or colon in LD_PRELOAD for the end of a path (ld.so(8)): \
             install Stasis in a directory without one, or name the library by STASIS_LIB",
            library.display()
        );
    }
    let mut preload = ours.to_vec();
    let theirs = theirs.unwrap_or_default().as_bytes();
    for other in theirs.split(separates).filter(|other| !other.is_empty() && *other != ours) {
        preload.push(b':');
        preload.extend(other);
    }
    Ok(OsString::from_vec(preload))
}

/// Starts the program in the background and waits until it has joined the computation.
fn detach(
    context: &Context,
    image: &Image,
    mut client: Client,
    address: &Address,
) -> anyhow::Result<ExitCode> {
    let child = spawn(image, address)?;
    let pid = u32::try_from(child.as_raw())?;
    // Not waited for before the end of this process, so its pid stays its own.
    let ended = Pidfd::open(pid)?;
    client.send(&ClientRequest::AwaitProcess { real_pid: pid })?;
    let mut ready =
        [PollFd::new(client.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
    while let Err(error) = poll(&mut ready, PollTimeout::NONE) {
        if error != nix::Error::EINTR {
            return Err(anyhow!(error).context("waiting for the program to join"));
        }
    }
    if ended.has_ended() {
        return early_end(child);
    }
    match client.reply()? {
        ClientReply::Done { .. } => {}
        reply => bail!(client.unexpected(&reply)),
    }
    let status = client.status()?;
    let pids: Vec<u32> = status
        .processes
        .iter()
        .filter(|process| process.real_pid == pid)
        .map(|process| process.pid)
        .collect();
    let launched = report::Launched {
        computation: status.computation,
        pids,
        address: address.to_string(),
        coordinator: address.to_string(),
        coordinator_pid: client.coordinator_pid(),
    };
    if context.json {
        output::json(&launched)?;
    } else {
        let pids: Vec<String> = launched.pids.iter().map(ToString::to_string).collect();
        output::print(&format!("{} {}\n", launched.computation, pids.join(" ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The program in a session of its own, with nothing to read. Who reads what `launch` prints from a pipe (`$(...)`) waits for
/// all ends of that: the program has none.
fn spawn(image: &Image, address: &Address) -> anyhow::Result<Pid> {
    let null = File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    // SAFETY: this process has one thread, so the child may do whatever this one may.
    match unsafe { fork() }.context("cannot make a process")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let failed: io::Error = (|| {
                setsid()?;
                nix::unistd::dup2_stdin(&null)?;
                if is_pipe(io::stdout()) {
                    nix::unistd::dup2_stdout(&null)?;
                }
                tracer::join(address);
                image.execute().map(|never| match never {})
            })()
            .err()
            .unwrap_or_else(|| io::ErrorKind::Other.into());
            output::note(&format!("stasis: {}: {failed}", image.path.to_string_lossy()));
            // SAFETY: _exit(2) takes an integer; what the parent has buffered is the parent's to write.
            unsafe { libc::_exit(ExitCode::NOT_EXECUTABLE.into()) }
        }
    }
}

fn is_pipe(output: impl AsFd) -> bool {
    output
        .as_fd()
        .try_clone_to_owned()
        .and_then(|output| File::from(output).metadata())
        .is_ok_and(|found| found.file_type().is_fifo())
}

/// The program ended before it had joined, or just after.
fn early_end(child: Pid) -> anyhow::Result<ExitCode> {
    match waitpid(child, Some(WaitPidFlag::empty()))? {
        WaitStatus::Exited(_, 0) => bail!("pid {child} has ended already, with success"),
        WaitStatus::Exited(_, code) => {
            output::note(&format!("stasis: pid {child} has ended already, with exit code {code}"));
            Ok(ExitCode(u8::try_from(code).unwrap_or(ExitCode::FAILURE.0)))
        }
        WaitStatus::Signaled(_, signal, _) => bail!("pid {child} has ended already, by {signal}"),
        status => bail!("pid {child}: {status:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_comes_before_the_users_own() {
        let library = Path::new("/x/libstasis.so");
        let text =
            |theirs: Option<&str>| preload(library, theirs.map(OsStr::new)).unwrap().into_string().unwrap();
        assert_eq!(text(None), "/x/libstasis.so");
        assert_eq!(text(Some("liba.so libb.so")), "/x/libstasis.so:liba.so:libb.so");
        assert_eq!(text(Some("liba.so:/x/libstasis.so")), "/x/libstasis.so:liba.so");
    }

    #[test]
    fn a_library_path_that_the_linker_would_split_is_refused() {
        assert!(preload(Path::new("/my files/libstasis.so"), None).is_err());
    }
}
