//! The children that become the processes of the computation, each with its limits and its descriptors.

use std::{
    cell::Cell,
    convert::Infallible,
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
};

use anyhow::Context as _;
use nix::sys::signal::{SigmaskHow, sigprocmask};
use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    image::{Credentials, ProcessImage},
    plan::{RestartInfo, Thread},
};

use super::{
    assembly::{self, Assembly},
    board::Board,
    computation::{Computation, Saved},
    credentials,
    descriptors::{self, Common, Objects, Places, path_now},
    ids, layout, lazy, namespace, objects,
    place::{self, Place},
    plan::{Plan, call},
    report,
    running::{self, Child},
    session::Session,
    settings,
    staging::Staging,
    system_v, takeover,
    terminal::{self, HandedOver},
    tree::Tree,
};
use crate::{address::Address, failure::Failure};

pub struct Request<'a> {
    pub computation: &'a Computation,
    pub tree: &'a Tree,
    pub policy: &'a descriptors::Policy,
    pub memory: &'a lazy::Choice,
    /// Memory that was loaded for several restarts.
    pub staging: Option<&'a Staging>,
    pub passed: &'a descriptors::Passed,
    pub restorer: &'a Path,
    pub address: &'a Address,
    pub detach: bool,
    /// See [`terminal::foreground`].
    pub foreground: Option<usize>,
    /// Who waits may be told how far it is.
    pub shows_progress: bool,
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

/// Makes the computation go on in one place; returns when all of its threads are there. All signals are blocked from
/// then on, for [`super::supervise`] to pass on.
///
/// # Errors
/// What could not be restored. Nothing is left then.
pub fn spawn(request: &Request<'_>, place: Place) -> Result<Child, Unspawned> {
    let before = namespace::hold_signals()?;
    let spawned = try_spawn(request, place);
    if spawned.is_err() {
        if request.foreground.is_some() {
            terminal::come_forward();
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    }
    spawned
}

fn try_spawn(request: &Request<'_>, place: Place) -> Result<Child, Unspawned> {
    let computation = request.computation;
    let images = computation.images();
    let refused = |refusal| Failure::Refused(vec![refusal]);
    let mut objects = Objects::create(&images).map_err(refused)?;
    objects::fill(&computation.processes, &objects)?;
    objects.date(&images);
    objects.seal(&images).map_err(refused)?;
    let shared = &computation.record.draft.shared;
    let mut common = Common::new(images, shared, objects, request.passed, request.policy);
    // Where the ids can be had: what is made tells of them.
    if let Place::Here = place {
        common.make().map_err(refused)?;
    }

    let pagers = lazy::Pagers::start(request)?;
    let handed = HandedOver::new(&common.images, request.detach);
    let board = Board::new(request.tree.nodes.len()).context("no memory for the restart")?;
    let (report, theirs) = io::pipe().context("no pipe")?;
    let report_number = Cell::new(theirs.as_raw_fd());
    // A user namespace shows only those that it maps.
    let groups = credentials::own().groups;
    let start = |common: &Common<'_>, channel| {
        let making =
            Making { request, common, pagers: &pagers, report: &report_number, groups: groups.clone() };
        let assembly = Assembly {
            tree: request.tree,
            board: &board,
            report: &report_number,
            subreapers: common.images.iter().map(|image| image.settings.subreaper).collect(),
            terminals: terminal::controlling(common, &handed),
            foreground: request.foreground,
            has_terminal: common.images.iter().map(|image| image.settings.terminal != 0).collect(),
            become_program: &|process| match making.become_program(process) {
                Ok(never) => match never {},
                Err(error) => error,
            },
        };
        assembly.start(channel);
    };
    let system_v = system_v::Objects::of(&computation.processes);
    // Whoever keeps segments that nobody has attached yet does so until this is closed.
    let (until, kept) = io::pipe().context("no pipe")?;
    let until = OwnedFd::from(until);
    let init = match place {
        Place::Here => {
            place::go_on_here(request);
            assembly::become_subreaper();
            system_v.make(&until).map_err(unmade)?;
            common.make_queues(false).map_err(unopened)?;
            start(&common, None);
            None
        }
        Place::Namespace { user } => {
            let asked = namespace::Request {
                pid: request.tree.nodes[request.tree.root].id,
                after: place::after(request),
                user,
                ipc: !system_v.is_empty() || descriptors::message_queues::are_in(&common.images),
                session: Session::of(&request.tree.nodes[0]),
            };
            let make = |common: &mut Common<'_>| {
                common.make().map_err(refused)?;
                common.objects.make_linkable(&common.images).context("a file without a name")?;
                system_v.make(&until).map_err(|unmade| unmade.error)?;
                common.make_queues(true).map_err(|(refusal, _)| Failure::Refused(vec![refusal]).into())
            };
            let entered = namespace::enter(&asked, |channel| match make(&mut common) {
                Ok(()) => start(&common, Some(channel)),
                Err(error) => {
                    report::tell(theirs.as_raw_fd(), 0, &error, false);
                    board.give_up();
                }
            });
            Some(entered.map_err(|error| Unspawned::Ids(format!("{error:#}")))?)
        }
    };
    // What is the processes' own is not held here: who reads from a pipe must see its end.
    drop(common);
    drop(pagers);
    drop(theirs);
    let child = running::await_all(request, File::from(OwnedFd::from(report)), init, &board)?;
    handed.keep();
    drop(kept);
    Ok(child)
}

fn unopened((refusal, ids): (Refusal, bool)) -> Unspawned {
    match ids {
        true => Unspawned::Ids(format!("{}: {}", refusal.what, refusal.reason)),
        false => Unspawned::Other(Failure::Refused(vec![refusal]).into()),
    }
}

fn unmade(unmade: system_v::Unmade) -> Unspawned {
    match unmade {
        system_v::Unmade { error, ids: true } => Unspawned::Ids(format!("{error:#}")),
        system_v::Unmade { error, ids: false } => Unspawned::Other(error),
    }
}

/// What a process is made from.
struct Making<'a> {
    request: &'a Request<'a>,
    common: &'a Common<'a>,
    pagers: &'a lazy::Pagers,
    report: &'a Cell<RawFd>,
    groups: Vec<u32>,
}

impl Making<'_> {
    /// Becomes the restorer of a process.
    fn become_program(&self, process: usize) -> anyhow::Result<Infallible> {
        let saved = &self.request.computation.processes[process];
        let image = &saved.image;
        let mut places = Places::new(image);
        let mut plan = self.plan(process, &mut places)?;
        // SAFETY: memfd_create(2) gives a descriptor that nobody else has.
        let memory = unsafe { libc::memfd_create(c"stasis-plan".as_ptr(), 0) };
        if memory < 0 {
            return Err(io::Error::last_os_error()).context("no memory for the restart plan");
        }
        // SAFETY: as above.
        let plan_file = places.place(unsafe { OwnedFd::from_raw_fd(memory) })?;

        settings::apply(image);
        std::env::set_current_dir(path_now(image, &image.cwd))
            .with_context(|| format!("the working directory {}", image.cwd))?;
        // Here, since what this process has depends on the namespaces that it is in.
        credentials::keep_across_exec()?;
        let have = Credentials { groups: self.groups.clone(), ..credentials::own() };
        credentials::plan(image, &have, &mut plan);
        // By the process itself: the coordinator takes who connects (SO_PEERCRED) for the process.
        let coordinator = UnixStream::connect(self.request.address.path())
            .with_context(|| format!("the coordinator at {}", self.request.address))?;
        plan.header.info.coordinator_fd = places.place(coordinator.into())?;
        let placed = places.placed();
        // They are at numbers that are the restorer's now; the one that the pipe had may be the program's.
        std::mem::forget(places);
        self.report.set(plan.header.report_fd as RawFd);
        let installed = descriptors::install(self.common, process, &placed)
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
        // Closing any descriptor of a file has given up the process' locks on it (fcntl(2)).
        for mut lock in installed.locks {
            lock.args[2] += base;
            plan.last_calls.push(lock);
        }
        fit(image, self.request, &mut plan)?;
        plan.write(plan_file)?;

        if self.request.staging.is_some() {
            return takeover::become_restorer(self.request.restorer, plan_file);
        }
        let restorer = CString::new(self.request.restorer.as_os_str().as_bytes())?;
        let number = CString::new(plan_file.to_string())?;
        nix::unistd::execve::<_, &std::ffi::CStr>(&restorer, &[&restorer, &number], &[])
            .with_context(|| format!("{}", self.request.restorer.display()))
    }

    fn plan(&self, process: usize, places: &mut Places) -> anyhow::Result<Plan> {
        let saved = &self.request.computation.processes[process];
        let (image, pages) = (&saved.image, &saved.pages);
        let mut plan = Plan::default();
        // SAFETY: open for as long as this process is `stasis restart`.
        let report = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.report.get()) };
        plan.header.report_fd = places.place(report.try_clone_to_owned()?)? as u64;
        plan.header.key = saved.key;
        let objects = |id| self.common.objects.get(process, id)?.as_fd().try_clone_to_owned().ok();
        let left = match self.request.staging {
            Some(staging) => {
                layout::Left { regions: staging.regions(process), staged: Some(staging.range()) }
            }
            None => {
                let regions = self.request.memory.regions(process).to_vec();
                layout::Left { regions, staged: None }
            }
        };
        let vdso = &self.request.computation.vdso;
        let vdso = vdso.arrange(saved, self.request.staging.map(Staging::range))?;
        layout::plan(image, pages, &objects, &left, &vdso, places, &mut plan)?;
        for (id, seals) in self.common.objects.to_seal(process) {
            let memfd = objects(id).context("no descriptor for a memfd")?;
            let memfd = places.place(memfd)? as u64;
            plan.seals.push(call(libc::SYS_fcntl, &[memfd, libc::F_ADD_SEALS as u64, seals as u64]));
        }
        (plan.watched, plan.unwritten) = lazy::watched(image, pages, self.request.memory.regions(process));
        plan.staged = self.request.staging.map_or_else(Vec::new, |staging| staging.moves(process));
        let exe = match File::open(&image.exe.path) {
            Ok(exe) => Some(places.place(exe.into())?),
            Err(_) => None,
        };
        let tracer = ids::for_restorer().context("no descriptor for the tracer")?;
        settings::plan(image, exe, tracer.is_some(), &mut plan);
        (plan.header.tracer_fd, plan.header.turns_fd) = match tracer {
            Some([connection, turns]) => (places.place(connection)?.into(), places.place(turns)?.into()),
            None => (-1, -1),
        };
        threads(image, &mut plan);
        plan.header.restart_info = image.resume.restart_info;
        plan.header.info = self.info(saved, plan.keep(&image.handover));
        self.pagers.plan(self.request.memory, process, places, &mut plan)?;
        Ok(plan)
    }

    fn info(&self, saved: &Saved, handover: u64) -> RestartInfo {
        let image = &saved.image;
        let mut info = RestartInfo {
            threads: image.threads.iter().filter(|thread| !thread.exited).count() as u32,
            handover,
            handover_len: image.handover.len() as u64,
            stopped: image.settings.stopped.into(),
            objects: image.objects.len() as u32,
            manifest: saved.manifest,
            ..RestartInfo::default()
        };
        for (to, from) in info.checkpoint.iter_mut().zip(self.request.computation.record.id.bytes()) {
            *to = from;
        }
        let address = self.request.address.path().as_os_str().as_bytes();
        for (to, from) in info.coordinator.iter_mut().zip(address) {
            *to = *from;
        }
        info
    }
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

/// Chooses where the restorer lives while it works, and how many threads fill memory.
fn fit(image: &ProcessImage, request: &Request<'_>, plan: &mut Plan) -> anyhow::Result<()> {
    const STACK: u64 = 256 << 10;
    const THREAD_STACK: u64 = 4096;
    const PARKING: u64 = 256 << 10;
    /// Below this one thread reads faster than others start, in bytes.
    const WORTH_SHARING: u64 = 8 << 20;
    let bytes: u64 = plan.fills.iter().map(|fill| fill.len).sum();
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    // At least four in all: while one waits for the disk, another computes hashes.
    plan.header.fillers = if bytes < WORTH_SHARING { 0 } else { (processors - 1).clamp(3, 7) };
    let program = request.restorer.metadata().map_or(0, |metadata| metadata.len()) + (1 << 20);
    let len = program
        + plan.len() as u64
        + (plan.header.hashes * 32).next_multiple_of(PAGE_SIZE as u64)
        + PARKING
        + STACK * (1 + plan.header.fillers)
        + THREAD_STACK * (plan.threads.len() as u64 + 2);
    plan.header.area_len = len.next_multiple_of(1 << 21);
    let staged = request.staging.map(Staging::range);
    let kernel = plan.kernel_mappings.iter().map(|mapping| mapping.start..mapping.start + mapping.len);
    let occupied =
        layout::occupied(image).chain(staged).chain(kernel).chain([plan.scratch.clone()]).collect();
    plan.header.area = layout::free_area(occupied, plan.header.area_len).ok_or_else(|| {
        anyhow::anyhow!("the image leaves no {} bytes of addresses free for the restorer", len)
    })?;
    Ok(())
}
