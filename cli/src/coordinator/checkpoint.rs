//! Taking one checkpoint: every process dumps itself into the store, and when all have, the store makes
//! a checkpoint of the dumps. Whatever goes wrong, the processes run on as if nothing had been asked.

use std::{collections::BTreeMap, os::fd::OwnedFd, rc::Rc, time::Duration};

use stasis_protocol::{
    coordinator::{FromProcess, Phase, Refusal, ToProcess},
    store::{CheckpointDraft, CheckpointRecord, ProcessEntry},
};
use tokio::{
    sync::{OwnedMutexGuard, mpsc},
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use super::{
    computation::{Computation, Event, Member, MemberId, random},
    log, stopped,
};
use crate::{
    process::{self, Pidfd},
    store,
};

/// What a step that moves data may take on top, for each byte of the process: a disk of 32 MiB a second.
const NANOS_PER_BYTE: u64 = 30;

/// How long a process may take to end itself once it was told to, before it is killed.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// What was asked for.
#[derive(Debug, Default)]
pub struct Order {
    pub kill: bool,
    pub label: Option<String>,
}

/// The outcome of a checkpoint.
pub type Outcome = Result<CheckpointRecord, Vec<Refusal>>;

/// Takes a checkpoint. `_turn` is the right to, see [`Computation::turn`].
pub async fn take(computation: Rc<Computation>, order: Order, _turn: OwnedMutexGuard<()>) -> Outcome {
    let outcome = attempt(&computation, order).await;
    computation.close_round(outcome.as_ref().map(|record| record.id.as_str()).map_err(Vec::as_slice));
    outcome
}

async fn attempt(computation: &Rc<Computation>, order: Order) -> Outcome {
    await_newborn(computation).await;
    let subjects = subjects(computation).map_err(one)?;
    let directory = computation.settings.store.clone();
    let opened = blocking(move || store::connect_or_start(&directory)).await;
    let store = opened.map_err(|reason| one(store_refusal(computation, reason)))?;
    let token = random().map_err(|error| {
        one(refusal("the coordinator", format!("has no random numbers: {error}"), "is /dev/urandom there?"))
    })?;

    let mut events = computation.open_round(token);
    let message = ToProcess::Checkpoint {
        token,
        store: store.socket().to_string_lossy().into_owned(),
        store_passed: false,
        hold: order.kill,
        was_stopped: false,
        alone: subjects.len() == 1,
    };
    for subject in subjects.values() {
        stopped::settle(subject.real_pid).await;
    }
    let (store, lent) =
        lend(store, token, &subjects).await.map_err(|reason| one(store_refusal(computation, reason)))?;
    let asked = ask(computation, &subjects, &message, lent);
    let dumps = match asked {
        Ok(()) => gather(computation, &subjects, &mut events).await,
        Err(refusals) => Err(refusals),
    };
    let dumps = match dumps {
        Ok(dumps) => dumps,
        Err(refusals) => {
            tell(computation, &ToProcess::Abandoned { token });
            discard(store, token).await;
            return Err(refusals);
        }
    };

    let draft = draft(computation, dumps, order.label).map_err(one);
    let committed = match draft {
        Ok(draft) => {
            let mut store = store;
            blocking(move || store.commit(token, draft))
                .await
                .map_err(|reason| one(store_refusal(computation, reason)))
        }
        Err(refusals) => Err(refusals),
    };
    match committed {
        Ok(record) => {
            tell(computation, &ToProcess::Committed { token, kill: order.kill });
            if order.kill {
                await_ends(&subjects).await;
            }
            Ok(record)
        }
        Err(refusals) => {
            tell(computation, &ToProcess::Abandoned { token });
            Err(refusals)
        }
    }
}

/// A process to checkpoint, as it was when that began: it may end before the checkpoint is durable.
struct Subject {
    pid: u32,
    real_pid: u32,
    command: String,
    name: String,
    pidfd: Rc<Pidfd>,
}

type Subjects = BTreeMap<MemberId, Subject>;

/// A program that was launched a moment ago may not have joined yet: it does not wait for its coordinator.
async fn await_newborn(computation: &Computation) {
    const PATIENCE: Duration = Duration::from_millis(500);
    let mut changes = computation.changes();
    let joined = async {
        while computation.with_members(|members| members.is_empty()) && changes.changed().await.is_ok() {}
    };
    // Nobody came: that is refused by name.
    let _ = timeout(PATIENCE, joined).await;
}

/// The processes to checkpoint.
fn subjects(computation: &Computation) -> Result<Subjects, Refusal> {
    computation.with_members(|members| match members.len() {
        0 => Err(refusal(
            format!("the computation at {}", computation.settings.address),
            "has no process",
            "start one with `stasis launch`",
        )),
        1 => Ok(members.iter().map(|(id, member)| (*id, subject(member))).collect()),
        _ => Err(refusal(
            members.values().map(Member::name).collect::<Vec<_>>().join(", "),
            "computations of several processes come with a later version",
            "checkpoint them with coordinators of their own, --coord",
        )),
    })
}

fn subject(member: &Member) -> Subject {
    Subject {
        pid: member.pid,
        real_pid: member.real_pid,
        command: member.command.clone(),
        name: member.name(),
        pidfd: Rc::clone(&member.pidfd),
    }
}

/// Connections to the store, each for one process.
type Lent = BTreeMap<MemberId, OwnedFd>;

/// Connections for the processes of other users, which the store lets in by no other way: with these they can dump
/// themselves for this checkpoint, and nothing else.
async fn lend(
    mut store: store::Client,
    token: u64,
    subjects: &Subjects,
) -> Result<(store::Client, Lent), String> {
    let own = nix::unistd::geteuid().as_raw();
    let stranger = |subject: &Subject| process::user(subject.real_pid).is_some_and(|uid| uid != own);
    let strangers: Vec<MemberId> =
        subjects.iter().filter(|(_, subject)| stranger(subject)).map(|(id, _)| *id).collect();
    if strangers.is_empty() {
        return Ok((store, Lent::new()));
    }
    blocking(move || {
        let lent: Result<Lent, _> =
            strangers.into_iter().map(|id| Ok((id, store.restrict(token)?))).collect();
        lent.map(|lent| (store, lent)).map_err(|error: stasis_store::client::ClientError| error)
    })
    .await
}

/// Asks every process to dump itself.
fn ask(
    computation: &Computation,
    subjects: &Subjects,
    message: &ToProcess,
    mut lent: Lent,
) -> Result<(), Vec<Refusal>> {
    computation.with_members(|members| {
        let mut refusals = Vec::new();
        for (id, subject) in subjects {
            let Some(member) = members.get(id) else {
                refusals.push(gone(subject, None));
                continue;
            };
            let beside = lent.remove(id);
            let was_stopped = process::is_stopped(member.real_pid);
            let message = message_to(message, beside.is_some(), was_stopped);
            let sent = if was_stopped {
                stopped::wake(member, &message, beside)
            } else {
                member.send_beside(&message, beside)
            };
            if let Err(reason) = sent {
                refusals.push(refusal(member.name(), reason, "end it, or checkpoint again"));
            }
        }
        if refusals.is_empty() { Ok(()) } else { Err(refusals) }
    })
}

fn message_to(message: &ToProcess, store_passed: bool, was_stopped: bool) -> ToProcess {
    match message.clone() {
        ToProcess::Checkpoint { token, store, hold, alone, .. } => {
            ToProcess::Checkpoint { token, store, store_passed, hold, was_stopped, alone }
        }
        other => other,
    }
}

/// A process that has not handed its dump over yet.
struct Awaited {
    /// `None` until it has said anything.
    phase: Option<Phase>,
    until: Instant,
}

/// Waits until every process has dumped itself.
async fn gather(
    computation: &Computation,
    subjects: &Subjects,
    events: &mut mpsc::Receiver<(MemberId, Event)>,
) -> Result<Vec<ProcessDump>, Vec<Refusal>> {
    let mut dumps = Vec::new();
    // One that tells no phases may be moving data all the time.
    let mut awaited: BTreeMap<MemberId, Awaited> = subjects
        .iter()
        .map(|(id, subject)| {
            let until = Instant::now() + allowance(computation, Phase::Storing, subject.real_pid);
            (*id, Awaited { phase: None, until })
        })
        .collect();

    while let Some(until) = awaited.values().map(|awaited| awaited.until).min() {
        let (id, event) = match timeout_at(until, events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => return Err(one(refusal("the checkpoint", "was given up", "take another one"))),
            Err(_) => {
                let late = awaited.iter().filter(|(_, awaited)| awaited.until <= Instant::now());
                return Err(late.map(|(id, awaited)| overdue(&subjects[id], awaited.phase)).collect());
            }
        };
        let (Some(subject), Some(entry)) = (subjects.get(&id), awaited.get_mut(&id)) else { continue };
        match event {
            Event::Said(FromProcess::Phase { phase, .. }) => {
                entry.phase = Some(phase);
                entry.until = Instant::now() + allowance(computation, phase, subject.real_pid);
            }
            Event::Said(FromProcess::Refused { refusals, .. }) if refusals.is_empty() => {
                return Err(one(refusal(&subject.name, "refused without a reason", "see its own output")));
            }
            Event::Said(FromProcess::Refused { refusals, .. }) => return Err(refusals),
            Event::Said(FromProcess::Dumped { manifest, stats, pause_us, tracker, .. }) => {
                awaited.remove(&id);
                let (pid, command) = (subject.pid, subject.command.clone());
                dumps.push(ProcessDump {
                    entry: ProcessEntry { pid, command, manifest, stats, tracker },
                    pause_us,
                });
            }
            Event::Said(
                FromProcess::Ready { .. } | FromProcess::Stopped { .. } | FromProcess::Captured { .. },
            ) => {}
            Event::Gone => return Err(one(gone(subject, entry.phase))),
        }
    }
    Ok(dumps)
}

/// What a process handed over.
struct ProcessDump {
    entry: ProcessEntry,
    pause_us: u64,
}

/// The refusal for a process that went away.
fn gone(subject: &Subject, phase: Option<Phase>) -> Refusal {
    refusal(
        &subject.name,
        format!("ended, or executed another program, while {} for the checkpoint", phase_name(phase)),
        "take another checkpoint if it still runs",
    )
}

/// How long a process may stay in a phase.
fn allowance(computation: &Computation, phase: Phase, real_pid: u32) -> Duration {
    let base = computation.settings.deadline;
    match phase {
        Phase::Running | Phase::Checking | Phase::Ready | Phase::Quiescing => base,
        Phase::Snapshotting | Phase::Storing | Phase::Held => {
            base + Duration::from_nanos(process::memory(real_pid).saturating_mul(NANOS_PER_BYTE))
        }
    }
}

/// The refusal for a process that let its deadline pass.
fn overdue(subject: &Subject, phase: Option<Phase>) -> Refusal {
    let state = process::state(subject.real_pid);
    let remedy = match state {
        Some('T') => "continue it (SIGCONT) and take another checkpoint, which can handle a stopped process",
        Some('t') => "detach the debugger and take another checkpoint",
        Some('D') => "wait for its input or output to end and take another checkpoint",
        _ => {
            "take another checkpoint; where that fails too, start the coordinator with a longer --deadline-seconds"
        }
    };
    let state = state.map_or("gone", process::state_name);
    refusal(
        &subject.name,
        format!("did not get on in time while {} for the checkpoint; it is {state} now", phase_name(phase)),
        remedy,
    )
}

/// What a process was doing, to go after "while".
fn phase_name(phase: Option<Phase>) -> &'static str {
    match phase {
        None => "being asked",
        Some(Phase::Running) => "running",
        Some(Phase::Checking) => "checking itself",
        Some(Phase::Ready) => "waiting for the others",
        Some(Phase::Quiescing) => "stopping its threads",
        Some(Phase::Snapshotting) => "copying its memory",
        Some(Phase::Storing) => "storing its memory",
        Some(Phase::Held) => "standing still",
    }
}

fn draft(
    computation: &Computation,
    dumps: Vec<ProcessDump>,
    label: Option<String>,
) -> Result<CheckpointDraft, Refusal> {
    let id = computation.id().map_err(|error| {
        refusal("the computation", format!("cannot be named: {error}"), "is /dev/urandom there?")
    })?;
    Ok(CheckpointDraft {
        computation: id,
        parent: computation.parent(),
        label,
        host: nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned(),
        pause_us: dumps.iter().map(|dump| dump.pause_us).max().unwrap_or(0),
        processes: dumps.into_iter().map(|dump| dump.entry).collect(),
        shared: Vec::new(),
    })
}

/// Tells every process how the checkpoint ended.
fn tell(computation: &Computation, message: &ToProcess) {
    computation.with_members(|members| {
        for member in members.values() {
            if let Err(reason) = member.send(message) {
                log::line(format_args!("{}: {reason}", member.name()));
            }
        }
    });
}

/// Waits until the processes have ended themselves; kills those that do not.
async fn await_ends(subjects: &Subjects) {
    let until = Instant::now() + END_DEADLINE;
    for subject in subjects.values() {
        if timeout_at(until, subject.pidfd.ended()).await.is_err() {
            // It stands still and may have lost its checkpoint thread; what it was is durable.
            let _ = subject.pidfd.signal(libc::SIGKILL);
            let _ = timeout(END_DEADLINE, subject.pidfd.ended()).await;
        }
    }
}

/// Drops what was stored for a checkpoint that was given up.
async fn discard(mut store: store::Client, token: u64) {
    if let Err(reason) = blocking(move || store.discard(token)).await {
        log::line(format_args!("the store could not discard an abandoned checkpoint: {reason}"));
    }
}

/// Runs a call on the store away from the connections.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    call: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match spawn_blocking(call).await {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(error) => Err(error.to_string()),
    }
}

fn store_refusal(computation: &Computation, reason: String) -> Refusal {
    refusal(
        format!("the store {}", computation.settings.store.display()),
        reason,
        "the computation runs on: put the store right and take another checkpoint",
    )
}

fn refusal(what: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { what: what.into(), reason: reason.into(), remedy: remedy.into() }
}

fn one(refusal: Refusal) -> Vec<Refusal> {
    vec![refusal]
}
