//! The checkpoint thread: it waits for the coordinator's word and takes checkpoints.

use alloc::{format, string::String, vec, vec::Vec};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicI32, AtomicUsize, Ordering},
};

use stasis_protocol::{
    coordinator::{End, FromProcess, Phase, Refusal, ToProcess},
    image::Zombie,
    store::Hash,
    wire,
};
use stasis_sys::{
    Errno, Result,
    file::{self, Fd},
    memory, process, socket,
};

use crate::{
    aio, arch, arena, births, credentials,
    dump::{self, Dump},
    lazy,
    link::{
        coordinator::Coordinator,
        store::{self, Store},
    },
    precopy::{Stood, precopy},
    processor,
    quiesce::{self, Quiet},
    restart,
    snapshot::{self, Checked, Children, Share, advice, mappings},
    state::{self, Stop},
    tracker::{self, Tracker},
    vdso, wrappers,
};

/// What the checkpoint thread keeps between checkpoints. Nothing of it is in the arena.
struct Kept {
    store: Option<Store>,
    /// Chosen at the first checkpoint: programs that are never checkpointed do not pay for it.
    tracker: Option<Tracker>,
    /// The last checkpoint, as far as this process is concerned.
    base: Option<Base>,
}

/// A dump of this process that a store has. Manifests are named with a store's own secret, so that another store does
/// not know it.
#[derive(Clone, Copy)]
struct Base {
    /// Of the checkpoint that it was made for.
    token: u64,
    manifest: Hash,
    /// How many objects it has.
    objects: u32,
    /// When it looked at what is written (CLOCK_MONOTONIC), where it was taken of this process as it runs.
    looked_ns: Option<u64>,
    /// The checkpoint exists. Until then, and for ever if it does not come to be, what has been written since the one
    /// before is owed to the store.
    committed: bool,
}

/// A value of the checkpoint thread's.
struct CheckpointThreads<T>(UnsafeCell<T>);

// SAFETY: used by the checkpoint thread only, or before it exists.
unsafe impl<T> Sync for CheckpointThreads<T> {}

static KEPT: CheckpointThreads<Kept> =
    CheckpointThreads(UnsafeCell::new(Kept { store: None, tracker: None, base: None }));

/// Beside the others, so that it takes no room in the library's file.
static ADVICE: CheckpointThreads<advice::Read> = CheckpointThreads(UnsafeCell::new(advice::Read::new()));

static STACK: AtomicUsize = AtomicUsize::new(0);
static STACK_LEN: AtomicUsize = AtomicUsize::new(0);

fn kept() -> &'static mut Kept {
    // SAFETY: see `CheckpointThreads`; no reference is kept over a call that makes another.
    unsafe { &mut *KEPT.0.get() }
}

fn advice() -> &'static mut advice::Read {
    // SAFETY: as for `kept`.
    unsafe { &mut *ADVICE.0.get() }
}

/// The stack of the checkpoint thread, made at the first call and then used again (after a fork).
pub fn stack(len: usize) -> Result<usize> {
    if STACK.load(Ordering::Relaxed) == 0 {
        STACK.store(memory::reserve(len)?, Ordering::Relaxed);
        STACK_LEN.store(len, Ordering::Relaxed);
    }
    Ok(STACK.load(Ordering::Relaxed))
}

/// Where the stack of a restarted checkpoint thread begins: as after a call.
pub fn stack_top() -> usize {
    STACK.load(Ordering::Relaxed) + STACK_LEN.load(Ordering::Relaxed) - 8
}

/// Forgets connections that are another process', and what was known of its memory.
pub fn forget_inherited() {
    dump::forget_backlog();
    tracker::adopt(-1);
    let kept = kept();
    (kept.store, kept.tracker, kept.base) = (None, None, None);
    advice().forget();
    wrappers::advice::forget();
    credentials::forget();
    processor::forget();
}

/// Notes what this process was restored from. What of its memory nobody watches yet the next checkpoint takes whole; but the
/// store compares it with what was at the same address before it looks any further.
pub fn restored_from(manifest: Hash, objects: u32) {
    if manifest != [0; 32] {
        kept().base = Some(Base { token: 0, manifest, objects, looked_ns: None, committed: true });
    }
}

/// Whose a range of addresses is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// The program's (the library's state is treated like it).
    Program,
    /// Mapped again at restart, empty.
    Scratch,
    /// Not part of the image.
    Transient,
}

/// The ranges of the address space that are treated in a way of their own.
pub fn own_ranges() -> impl Iterator<Item = (u64, u64, Own)> {
    let range = |start: usize, len: usize, own| (start as u64, (start + len) as u64, own);
    let more = arena::more().into_iter().map(move |(start, len)| range(start, len, Own::Transient));
    let (header, header_len) = lazy::mapping();
    let (backlog, backlog_len) = dump::backlog();
    let (staging, len) = kept().store.as_ref().map_or((0, 0), Store::staging);
    let (births, births_len) = births::range();
    [
        range(arena::start(), arena::RESERVED, Own::Scratch),
        range(STACK.load(Ordering::Relaxed), STACK_LEN.load(Ordering::Relaxed), Own::Scratch),
        range(staging, len, Own::Transient),
        range(header, header_len, Own::Transient),
        range(births, births_len, Own::Transient),
        range(backlog, backlog_len, Own::Transient),
    ]
    .into_iter()
    .chain(more)
}

/// The checkpoint thread of a process that was launched (or forked).
pub extern "C" fn thread() -> ! {
    let announced = ANNOUNCED.swap(-1, Ordering::Relaxed);
    keep_only(announced);
    state::await_started();
    // The connection is made as whom the program was started by; only then does this thread follow it.
    let coordinator = match announced {
        0.. => {
            credentials::listen();
            Coordinator::welcomed(announced)
        }
        _ => {
            let socket = Coordinator::connect();
            credentials::listen();
            socket.and_then(Coordinator::greet)
        }
    };
    serve(coordinator.ok())
}

/// A descriptor on which this process has introduced itself to the coordinator; -1: none.
static ANNOUNCED: AtomicI32 = AtomicI32::new(-1);

/// Tells the checkpoint thread that is about to begin of a connection.
pub fn set_announced(socket: Option<Fd>) {
    ANNOUNCED.store(socket.unwrap_or(-1), Ordering::Relaxed);
}

/// Closes every descriptor but one (none: -1) of the checkpoint thread's own table.
pub fn keep_only(fd: Fd) {
    keep_these([fd]);
}

/// The same for several.
pub fn keep_these<const N: usize>(mut kept: [Fd; N]) {
    kept.sort_unstable();
    let mut first = 0;
    for fd in kept.into_iter().filter(|fd| *fd >= 0) {
        if fd > first {
            let _ = file::close_range(first as u32, fd as u32 - 1);
        }
        first = fd + 1;
    }
    let _ = file::close_range(first as u32, u32::MAX);
}

const NAME: &core::ffi::CStr = c"stasis-ckpt";

/// Gives the calling thread the checkpoint thread's name; the one it had.
pub fn take_name() -> [u8; 16] {
    let mut name = [0u8; 16];
    let _ = process::prctl(libc::PR_GET_NAME, [name.as_mut_ptr() as usize, 0, 0, 0]);
    let _ = process::prctl(libc::PR_SET_NAME, [NAME.as_ptr() as usize, 0, 0, 0]);
    name
}

/// Gives the calling thread a name.
pub fn give_back_name(name: [u8; 16]) {
    let _ = process::prctl(libc::PR_SET_NAME, [name.as_ptr() as usize, 0, 0, 0]);
}

/// How long to wait before looking for a new coordinator, in nanoseconds.
const LOOK_AGAIN: u64 = 500_000_000;

/// Answers the coordinator, for ever. Where it is gone, the program runs on, and whoever listens at its
/// address next is the new one.
pub fn serve(mut coordinator: Option<Coordinator>) -> ! {
    loop {
        // SAFETY: nothing that was allocated is held here: `Coordinator` and `Kept` are plain data.
        unsafe { arena::reset() };
        match &coordinator {
            Some(connected) => match receive(connected) {
                Ok((
                    ToProcess::Checkpoint { token, store, store_passed, hold, was_stopped, alone },
                    beside,
                )) => {
                    let passed = beside.filter(|_| store_passed);
                    let order = Order { token, store: &store, hold, was_stopped, alone };
                    if take(connected, &order, passed).is_err() {
                        let _ = file::close(connected.fd());
                        coordinator = None;
                    }
                }
                Ok((message, beside)) => {
                    let _ = beside.map(file::close);
                    match message {
                        ToProcess::Committed { token, .. } => settle(token, true),
                        ToProcess::Abandoned { token } => settle(token, false),
                        ToProcess::Part => {
                            let _ = part(connected);
                        }
                        // Of a checkpoint that was given up.
                        ToProcess::Stop { .. } | ToProcess::Capture { .. } | ToProcess::Resume { .. } => {}
                        ToProcess::Checkpoint { .. }
                        | ToProcess::Welcome { .. }
                        | ToProcess::Go
                        | ToProcess::End => {}
                    }
                }
                Err(_) => {
                    let _ = file::close(connected.fd());
                    coordinator = None;
                }
            },
            None => {
                lazy::look_after_pager();
                let socket = Coordinator::connect();
                let greet = |socket| Coordinator::greet_again(socket, restart::checkpoint(), false);
                coordinator = socket.and_then(greet).ok();
                if coordinator.is_none() {
                    state::pause(LOOK_AGAIN);
                }
            }
        }
    }
}

/// What the coordinator says next; the pager's end is noticed meanwhile.
fn receive(coordinator: &Coordinator) -> Result<(ToProcess, Option<Fd>)> {
    lazy::wait(coordinator.fd());
    coordinator.receive_beside()
}

/// Notes what became of a checkpoint.
fn settle(token: u64, committed: bool) {
    let base = &mut kept().base;
    match base {
        Some(base) if base.token == token && committed => base.committed = true,
        Some(last) if last.token == token => *base = None,
        _ => {}
    }
}

/// Takes a checkpoint of this process and tells the coordinator how it went.
///
/// # Errors
/// When the coordinator cannot be told: it is gone, and the program runs.
fn take(coordinator: &Coordinator, order: &Order<'_>, passed: Option<Fd>) -> core::result::Result<(), Errno> {
    let &Order { token, was_stopped, .. } = order;
    // Each of the rounds waits for the last of all processes.
    process::take_short_turns();
    if was_stopped {
        take_continue();
    }
    if processor::get().has_protection_keys {
        // SAFETY: the processor has keys.
        unsafe { stasis_sys::allow_all_memory() };
    }
    credentials::follow();
    credentials::use_store();
    let mut taking = Taking { coordinator, token, quiet: None, was_stopped, stood: Stood::default(), passed };
    set_under_way(Some(UnderWay { coordinator: *coordinator, token, was_stopped }));
    let result = taking.run(order);
    set_under_way(None);
    if let Some(unused) = taking.passed.take() {
        let _ = file::close(unused);
    }
    if let Err(refusals) = result {
        // Some of what is to be taken next time may count as taken.
        kept().base = None;
        if !was_stopped {
            taking.go_on();
        }
        if let Some(store) = kept().store.take() {
            // The connection's end makes the server forget the dump, whatever it was waiting for.
            store.close();
        }
        let told = coordinator.send(&FromProcess::Refused { token, refusals });
        state::set_storing(false);
        if was_stopped {
            taking.stop_again();
            taking.go_on();
            // Those that wait for a stop that does not come.
            state::release();
        }
        return told;
    }
    state::set_storing(false);
    // A connection that was passed is good for one dump; another one, for as long as this is the user who made it.
    let keep = |store: &mut Store| passed.is_none() && credentials::keep_store(store.fd());
    if let Some(store) = kept().store.take_if(|store| !keep(store)) {
        store.close();
    }
    if taking.quiet.is_some() {
        // Held until it is to be ended; or it stood stopped, and stops again when the checkpoint is made.
        let told = coordinator.receive();
        match told {
            Ok(ToProcess::Committed { kill: true, .. }) => {
                // No other end may go before: whoever is killed for that (PR_SET_PDEATHSIG) would leave its ports taken.
                if part(coordinator).is_ok() {
                    while !matches!(coordinator.receive(), Ok(ToProcess::End) | Err(_)) {}
                }
                let _ = process::kill(process::getpid(), libc::SIGKILL);
            }
            Ok(ToProcess::Committed { token, .. }) => settle(token, true),
            _ => kept().base = None,
        }
        taking.stop_again();
        taking.go_on();
        told?;
    }
    Ok(())
}

/// A checkpoint that may be given up for want of memory.
#[derive(Clone, Copy)]
struct UnderWay {
    coordinator: Coordinator,
    token: u64,
    was_stopped: bool,
}

static UNDER_WAY: CheckpointThreads<Option<UnderWay>> = CheckpointThreads(UnsafeCell::new(None));

fn set_under_way(checkpoint: Option<UnderWay>) {
    // SAFETY: see `CheckpointThreads`.
    unsafe { *UNDER_WAY.0.get() = checkpoint };
}

/// There is no memory for what a checkpoint needs: nothing of what this thread was about is gone on with, and it begins anew on an
/// empty stack. Where no checkpoint is being taken, this returns.
pub fn give_up() {
    // SAFETY: see `CheckpointThreads`.
    if unsafe { &*UNDER_WAY.0.get() }.is_some() {
        // SAFETY: this is the checkpoint thread; what `UNDER_WAY` and `KEPT` name is put in order below, and nothing else outlives
        // the checkpoint.
        unsafe { arch::begin_anew(stack_top(), given_up) }
    }
}

extern "C" fn given_up() -> ! {
    // SAFETY: see `CheckpointThreads`.
    let Some(UnderWay { coordinator, token, was_stopped }) = (unsafe { (*UNDER_WAY.0.get()).take() }) else {
        serve(None)
    };
    if !was_stopped {
        state::release();
    }
    dump::unmap_backlog();
    tracker::adopt(-1);
    let kept = kept();
    (kept.tracker, kept.base) = (None, None);
    if let Some(store) = kept.store.take() {
        store.close();
    }
    let [pager, userfaultfd, table] = lazy::kept_descriptors();
    keep_these([coordinator.fd(), pager, userfaultfd, table]);
    // SAFETY: what used it is not gone on with.
    unsafe { arena::reset() };
    let refusals = vec![Refusal {
        what: format!("pid {}", process::getpid()),
        reason: "there is no memory for the description of the program".into(),
        remedy: "raise its limit of address space (ulimit -v), if it has one, or free memory".into(),
    }];
    let told = coordinator.send(&FromProcess::Refused { token, refusals });
    state::set_storing(false);
    if was_stopped {
        if !is_continued() {
            let _ = process::kill(process::getpid(), libc::SIGSTOP);
        }
        state::release();
    }
    serve(told.is_ok().then_some(coordinator))
}

/// What a process is told when all stand still, see [`ToProcess::Capture`].
#[derive(Default)]
struct Given {
    elsewhere: Vec<u64>,
    present: Vec<u64>,
}

/// Prepares the end of this process, and says so.
fn part(coordinator: &Coordinator) -> core::result::Result<(), Errno> {
    snapshot::descriptors::reset_at_end();
    coordinator.send(&FromProcess::Parting)
}

/// What the coordinator asks for, see [`ToProcess::Checkpoint`].
struct Order<'a> {
    token: u64,
    store: &'a str,
    hold: bool,
    was_stopped: bool,
    alone: bool,
}

struct Taking<'a> {
    coordinator: &'a Coordinator,
    token: u64,
    quiet: Option<Quiet>,
    was_stopped: bool,
    stood: Stood,
    /// The connection to the store that the coordinator made.
    passed: Option<Fd>,
}

impl Taking<'_> {
    /// Lets the program go on, if it stands.
    fn go_on(&mut self) {
        if let Some(quiet) = self.quiet.take() {
            self.stood.add(quiet.release());
        }
    }

    /// Stops the process again that stood stopped when the checkpoint began. The whole process stops here, the
    /// checkpoint thread too, until somebody continues it: whatever is to be said must have been said.
    fn stop_again(&mut self) {
        if core::mem::take(&mut self.was_stopped) && !is_continued() {
            let _ = process::kill(process::getpid(), libc::SIGSTOP);
        }
    }

    /// Tells the coordinator what is being done; it need not hear it.
    fn report(&self, phase: Phase) {
        let _ = self.coordinator.send(&FromProcess::Phase { token: self.token, phase });
    }

    /// Says that a step is done, and waits until all processes of the computation have done it; what they are told then.
    fn meet(&self, done: &FromProcess) -> core::result::Result<Given, Vec<Refusal>> {
        let gone = |reason: String, remedy: &str| {
            vec![Refusal { what: format!("pid {}", process::getpid()), reason, remedy: remedy.into() }]
        };
        let lost = |error: Errno| {
            gone(
                format!("the coordinator is gone: {error}"),
                "the program runs on; start one at the same address",
            )
        };
        self.coordinator.send(done).map_err(lost)?;
        loop {
            match self.coordinator.receive().map_err(lost)? {
                ToProcess::Stop { token } | ToProcess::Resume { token } if token == self.token => {
                    return Ok(Given::default());
                }
                ToProcess::Capture { token, elsewhere, present } if token == self.token => {
                    return Ok(Given { elsewhere, present });
                }
                ToProcess::Abandoned { token } if token == self.token => {
                    return Err(gone("the checkpoint was given up".into(), "take another one"));
                }
                ToProcess::Committed { token, .. } => settle(token, true),
                ToProcess::Abandoned { token } => settle(token, false),
                _ => {}
            }
        }
    }

    fn run(&mut self, order: &Order<'_>) -> core::result::Result<(), Vec<Refusal>> {
        let &Order { token, store: path, hold, .. } = order;
        // Children are met where they say hello.
        let alone = order.alone && snapshot::children().alive.is_empty();
        self.report(Phase::Checking);
        let Checked { program, mappings, mut ends, objects, reads_directly, receives } = snapshot::check()?;
        // Whether ends may stay outside is the coordinator's to say.
        let alone = alone && ends.iter().all(|end| end.refusal.is_none());
        let Kept { store, tracker, base } = kept();
        vdso::note(&mappings, hold);
        // A connection that the coordinator passed knows of no base.
        let bases = self.passed.is_none();
        let store = connected(store, path, self.passed.take())?;
        let tracker = tracker.get_or_insert_with(Tracker::choose).get();
        let last = base.take().filter(|base| base.committed && bases);
        let incremental = store.begin_dump(token, last.map(|base| base.manifest)).map_err(store_refusal)?;
        if incremental {
            lazy::list();
        } else {
            // What has not arrived is in no checkpoint that this one could refer to.
            lazy::finish();
        }
        let mut dump = Dump::begin(store, tracker, incremental)?;
        if reads_directly {
            dump.expect_direct_reads();
        }
        let requests = aio::may_write(&mappings);
        if requests {
            dump.distrust();
        }
        // Where the program is to end, and where it stands anyway, nothing is won by copying before it stands still.
        if !hold && !self.was_stopped {
            let mut stood = Stood::default();
            let looked_ns = last.filter(|_| incremental).and_then(|base| base.looked_ns);
            let copied =
                precopy(&mut dump, mappings, looked_ns, &mut stood, || self.report(Phase::Snapshotting));
            self.stood = stood;
            copied?;
        } else {
            dump.look_for_guards(&mappings);
            arena::prefault();
        }
        let (mut told, mut late) = (objects.clone(), None);
        told.sort_unstable();
        if !alone && !self.was_stopped {
            // Others may take long.
            self.stood.run_freely(&mut dump);
            self.report(Phase::Ready);
            let Children { alive: children, zombies } = snapshot::children();
            ends.extend(ends_of(&zombies));
            self.meet(&FromProcess::Ready { token, ends, objects, children, receives })?;
        } else if !alone {
            ends.extend(ends_of(&snapshot::children().zombies));
            late = Some((ends, objects, receives));
        }
        self.report(Phase::Quiescing);

        self.stood.run_freely(&mut dump);
        let stop = if self.was_stopped { Stop::Continued } else { Stop::OutsideVdso };
        self.quiet = Some(quiesce::quiesce(stop).map_err(|refusal| vec![refusal])?);
        let Some(quiet) = &self.quiet else { return Ok(()) };
        let Children { alive, mut zombies } = snapshot::children();
        // One may have been made since this was looked at.
        let alone = alone && alive.is_empty();
        let mut given = Given::default();
        if !alone {
            given = self.meet(&FromProcess::Stopped { token, children: alive, late })?;
            // Some have ended before they stood still.
            zombies = snapshot::children().zombies;
            self.report(Phase::Snapshotting);
        }
        let Given { elsewhere, present } = given;
        let share = Share { elsewhere: &elsewhere, told: (!alone).then_some(&told[..]), present: &present };
        let ended = ends_of(&zombies);
        let stopped = self.was_stopped && !is_continued();
        let mut snapshot = snapshot::take(quiet, program, stopped, hold, zombies, share)?;
        // Made while it was copied.
        if aio::may_write(&snapshot.mappings) && !requests || snapshot.reads_directly && !reads_directly {
            dump.distrust();
        }
        let looked_ns = Some(stasis_sys::sync::monotonic_ns());
        let dumped = dump.finish(&mut snapshot, last.map_or(0, |base| base.objects), &elsewhere);
        let objects = snapshot.objects.len();
        let keys = core::mem::take(&mut snapshot.keys).into_iter();
        let uncopied = core::mem::take(&mut snapshot.uncopied);
        let copied =
            keys.filter(|key| elsewhere.binary_search(key).is_err() && !uncopied.contains(key)).collect();
        snapshot.objects.close();
        dumped?;
        if alone {
            refuse_outside(&snapshot.ends)?;
        } else {
            let (mut ends, sharable) =
                (core::mem::take(&mut snapshot.ends), core::mem::take(&mut snapshot.sharable));
            ends.extend(ended);
            let received = core::mem::take(&mut snapshot.received);
            let uncopied =
                uncopied.into_iter().map(|pty| (pty, snapshot::descriptors::slave_end(pty))).collect();
            self.meet(&FromProcess::Captured { token, ends, sharable, objects: copied, uncopied, received })?;
        }
        snapshot.held.clear();
        let hold = hold || self.was_stopped;
        if hold {
            self.report(Phase::Held);
        } else {
            state::set_storing(true);
            self.go_on();
            self.report(Phase::Storing);
        }
        dump.deliver_first()?;
        mappings::advise(&mut snapshot, advice(), hold)?;
        dump.deliver()?;
        let memory = (dump.taken_memory() + dump.staging_len() + arena::most()) as u64;
        drop(dump);
        let record = wire::encode(&snapshot.image).map_err(|error| store_refusal(format!("{error}")))?;
        let (manifest, stats) = store.end_dump(record).map_err(store_refusal)?;
        // The program has run meanwhile.
        snapshot.rooms.clear();
        *base = Some(Base { token, manifest, objects, looked_ns, committed: false });
        let tracker = tracker.name().into();
        let message = FromProcess::Dumped {
            token,
            manifest,
            stats,
            pause_us: self.stood.longest_us,
            stood_us: self.stood.total_us,
            memory,
            tracker,
        };
        self.coordinator.send(&message).map_err(|error| {
            vec![Refusal {
                what: format!("pid {}", process::getpid()),
                reason: format!("the coordinator is gone: {error}"),
                remedy: "start one at the same address".into(),
            }]
        })
    }
}

/// The ends that children which have ended are for pidfds that others have of them.
fn ends_of(zombies: &[Zombie]) -> Vec<End> {
    zombies.iter().map(|zombie| snapshot::descriptors::end_of(zombie.pid)).collect()
}

/// Where there is no other process, nobody has the other ends.
fn refuse_outside(ends: &[End]) -> core::result::Result<(), Vec<Refusal>> {
    let refusals: Vec<Refusal> = ends.iter().filter_map(|end| end.refusal.clone()).collect();
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

/// SIGCONT in a set of signals.
const CONTINUE: u64 = 1 << (libc::SIGCONT - 1);

/// Takes the SIGCONT by which the coordinator continued a process that stood stopped: no handler is to see it. At once, since one
/// that somebody else sends while it is pending leaves no trace.
fn take_continue() {
    let _ = process::take_pending(CONTINUE);
}

/// Whether somebody has continued the process meanwhile, whose threads wait: SIGSTOP would undo that (signal(7)).
fn is_continued() -> bool {
    process::sigpending() & CONTINUE != 0
}

/// A refusal because of the store.
pub fn store_refusal(reason: String) -> Vec<Refusal> {
    let remedy = if reason.starts_with(store::GONE) { NEW_SERVER } else { DOCTOR };
    because_of_store(reason, remedy)
}

fn because_of_store(reason: String, remedy: &str) -> Vec<Refusal> {
    vec![Refusal { what: format!("pid {}", process::getpid()), reason, remedy: remedy.into() }]
}

const DOCTOR: &str = "see `stasis doctor`; the program runs on, and the next checkpoint starts afresh";

/// That passes ([`Refusal::passes`]): the coordinator starts one for the next round.
const NEW_SERVER: &str =
    "take the checkpoint when there is a new one; see `stasis doctor` if it does not stay";

/// The connection to the store server, made again where the one of the last checkpoint is gone.
fn connected<'a>(
    kept: &'a mut Option<Store>,
    path: &str,
    passed: Option<Fd>,
) -> core::result::Result<&'a mut Store, Vec<Refusal>> {
    let len = staging_len();
    if let Some(store) = kept.take() {
        if passed.is_none() && store.wanted() >= len && store.is_alive() {
            return Ok(kept.insert(store));
        }
        store.close();
    }
    let connected = match passed {
        Some(socket) => Store::passed(socket, len),
        None => Store::greet(
            socket::connect(path.as_bytes(), true).map_err(|error| unreachable(path, error))?,
            len,
        ),
    };
    match connected {
        Ok(store) => Ok(kept.insert(store)),
        Err(reason) => Err(store_refusal(reason)),
    }
}

/// Who has become another user since the coordinator asked may not connect. It is lent a connection when it is asked again.
fn unreachable(path: &str, error: Errno) -> Vec<Refusal> {
    let remedy = match error.0 {
        libc::EACCES => {
            "take the checkpoint when it changes its user no more; see `stasis doctor` if it does not"
        }
        // It has just ended.
        libc::ECONNREFUSED | libc::ENOENT => NEW_SERVER,
        _ => DOCTOR,
    };
    because_of_store(format!("the store server at {path} cannot be reached: {error}"), remedy)
}

/// As much as the program has resident, in bounds: prefaulting costs 0.7 ms a MiB.
fn staging_len() -> usize {
    const SMALLEST: usize = 4 << 20;
    const LARGEST: usize = 64 << 20;
    let content = crate::procfs::read(c"/proc/self/statm").unwrap_or_default();
    let resident = crate::procfs::words(&content).nth(1).and_then(crate::procfs::decimal).unwrap_or(0);
    (resident as usize * stasis_protocol::PAGE_SIZE / 4).next_power_of_two().clamp(SMALLEST, LARGEST)
}
