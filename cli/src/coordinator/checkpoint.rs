//! Taking one checkpoint: every process dumps itself into the store, and when all have, the store makes
//! a checkpoint of the dumps. Whatever goes wrong, the processes run on as if nothing had been asked.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use stasis_protocol::{
    coordinator::{Outside, Phase, Refusal, ToProcess},
    store::{CheckpointDraft, CheckpointRecord, SharedDescriptor},
};
use tokio::{
    sync::OwnedMutexGuard,
    task::spawn_blocking,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    computation::{Computation, MemberId, random},
    dormant, entangled,
    loans::{Lender, Lent},
    log,
    round::{Failure, Gathered, ProcessDump, Question, Round, Subject, Suspects},
    stopped,
};
use crate::{output, process, store};

/// What a step that moves data may take on top, for each byte of the process: a disk of 32 MiB a second.
const NANOS_PER_BYTE: u64 = 30;

/// What any step may take on top for each process of the computation: they share processors, and the store.
const TURN: Duration = Duration::from_millis(50);

/// How long a process may take to end itself once it was told to, before it is killed.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// What was asked for.
#[derive(Debug, Default)]
pub struct Order {
    pub kill: bool,
    pub label: Option<String>,
    /// See [`stasis_protocol::coordinator::ClientRequest::Checkpoint`].
    pub without: Vec<u32>,
    pub outside: Outside,
}

/// A checkpoint that was taken.
pub struct Taken {
    pub record: CheckpointRecord,
    /// The sockets that a restart resets.
    pub outside: Vec<Refusal>,
}

/// The outcome of a checkpoint.
pub type Outcome = Result<Taken, Vec<Refusal>>;

/// Takes a checkpoint. `_turn` is the right to, see [`Computation::turn`].
pub async fn take(computation: Rc<Computation>, order: Order, _turn: OwnedMutexGuard<()>) -> Outcome {
    let outcome = attempt(&computation, order).await;
    computation.close_round(outcome.as_ref().map(|taken| taken.record.id.as_str()).map_err(Vec::as_slice));
    outcome
}

async fn attempt(computation: &Rc<Computation>, order: Order) -> Outcome {
    if let Err(reason) = order.label.as_deref().map_or(Ok(()), stasis_store::label::check) {
        return Err(one(refusal("the checkpoint", reason, "the computation runs on")));
    }
    /// For processes that come and go all the time.
    const MOST_ROUNDS: u32 = 12;
    /// How long a program is left to itself that was met between two steps, at first and at most: one that passes descriptors
    /// to its workers all the time (Node's cluster) is met there every other time.
    const PAUSE: Duration = Duration::from_millis(5);
    const LONGEST_PAUSE: Duration = Duration::from_millis(40);
    await_newborn(computation).await;
    members(computation).map_err(one)?;
    let (mut suspects, mut pause, mut wary, mut may_be_alone) = (None, PAUSE, false, true);
    for _ in 1..MOST_ROUNDS {
        match round(computation, &order, &mut suspects, wary, may_be_alone).await {
            Err(Failure::Again(refusal)) => log::line(format_args!("once more: {refusal}")),
            Err(Failure::NotAlone(refusal)) => {
                log::line(format_args!("once more: {refusal}"));
                may_be_alone = false;
            }
            Err(Failure::Passing(refusals)) => {
                for refusal in refusals {
                    log::line(format_args!("once more: {refusal}"));
                }
                // It is the program that must do something, and it tells nobody.
                sleep(pause).await;
                wary = true;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(Failure::Refused(refusals)) => return Err(refusals),
            Ok(taken) => return Ok(taken),
        }
    }
    round(computation, &order, &mut suspects, wary, may_be_alone).await.map_err(|failure| match failure {
        Failure::Again(refusal) | Failure::NotAlone(refusal) => one(refusal),
        Failure::Refused(refusals) | Failure::Passing(refusals) => refusals,
    })
}

async fn round(
    computation: &Rc<Computation>,
    order: &Order,
    suspects: &mut Option<Suspects>,
    wary: bool,
    may_be_alone: bool,
) -> Result<Taken, Failure> {
    // Where the only one is executing another program it is nobody for a moment.
    let nobody = |refusal| Failure::Passing(one(refusal));
    let members = members(computation).map_err(nobody)?;
    let refusals = entangled::refusals(computation);
    if !refusals.is_empty() {
        return Err(refusals.into());
    }
    let directory = computation.settings.store.clone();
    let opened = blocking(move || store::connect_or_start(&directory)).await;
    let store = opened
        .map_err(|reason| one(Refusal::no_store(computation.settings.store.display(), &reason, PUT_RIGHT)))?;
    let token = random().map_err(|error| {
        one(refusal("the coordinator", format!("has no random numbers: {error}"), "is /dev/urandom there?"))
    })?;
    let question = Question {
        token,
        store: store.socket().to_string_lossy().into_owned(),
        hold: order.kill,
        outside: order.outside,
        without: order.without.clone(),
    };
    for &(_, real_pid) in &members {
        stopped::settle(real_pid).await;
    }
    let mut lender = Lender::new(token, store, wary);
    let lent = lender.lend(computation, &members).await;
    let lent = lent.map_err(|reason| one(store_refusal(computation, reason)))?;

    let mut round = Round::open(computation, question, suspects, lender);
    // Those who joined while the store was being connected to: who joins from now on is told of to the round.
    let members = self::members(computation).map_err(nobody)?;
    // A child whose parent has ended is nobody's whom the only member knows.
    let alone = may_be_alone && members.len() == 1 && computation.births().is_empty();
    let gathered = match ask(&mut round, &members, alone, lent) {
        Ok(()) => round.gather().await,
        Err(refusals) => Err(refusals.into()),
    };
    let store = round.end_loans();
    let gathered = match (gathered, store) {
        (Ok(gathered), Some(store)) => Ok((gathered, store)),
        (Ok(_), None) => Err((one(store_refusal(computation, "its server is gone".into())).into(), None)),
        (Err(failure), store) => Err((failure, store)),
    };
    let (Gathered { dumps, shared, outside }, mut store) = match gathered {
        Ok(gathered) => gathered,
        Err((failure, store)) => {
            tell(computation, &ToProcess::Abandoned { token });
            if let Some(store) = store {
                discard(store, token).await;
            }
            await_stops(&round).await;
            return Err(failure);
        }
    };

    let committed = match draft(computation, dumps, shared, order.label.clone()) {
        Ok(draft) => {
            // What is refused is not waited for any more.
            let commit = move || store.commit(token, draft).inspect_err(|_| drop(store.discard(token)));
            blocking(commit).await.map_err(|reason| store_refusal(computation, reason))
        }
        Err(refusal) => Err(refusal),
    };
    match committed {
        Ok(record) => {
            computation.with_members(|members| {
                for id in round.ids() {
                    if let Some(member) = members.get_mut(&id) {
                        member.is_in_a_checkpoint = true;
                    }
                }
            });
            tell(computation, &ToProcess::Committed { token, kill: order.kill });
            if order.kill {
                computation.await_parting(END_DEADLINE).await;
                tell(computation, &ToProcess::End);
                await_ends(&round).await;
            } else {
                await_stops(&round).await;
            }
            Ok(Taken { record, outside })
        }
        Err(refusal) => {
            tell(computation, &ToProcess::Abandoned { token });
            await_stops(&round).await;
            Err(one(refusal).into())
        }
    }
}

/// Waits for those that stood stopped to stop again: the next checkpoint would take one that is about to for one that runs.
async fn await_stops(round: &Round<'_>) {
    /// One that somebody has continued meanwhile does not.
    const PATIENCE: Duration = Duration::from_millis(100);
    for subject in round.subjects().filter(|subject| subject.was_stopped) {
        let _ = timeout(PATIENCE, stopped::await_stop(subject.real_pid)).await;
    }
}

/// A program that was launched a moment ago may not have joined yet: it does not wait for its coordinator. Of one that is
/// being restarted, some processes may be missing.
async fn await_newborn(computation: &Rc<Computation>) {
    const PATIENCE: Duration = Duration::from_millis(500);
    // Who started a daemon may have ended before it was heard.
    dormant::call_the_last(computation);
    let mut changes = computation.changes();
    let joined = async {
        while computation.with_members(|members| members.is_empty()) && changes.changed().await.is_ok() {}
    };
    // Nobody came: that is refused by name.
    let _ = timeout(PATIENCE, joined).await;
    let restarted = async { while computation.is_restarting() && changes.changed().await.is_ok() {} };
    // What is missing will not come, and whoever is there says so.
    let _ = timeout(computation.settings.deadline, restarted).await;
}

/// The processes that there are, with their pids here.
fn members(computation: &Computation) -> Result<Vec<(MemberId, u32)>, Refusal> {
    let members: Vec<_> = computation
        .with_members(|members| members.iter().map(|(id, member)| (*id, member.real_pid)).collect());
    if members.is_empty() {
        return Err(refusal(
            format!("the computation at {}", computation.settings.address),
            "has no process",
            "start one with `stasis launch`",
        ));
    }
    Ok(members)
}

/// Asks every process to dump itself.
fn ask(
    round: &mut Round<'_>,
    members: &[(MemberId, u32)],
    alone: bool,
    mut lent: Lent,
) -> Result<(), Vec<Refusal>> {
    let refusals: Vec<Refusal> =
        members.iter().filter_map(|(id, _)| round.ask(*id, alone, lent.remove(id)).err()).collect();
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

/// The refusal for a process that went away.
pub fn gone(subject: &Subject, phase: Option<Phase>) -> Refusal {
    refusal(
        &subject.name,
        format!("ended, or executed another program, while {} for the checkpoint", phase_name(phase)),
        "take another checkpoint if it still runs",
    )
}

/// How long a process may stay in a phase.
pub fn allowance(computation: &Computation, phase: Phase, real_pid: u32) -> Duration {
    let processes = computation.with_members(|members| members.len()) as u32;
    let base = computation.settings.deadline + TURN * processes;
    match phase {
        Phase::Running | Phase::Checking | Phase::Ready | Phase::Quiescing => base,
        Phase::Snapshotting | Phase::Storing | Phase::Held => {
            base + Duration::from_nanos(process::memory(real_pid).saturating_mul(NANOS_PER_BYTE))
        }
    }
}

/// The refusal for a process that let its deadline pass.
pub fn overdue(subject: &Subject, phase: Option<Phase>) -> Refusal {
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
    shared: Vec<Vec<SharedDescriptor>>,
    label: Option<String>,
) -> Result<CheckpointDraft, Refusal> {
    let id = computation.id().map_err(|error| {
        refusal("the computation", format!("cannot be named: {error}"), "is /dev/urandom there?")
    })?;
    let mut pids = BTreeSet::new();
    if let Some(double) = dumps.iter().find(|dump| !pids.insert(dump.entry.pid)) {
        return Err(refusal(
            format!("pid {} ({})", double.entry.pid, output::printable(&double.entry.command)),
            "another process of the computation has this pid, in another pid namespace",
            "end one of them, or start one under a coordinator of its own (--coord)",
        ));
    }
    Ok(CheckpointDraft {
        computation: id,
        parent: computation.parent(),
        label,
        host: nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned(),
        pause_us: dumps.iter().map(|dump| dump.pause_us).max().unwrap_or(0),
        processes: dumps.into_iter().map(|dump| dump.entry).collect(),
        shared,
    })
}

/// Tells every process something.
pub fn tell(computation: &Computation, message: &ToProcess) {
    computation.with_members(|members| {
        for member in members.values() {
            if let Err(reason) = member.send(message) {
                log::line(format_args!("{}: {reason}", member.name()));
            }
        }
    });
}

/// Waits until the processes have ended themselves; kills those that do not.
async fn await_ends(round: &Round<'_>) {
    let until = Instant::now() + END_DEADLINE;
    for subject in round.subjects() {
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
pub async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    call: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match spawn_blocking(call).await {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(error) => Err(error.to_string()),
    }
}

/// What is to be done about a store.
const PUT_RIGHT: &str = "the computation runs on: put the store right and take another checkpoint";

pub fn store_refusal(computation: &Computation, reason: String) -> Refusal {
    refusal(format!("the store {}", computation.settings.store.display()), reason, PUT_RIGHT)
}

pub fn refusal(what: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { what: what.into(), reason: reason.into(), remedy: remedy.into() }
}

pub fn one(refusal: Refusal) -> Vec<Refusal> {
    vec![refusal]
}
