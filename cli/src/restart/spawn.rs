//! The child that becomes the program: with its pid, its session, its limits and its descriptors.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
};

use anyhow::{Context as _, bail};
use nix::unistd::Pid;
use stasis_protocol::{
    image::ProcessImage,
    plan::{self, Failure as Report, RestartInfo, Thread, step},
};

use super::{
    Saved, credentials, descriptors, failure, layout,
    numbers::Numbers,
    objects,
    plan::{Plan, call},
    settings,
};
use crate::{address::Address, failure::Failure};

pub struct Request<'a> {
    pub saved: &'a Saved,
    pub policy: &'a descriptors::Policy,
    pub restorer: &'a Path,
    pub address: &'a Address,
    pub detach: bool,
}

/// The restarted program.
pub struct Child {
    /// Its pid here.
    pub pid: Pid,
    /// Whether it leads a process group of its own that is to have the terminal.
    pub owns_terminal: bool,
}

/// Makes the program go on; returns when it does.
///
/// # Errors
/// What could not be restored. Nothing is left then.
pub fn spawn(request: &Request<'_>) -> anyhow::Result<Child> {
    let image = &request.saved.image;
    let taken: Vec<i32> = image.threads.iter().map(|thread| thread.tid).filter(|tid| exists(*tid)).collect();
    if let Some(tid) = taken.first() {
        bail!(Failure::refused(
            format!("pid {tid}"),
            "it is in use, and the program must have the ids that it knows itself by",
            "wait until that process has ended (`stasis kill` ends the computation)"
        ));
    }
    let (report_read, report_write) = io::pipe().context("no pipe")?;
    let mut prepared = prepare(request, report_write.into())?;
    let pid = image.ids.pid;
    let child = match clone_with_pid(pid) {
        Ok(0) => {
            drop(report_read);
            let error = become_program(request, &mut prepared);
            eprintln!("stasis: {error:#}");
            // SAFETY: ends this child without running the parent's exit handlers.
            unsafe { libc::_exit(125) };
        }
        Ok(child) => Pid::from_raw(child),
        Err(error) => bail!(Failure::refused(
            format!("pid {pid}"),
            format!("it cannot be given to the program: {error}"),
            "restart as root or with CAP_CHECKPOINT_RESTORE; see `stasis doctor`"
        )),
    };
    drop(prepared);
    await_report(OwnedFd::from(report_read).into(), request.saved, child)?;
    Ok(Child {
        pid: child,
        owns_terminal: image.ids.pgid == pid && image.settings.foreground && !request.detach,
    })
}

fn exists(tid: i32) -> bool {
    Path::new(&format!("/proc/{tid}")).exists()
}

/// clone3(2) like fork(2), with the pid that is asked for.
fn clone_with_pid(pid: i32) -> io::Result<i32> {
    let mut arguments: libc::clone_args = unsafe_zeroed();
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = &raw const pid as u64;
    arguments.set_tid_size = 1;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    if child < 0 { Err(io::Error::last_os_error()) } else { Ok(child as i32) }
}

fn unsafe_zeroed() -> libc::clone_args {
    // SAFETY: plain numbers.
    unsafe { std::mem::zeroed() }
}

/// All that is made before the child is.
struct Prepared {
    plan: Plan,
    numbers: Numbers,
    objects: std::collections::BTreeMap<u32, OwnedFd>,
    /// Where the plan is written: placed already.
    plan_file: i32,
}

fn prepare(request: &Request<'_>, report: OwnedFd) -> anyhow::Result<Prepared> {
    let (saved, image) = (request.saved, &request.saved.image);
    let pages = &saved.pages;
    let mut numbers = Numbers::new(image);
    let mut plan = Plan::default();
    plan.header.report_fd = numbers.place(report)? as u64;
    plan.header.key = saved.key;

    let objects = descriptors::create_objects(image).map_err(|refusal| Failure::Refused(vec![refusal]))?;
    objects::fill(image, &objects, pages, &saved.key)?;
    descriptors::seal_objects(image, &objects).map_err(|refusal| Failure::Refused(vec![refusal]))?;
    layout::plan(image, pages, &objects, &mut numbers, &mut plan)?;
    let exe = match File::open(&image.exe.path) {
        Ok(exe) => Some(numbers.place(exe.into())?),
        Err(_) => None,
    };
    settings::plan(image, exe, &mut plan);
    credentials::plan(image, &mut plan);

    threads(image, &mut plan);
    plan.header.restart_info = image.resume.restart_info;
    plan.header.info = info(saved, request.address, plan.keep(&image.handover));
    // SAFETY: memfd_create(2) gives a descriptor that nobody else has.
    let memory = unsafe { libc::memfd_create(c"stasis-plan".as_ptr(), 0) };
    if memory < 0 {
        return Err(io::Error::last_os_error()).context("no memory for the restart plan");
    }
    // SAFETY: as above.
    let plan_file = numbers.place(unsafe { OwnedFd::from_raw_fd(memory) })?;
    Ok(Prepared { plan, numbers, objects, plan_file })
}

fn info(saved: &Saved, address: &Address, handover: u64) -> RestartInfo {
    let image = &saved.image;
    let mut info = RestartInfo {
        threads: image.threads.iter().filter(|thread| !thread.exited).count() as u32,
        handover,
        handover_len: image.handover.len() as u64,
        stopped: image.settings.stopped.into(),
        ..RestartInfo::default()
    };
    for (to, from) in info.checkpoint.iter_mut().zip(saved.record.id.bytes()) {
        *to = from;
    }
    for (to, from) in info.coordinator.iter_mut().zip(address.path().as_os_str().as_bytes()) {
        *to = *from;
    }
    info
}

fn threads(image: &ProcessImage, plan: &mut Plan) {
    for thread in &image.threads {
        let calls = settings::thread_calls(thread, plan);
        let record = Thread {
            tid: thread.tid as u64,
            entry: image.resume.thread_entry,
            sp: thread.resume_sp,
            fs_base: thread.fs_base,
            gs_base: thread.gs_base,
            clear_tid: thread.clear_tid,
            exited: thread.exited.into(),
            ..Thread::default()
        };
        plan.threads.push((record, calls));
    }
    plan.header.checkpoint_thread =
        Thread { entry: image.resume.checkpoint_entry, sp: image.resume.checkpoint_sp, ..Thread::default() };
}

/// In the child: everything up to the exec. Returns only why that failed.
fn become_program(request: &Request<'_>, prepared: &mut Prepared) -> anyhow::Error {
    match try_become_program(request, prepared) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_become_program(
    request: &Request<'_>,
    prepared: &mut Prepared,
) -> anyhow::Result<std::convert::Infallible> {
    let image = &request.saved.image;
    block_all_signals();
    join_session(image, request.detach);
    settings::apply(image);
    std::env::set_current_dir(&image.cwd).with_context(|| format!("the working directory {}", image.cwd))?;
    let mut plan = std::mem::take(&mut prepared.plan);
    // By the child: the coordinator takes who connects (SO_PEERCRED) for the process.
    let coordinator = UnixStream::connect(request.address.path())
        .with_context(|| format!("the coordinator at {}", request.address))?;
    plan.header.info.coordinator_fd = prepared.numbers.place(coordinator.into())?;
    let placed = prepared.numbers.placed();
    let installed = descriptors::install(image, &prepared.objects, &placed, request.policy)
        .map_err(|refusal| Failure::Refused(vec![refusal]))?;
    let base = plan.keep(&installed.data);
    for mut late in installed.late {
        for position in (0..6).filter(|position| late.relocate & 1 << position != 0) {
            late.args[position] += base;
        }
        plan.last_calls.push(late);
    }
    // The program's table is to hold the program's descriptors only; the checkpoint thread has its own.
    for fd in placed {
        plan.last_calls.push(call(libc::SYS_close, &[fd as u64]));
    }
    fit(image, request.restorer, &mut plan)?;
    plan.write(prepared.plan_file)?;

    let restorer = CString::new(request.restorer.as_os_str().as_bytes())?;
    let number = CString::new(prepared.plan_file.to_string())?;
    nix::unistd::execve::<_, &std::ffi::CStr>(&restorer, &[&restorer, &number], &[])
        .with_context(|| format!("{}", request.restorer.display()))
}

/// Chooses where the restorer lives while it works, and how many threads fill memory.
fn fit(image: &ProcessImage, restorer: &Path, plan: &mut Plan) -> anyhow::Result<()> {
    const STACK: u64 = 64 << 10;
    const THREAD_STACK: u64 = 4096;
    const PARKING: u64 = 256 << 10;
    /// Below this one thread reads faster than others start, in bytes.
    const WORTH_SHARING: u64 = 8 << 20;
    let bytes: u64 = plan.fills.iter().map(|fill| fill.len).sum();
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    // At least four in all: while one waits for the disk, another computes hashes.
    plan.header.fillers = if bytes < WORTH_SHARING { 0 } else { (processors - 1).clamp(3, 7) };
    let program = restorer.metadata().map_or(0, |metadata| metadata.len()) + (1 << 20);
    let len = program
        + plan.len() as u64
        + PARKING
        + STACK * (1 + plan.header.fillers)
        + THREAD_STACK * (plan.threads.len() as u64 + 2);
    plan.header.area_len = len.next_multiple_of(1 << 21);
    plan.header.area = layout::free_area(image, plan.header.area_len).ok_or_else(|| {
        anyhow::anyhow!("the image leaves no {} bytes of addresses free for the restorer", len)
    })?;
    Ok(())
}

fn block_all_signals() {
    let all = nix::sys::signal::SigSet::all();
    let _ = nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&all), None);
}

/// A session or process group of its own where the program had one.
fn join_session(image: &ProcessImage, detach: bool) {
    let ids = image.ids;
    if ids.sid == ids.pid || detach {
        let _ = nix::unistd::setsid();
    } else if ids.pgid == ids.pid {
        let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
    }
}

/// Waits until the restorer has closed the report pipe without a word: all threads run.
fn await_report(report: File, saved: &Saved, child: Pid) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    let read = { &report }.take(size_of::<Report>() as u64).read_to_end(&mut bytes);
    if read.is_ok() && bytes.is_empty() {
        // Either all is well, or the child ended before it could say anything.
        match nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(child),
            nix::sys::wait::WaitPidFlag::WEXITED
                | nix::sys::wait::WaitPidFlag::WNOWAIT
                | nix::sys::wait::WaitPidFlag::WNOHANG,
        ) {
            Ok(nix::sys::wait::WaitStatus::Exited(_, 125)) => {
                let _ = nix::sys::wait::waitpid(child, None);
                bail!("the program could not be restarted");
            }
            _ => return Ok(()),
        }
    }
    let _ = nix::sys::wait::waitpid(child, None);
    if bytes.len() < size_of::<Report>() {
        bail!("the restorer ended without saying why");
    }
    // SAFETY: four words, any bits are valid.
    let failure: plan::Failure = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    let message = failure::explain(&failure, &saved.image, &saved.pages);
    if failure.step == step::CORRUPT || failure.step == step::FILL {
        bail!(Failure::Store { directory: saved.pages.directory.clone(), message });
    }
    bail!("{message}")
}
