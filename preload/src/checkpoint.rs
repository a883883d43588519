//! The checkpoint thread: it waits for the coordinator's word and takes checkpoints.

use alloc::{format, string::String, vec, vec::Vec};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicUsize, Ordering},
};

use stasis_protocol::{
    coordinator::{FromProcess, Phase, Refusal, ToProcess},
    store::Request,
    wire,
};
use stasis_sys::{
    Errno, Result,
    file::{self, Fd},
    memory, process,
};

use crate::{
    arena, credentials, dump,
    link::{coordinator::Coordinator, store::Store},
    quiesce::{self, Quiet},
    snapshot::{self, mappings::Advice},
    state,
};

/// What the checkpoint thread keeps between checkpoints. Nothing of it is in the arena.
#[derive(Default)]
struct Kept {
    store: Option<Store>,
}

/// A value of the checkpoint thread's.
struct CheckpointThreads<T>(UnsafeCell<T>);

// SAFETY: used by the checkpoint thread only, or before it exists.
unsafe impl<T> Sync for CheckpointThreads<T> {}

static KEPT: CheckpointThreads<Kept> = CheckpointThreads(UnsafeCell::new(Kept { store: None }));

static STACK: AtomicUsize = AtomicUsize::new(0);
static STACK_LEN: AtomicUsize = AtomicUsize::new(0);

fn kept() -> &'static mut Kept {
    // SAFETY: see `CheckpointThreads`; no reference is kept over a call that makes another.
    unsafe { &mut *KEPT.0.get() }
}

/// The stack of the checkpoint thread, made at the first call and then used again (after a fork).
pub fn stack(len: usize) -> Result<usize> {
    if STACK.load(Ordering::Relaxed) == 0 {
        STACK.store(memory::map_anonymous(len, libc::MAP_NORESERVE)?, Ordering::Relaxed);
        STACK_LEN.store(len, Ordering::Relaxed);
    }
    Ok(STACK.load(Ordering::Relaxed))
}

/// Where the stack of a restarted checkpoint thread begins: as after a call.
pub fn stack_top() -> usize {
    STACK.load(Ordering::Relaxed) + STACK_LEN.load(Ordering::Relaxed) - 8
}

/// Forgets connections that are another process'.
pub fn forget_inherited() {
    kept().store = None;
    credentials::forget();
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
pub fn own_ranges() -> [(u64, u64, Own); 3] {
    let range = |start: usize, len: usize, own| (start as u64, (start + len) as u64, own);
    let (staging, len) = kept().store.as_ref().map_or((0, 0), Store::staging);
    [
        range(arena::start(), arena::RESERVED, Own::Scratch),
        range(STACK.load(Ordering::Relaxed), STACK_LEN.load(Ordering::Relaxed), Own::Scratch),
        range(staging, len, Own::Transient),
    ]
}

/// The checkpoint thread of a process that was launched (or forked).
pub extern "C" fn thread() -> ! {
    begin_thread();
    let _ = file::close_range(0, u32::MAX);
    // The connection is made as whom the program was started by; only then does this thread follow it.
    let socket = Coordinator::connect();
    credentials::listen();
    serve(socket.and_then(|socket| Coordinator::greet(socket, None)).ok())
}

/// What every checkpoint thread does first.
pub fn begin_thread() {
    let _ = process::prctl(libc::PR_SET_NAME, [c"stasis-ckpt".as_ptr() as usize, 0, 0, 0]);
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
            Some(connected) => match connected.receive_beside() {
                Ok((ToProcess::Checkpoint { token, store, store_passed, hold, was_stopped }, beside)) => {
                    let passed = beside.filter(|_| store_passed);
                    if take(connected, token, &store, passed, hold, was_stopped).is_err() {
                        let _ = file::close(connected.fd());
                        coordinator = None;
                    }
                }
                Ok((_, beside)) => drop(beside.map(file::close)),
                Err(_) => {
                    let _ = file::close(connected.fd());
                    coordinator = None;
                }
            },
            None => {
                let socket = Coordinator::connect();
                coordinator = socket.and_then(|socket| Coordinator::greet(socket, None)).ok();
                if coordinator.is_none() {
                    state::pause(LOOK_AGAIN);
                }
            }
        }
    }
}

/// Takes a checkpoint of this process and tells the coordinator how it went.
///
/// # Errors
/// When the coordinator cannot be told: it is gone, and the program runs.
fn take(
    coordinator: &Coordinator,
    token: u64,
    store: &str,
    passed: Option<Fd>,
    hold: bool,
    was_stopped: bool,
) -> core::result::Result<(), Errno> {
    credentials::follow();
    credentials::use_store();
    let mut taking = Taking { coordinator, token, quiet: None, was_stopped, pause_us: 0, passed };
    let result = taking.run(store, hold);
    if let Some(unused) = taking.passed.take() {
        let _ = file::close(unused);
    }
    if let Err(refusals) = result {
        if !was_stopped {
            taking.go_on();
        }
        if let Some(store) = kept().store.take() {
            // The connection's end makes the server forget the dump, whatever it was waiting for.
            store.close();
        }
        let told = coordinator.send(&FromProcess::Refused { token, refusals });
        if was_stopped {
            taking.stop_again();
            taking.go_on();
            // Those that wait for a stop that does not come.
            state::release();
        }
        return told;
    }
    // A connection that was passed is good for one dump; another one, for as long as this is the user who made it.
    let keep = |store: &mut Store| passed.is_none() && credentials::keep_store(store.fd());
    if let Some(store) = kept().store.take_if(|store| !keep(store)) {
        store.close();
    }
    if taking.quiet.is_some() {
        // Held until it is to be ended; or it stood stopped, and stops again when the checkpoint is made.
        let told = coordinator.receive();
        if let Ok(ToProcess::Committed { kill: true, .. }) = told {
            let _ = process::kill(process::getpid(), libc::SIGKILL);
        }
        taking.stop_again();
        taking.go_on();
        told?;
    }
    Ok(())
}

struct Taking<'a> {
    coordinator: &'a Coordinator,
    token: u64,
    quiet: Option<Quiet>,
    was_stopped: bool,
    pause_us: u64,
    /// The connection to the store that the coordinator made.
    passed: Option<Fd>,
}

impl Taking<'_> {
    /// Lets the program go on, if it stands.
    fn go_on(&mut self) {
        if let Some(quiet) = self.quiet.take() {
            self.pause_us = quiet.release();
        }
    }

    /// Stops the process again that stood stopped when the checkpoint began. The whole process stops here, the
    /// checkpoint thread too, until somebody continues it: whatever is to be said must have been said.
    fn stop_again(&mut self) {
        if core::mem::take(&mut self.was_stopped) {
            let _ = process::kill(process::getpid(), libc::SIGSTOP);
        }
    }

    /// Tells the coordinator what is being done; it need not hear it.
    fn report(&self, phase: Phase) {
        let _ = self.coordinator.send(&FromProcess::Phase { token: self.token, phase });
    }

    fn run(&mut self, store: &str, hold: bool) -> core::result::Result<(), Vec<Refusal>> {
        let token = self.token;
        self.report(Phase::Checking);
        snapshot::check()?;
        let store = connected(store, self.passed.take())?;
        store
            .send(&Request::BeginDump { token, pid: process::getpid() as u32, base: None }, None)
            .map_err(store_refusal)?;
        let advice = Advice::read();
        arena::prefault();
        self.report(Phase::Quiescing);

        self.quiet = Some(quiesce::quiesce().map_err(|refusal| vec![refusal])?);
        let Some(quiet) = &self.quiet else { return Ok(()) };
        let mut snapshot = snapshot::take(quiet, &advice, self.was_stopped, hold)?;
        let dumped = dump::dump(&mut snapshot, store);
        snapshot.objects.close();
        let last = dumped?;
        let hold = hold || self.was_stopped;
        if hold {
            self.report(Phase::Held);
        } else {
            self.go_on();
            self.report(Phase::Storing);
        }
        if !last.is_empty() {
            store.hand_over(last).map_err(store_refusal)?;
        }

        let record = wire::encode(&snapshot.image).map_err(|error| store_refusal(format!("{error}")))?;
        let (manifest, stats) = store.end_dump(record).map_err(store_refusal)?;
        let message =
            FromProcess::Dumped { token, manifest, stats, pause_us: self.pause_us, tracker: "full".into() };
        self.coordinator.send(&message).map_err(|error| {
            vec![Refusal {
                what: format!("pid {}", process::getpid()),
                reason: format!("the coordinator is gone: {error}"),
                remedy: "start one at the same address".into(),
            }]
        })
    }
}

/// A refusal because of the store.
pub fn store_refusal(reason: String) -> Vec<Refusal> {
    vec![Refusal {
        what: format!("pid {}", process::getpid()),
        reason,
        remedy: "see `stasis doctor`; the program runs on, and the next checkpoint starts afresh".into(),
    }]
}

/// The connection to the store server, made again where the one of the last checkpoint is gone.
fn connected(path: &str, passed: Option<Fd>) -> core::result::Result<&'static mut Store, Vec<Refusal>> {
    let kept = kept();
    let len = staging_len();
    if let Some(store) = kept.store.take() {
        if passed.is_none() && store.staging().1 >= len && store.is_alive() {
            return Ok(kept.store.insert(store));
        }
        store.close();
    }
    let connected = match passed {
        Some(socket) => Store::passed(socket, len),
        None => Store::connect(path, len),
    };
    match connected {
        Ok(store) => Ok(kept.store.insert(store)),
        Err(reason) => Err(store_refusal(reason)),
    }
}

/// As much as the program has resident, in bounds: prefaulting costs 0.7 ms a MiB.
fn staging_len() -> usize {
    const SMALLEST: usize = 4 << 20;
    const LARGEST: usize = 64 << 20;
    let content = crate::procfs::read(c"/proc/self/statm").unwrap_or_default();
    let resident = crate::procfs::words(&content).nth(1).and_then(crate::procfs::decimal).unwrap_or(0);
    (resident as usize * stasis_protocol::PAGE_SIZE / 4).next_power_of_two().clamp(SMALLEST, LARGEST)
}
