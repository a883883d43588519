//! The child that becomes the program: with its pid, its session, its limits and its descriptors.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{SigmaskHow, sigprocmask},
    unistd::Pid,
};
use stasis_protocol::{
    PAGE_SIZE,
    image::{Credentials, ProcessImage},
    plan::{RestartInfo, Thread},
};

use super::{
    Saved, credentials,
    descriptors::{self, Places},
    layout, lazy,
    namespace::{self, Init},
    objects,
    place::Place,
    plan::{Plan, call},
    report,
    session::Session,
    settings,
};
use crate::{address::Address, failure::Failure, process::Pidfd};

pub struct Request<'a> {
    pub saved: &'a Saved,
    pub policy: &'a descriptors::Policy,
    pub memory: &'a lazy::Choice,
    pub restorer: &'a Path,
    pub address: &'a Address,
    pub detach: bool,
}

/// The restarted program.
pub struct Child {
    /// Its pid here.
    pub pid: Pid,
    /// The same, in a form that no other process can come to have.
    pub handle: Pidfd,
    /// Whose child it is: ours, or that of the first process of its pid namespace.
    pub init: Option<Init>,
    /// Whether it leads a process group of its own that is to have the terminal.
    pub owns_terminal: bool,
}

impl Child {
    /// Waits for the end of a child that is about to end.
    pub fn collect(&self) {
        match &self.init {
            Some(init) => init.collect(),
            None => {
                let _ = nix::sys::wait::waitpid(self.pid, None);
            }
        }
    }
}

/// Why the program does not run.
pub enum Unspawned {
    /// Its ids cannot be had in this place: the reason, in words.
    Ids(String),
    /// Whatever the place.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Unspawned {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Makes the program go on in one place; returns when it does. All signals are blocked from then on, for
/// [`super::supervise`] to pass on.
///
/// # Errors
/// What could not be restored. Nothing is left then.
pub fn spawn(request: &Request<'_>, place: Place) -> Result<Child, Unspawned> {
    let image = &request.saved.image;
    let (report_read, report_write) = io::pipe().context("no pipe")?;
    let mut prepared = prepare(request, report_write.into())?;
    let before = namespace::hold_signals()?;
    let program = || become_program(request, &mut prepared);
    let made = match place {
        Place::Here => make_here(image.ids.pid, program).map(|pid| (None, pid)),
        Place::Namespace { user } => {
            let asked = namespace::Request {
                pid: image.ids.pid,
                last_tid: image.threads.iter().map(|thread| thread.tid).max().unwrap_or(0),
                user,
                session: Session::of(image, request.detach),
            };
            namespace::enter(&asked, program).map(|(init, pid)| (Some(init), pid))
        }
    };
    drop(prepared);
    let spawned = made.map_err(|error| Unspawned::Ids(format!("{error:#}"))).and_then(|(init, pid)| {
        let child = Child {
            pid,
            handle: Pidfd::open(pid.as_raw() as u32).context("the program was killed")?,
            init,
            owns_terminal: image.ids.pgid == image.ids.pid && image.settings.foreground && !request.detach,
        };
        report::wait(OwnedFd::from(report_read).into(), request.saved, &child)?;
        Ok(child)
    });
    if spawned.is_err() {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    }
    spawned
}

/// Makes a child with the id, which calls `program` and ends.
fn make_here(pid: i32, program: impl FnOnce()) -> anyhow::Result<Pid> {
    let child = namespace::clone3(0, Some(pid))?;
    if child == 0 {
        program();
        namespace::exit()
    }
    Ok(Pid::from_raw(child))
}

/// All that is made before the child is.
struct Prepared {
    plan: Plan,
    places: Places,
    objects: std::collections::BTreeMap<u32, OwnedFd>,
    /// Where the plan is written: placed already.
    plan_file: i32,
    /// The groups of this process: a user namespace shows only those that it maps.
    groups: Vec<u32>,
}

fn prepare(request: &Request<'_>, report: OwnedFd) -> anyhow::Result<Prepared> {
    let (saved, image) = (request.saved, &request.saved.image);
    let pages = &saved.pages;
    let mut places = Places::new(image);
    let mut plan = Plan::default();
    plan.header.report_fd = places.place(report)? as u64;
    plan.header.key = saved.key;

    let objects = descriptors::create_objects(image).map_err(|refusal| Failure::Refused(vec![refusal]))?;
    objects::fill(image, &objects, pages, &saved.key)?;
    descriptors::seal_objects(image, &objects).map_err(|refusal| Failure::Refused(vec![refusal]))?;
    layout::plan(image, pages, &objects, &request.memory.regions, &mut places, &mut plan)?;
    let exe = match File::open(&image.exe.path) {
        Ok(exe) => Some(places.place(exe.into())?),
        Err(_) => None,
    };
    settings::plan(image, exe, &mut plan);
    threads(image, &mut plan);
    plan.header.restart_info = image.resume.restart_info;
    plan.header.info = info(saved, request.address, plan.keep(&image.handover));
    if request.memory.is_lazy() {
        lazy::start(saved, request.memory, &mut places, &mut plan)?;
    }
    // SAFETY: memfd_create(2) gives a descriptor that nobody else has.
    let memory = unsafe { libc::memfd_create(c"stasis-plan".as_ptr(), 0) };
    if memory < 0 {
        return Err(io::Error::last_os_error()).context("no memory for the restart plan");
    }
    // SAFETY: as above.
    let plan_file = places.place(unsafe { OwnedFd::from_raw_fd(memory) })?;
    Ok(Prepared { plan, places, objects, plan_file, groups: credentials::own().groups })
}

fn info(saved: &Saved, address: &Address, handover: u64) -> RestartInfo {
    let image = &saved.image;
    let mut info = RestartInfo {
        threads: image.threads.iter().filter(|thread| !thread.exited).count() as u32,
        handover,
        handover_len: image.handover.len() as u64,
        stopped: image.settings.stopped.into(),
        objects: image.objects.len() as u32,
        manifest: saved.record.draft.processes.first().map_or([0; 32], |process| process.manifest),
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

/// In the child: becomes the restorer, or tells why that failed.
fn become_program(request: &Request<'_>, prepared: &mut Prepared) {
    let report = prepared.plan.header.report_fd as i32;
    let Err(error) = try_become_program(request, prepared);
    report::tell(report, &error);
}

fn try_become_program(request: &Request<'_>, prepared: &mut Prepared) -> anyhow::Result<Infallible> {
    let image = &request.saved.image;
    Session::of(image, request.detach).enter();
    settings::apply(image);
    std::env::set_current_dir(&image.cwd).with_context(|| format!("the working directory {}", image.cwd))?;
    let mut plan = std::mem::take(&mut prepared.plan);
    // Here, since what this process has depends on the namespaces that it is in.
    credentials::keep_across_exec()?;
    let have = Credentials { groups: std::mem::take(&mut prepared.groups), ..credentials::own() };
    credentials::plan(image, &have, &mut plan);
    // By the child: the coordinator takes who connects (SO_PEERCRED) for the process.
    let coordinator = UnixStream::connect(request.address.path())
        .with_context(|| format!("the coordinator at {}", request.address))?;
    plan.header.info.coordinator_fd = prepared.places.place(coordinator.into())?;
    let placed = prepared.places.placed();
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
        + (plan.header.hashes * 32).next_multiple_of(PAGE_SIZE as u64)
        + PARKING
        + STACK * (1 + plan.header.fillers)
        + THREAD_STACK * (plan.threads.len() as u64 + 2);
    plan.header.area_len = len.next_multiple_of(1 << 21);
    plan.header.area = layout::free_area(image, plan.header.area_len).ok_or_else(|| {
        anyhow::anyhow!("the image leaves no {} bytes of addresses free for the restorer", len)
    })?;
    Ok(())
}
