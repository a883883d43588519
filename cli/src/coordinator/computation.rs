//! The state of one computation: its name, its processes, and what has been made of them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use stasis_protocol::{
    coordinator::{FailedCheckpoint, FromProcess, Phase, ProcessStatus, Refusal, Status, ToProcess},
    wire,
};
use tokio::{
    sync::{Mutex, Notify, mpsc, watch},
    time::{Instant, timeout},
};

use super::{
    admission::{Admission, Applicant},
    births::Births,
    claim::Claim,
    interval::Intervals,
    log,
    message::Outgoing,
    namespaces::Namespaces,
    tcp::Network,
};
use crate::{
    address::Address,
    output,
    process::{self, Pidfd},
};

/// How many messages may wait for a process. A checkpoint sends it two; one that leaves more than these
/// unread does not read at all.
pub const OUTBOX: usize = 16;

/// What the coordinator was started with.
#[derive(Debug)]
pub struct Settings {
    pub address: Address,
    pub store: PathBuf,
    /// For steps of a checkpoint that move no data.
    pub deadline: Duration,
    pub idle: Duration,
}

/// Names a connection; a process that executes another program comes back with a new one.
pub type MemberId = u64;

/// Names a command's connection.
pub type ClientId = u64;

/// A process of the computation.
pub struct Member {
    /// The pid that the program knows itself by.
    pub pid: u32,
    pub real_pid: u32,
    pub command: String,
    pub restarted_from: Option<String>,
    pub pidfd: Rc<Pidfd>,
    /// Messages on their way to it.
    pub outbox: mpsc::Sender<Outgoing>,
    pub phase: Phase,
    pub phase_since: Instant,
    pub tracker: String,
    pub last_pause_us: Option<u64>,
    pub last_stood_us: Option<u64>,
    pub last_memory: Option<u64>,
    /// The store has what it was once.
    pub is_in_a_checkpoint: bool,
    /// It has prepared its end.
    pub has_parted: bool,
    /// Its place among the processes of the computation; it keeps that when it executes another program.
    pub rank: u64,
}

impl Member {
    /// `pid 12 (python3 x.py)`, with the kernel's pid where that is another.
    pub fn name(&self) -> String {
        // In messages of one line.
        let command = output::printable(&shorten(&self.command));
        if self.pid == self.real_pid {
            format!("pid {} ({command})", self.pid)
        } else {
            format!("pid {} ({command}, here {})", self.pid, self.real_pid)
        }
    }

    /// # Errors
    /// Why the message will never reach the process.
    pub fn send(&self, message: &ToProcess) -> Result<(), String> {
        self.send_beside(message, None)
    }

    /// The same, with a descriptor.
    ///
    /// # Errors
    /// As [`Member::send`].
    pub fn send_beside(&self, message: &ToProcess, beside: Option<OwnedFd>) -> Result<(), String> {
        let frame = wire::frame(message).map_err(|error| error.to_string())?;
        self.outbox.try_send(Outgoing { frame, beside }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "it does not read its connection to the coordinator".into(),
            mpsc::error::TrySendError::Closed(_) => "it closed its connection to the coordinator".into(),
        })
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_since = Instant::now();
    }
}

/// What a process did during a checkpoint.
#[derive(Debug)]
pub enum Event {
    Joined,
    Said(FromProcess),
    Gone,
    /// One that is waited for, by its pid here.
    Ended(u32),
}

/// Where those who take a checkpoint are told of the processes.
pub type Events = mpsc::Sender<(MemberId, Event)>;

/// The checkpoint that is being taken.
struct Round {
    token: u64,
    events: Events,
}

pub struct Computation {
    pub settings: Settings,
    state: RefCell<State>,
    births: Option<Births>,
    pub network: Network,
    /// Held by the checkpoint that is being taken.
    pub turn: Arc<Mutex<()>>,
    /// Told whenever something changed that somebody may wait for.
    changed: watch::Sender<()>,
    /// Told when the coordinator is to end.
    pub shutdown: Notify,
}

/// A process that has closed its connection.
struct Departed {
    real_pid: u32,
    pidfd: Rc<Pidfd>,
    rank: u64,
}

#[derive(Default)]
struct State {
    id: Option<String>,
    /// To the id, while there are processes.
    claim: Option<Claim>,
    /// What the next checkpoint goes on from.
    parent: Option<String>,
    admission: Admission,
    /// The processes of a restart that announced itself, by the pids that they know, and whether each has come.
    awaited: Vec<(u32, bool)>,
    /// The client that announced them, for as long as it makes them.
    announced_by: Option<ClientId>,
    /// Where the restart has put them.
    restarted_in: Option<Namespaces>,
    members: BTreeMap<MemberId, Member>,
    next_member: MemberId,
    next_client: ClientId,
    /// Whether the process that left last was in this pid namespace.
    was_here: bool,
    /// Processes that left and may be about to come back under another program.
    departed: Vec<Departed>,
    /// Processes that joined since the computation began or was resumed.
    joined: u32,
    connections: usize,
    round: Option<Round>,
    intervals: Intervals,
    ticks_skipped: u64,
    taken: u64,
    failed: u64,
    last: Option<String>,
    last_failure: Option<FailedCheckpoint>,
}

impl Computation {
    pub fn new(settings: Settings) -> Rc<Self> {
        let births = Births::create(&settings.address)
            .inspect_err(|error| log::line(format_args!("no list of births: {error}")))
            .ok();
        Rc::new(Self {
            settings,
            births,
            network: Network::default(),
            state: RefCell::default(),
            turn: Arc::default(),
            changed: watch::Sender::new(()),
            shutdown: Notify::new(),
        })
    }

    /// The computation's name, made up when it is first asked for.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn id(&self) -> io::Result<String> {
        let mut state = self.state.borrow_mut();
        if let Some(id) = &state.id {
            return Ok(id.clone());
        }
        let id = format!("{:016x}", random()?);
        state.id = Some(id.clone());
        if !state.members.is_empty() {
            state.claim_id();
        }
        Ok(id)
    }

    /// The checkpoint that the next one goes on from.
    pub fn parent(&self) -> Option<String> {
        self.state.borrow().parent.clone()
    }

    /// Whether a process may join: the epoch that it is told of, `None` where it may not.
    pub async fn admit(&self, applicant: &Applicant<'_>) -> Option<u64> {
        let decided = {
            let state = &mut *self.state.borrow_mut();
            let pidfds = state.members.values().map(|member| &member.pidfd);
            let mut pidfds = pidfds.chain(state.departed.iter().map(|departed| &departed.pidfd));
            if state.awaited.is_empty() && pidfds.all(|pidfd| pidfd.has_ended()) && self.births().is_empty() {
                state.admission.begin_anew();
            }
            let awaited = state.awaited.iter().map(|(pid, _)| *pid);
            state.admission.decide(applicant, &state.members, awaited)
        };
        match decided {
            Ok(epoch) => Some(epoch),
            Err(others) => {
                for id in others {
                    self.leave(id).await;
                }
                None
            }
        }
    }

    /// Adds a process.
    pub async fn join(&self, member: Member) -> MemberId {
        let (id, events) = self.add(member);
        if let Some(events) = events {
            // Nobody listens any more when the checkpoint has just ended.
            let _ = events.send((id, Event::Joined)).await;
        }
        self.changed.send_replace(());
        id
    }

    /// The new member's id, and who is to be told of it.
    fn add(&self, mut member: Member) -> (MemberId, Option<Events>) {
        let mut state = self.state.borrow_mut();
        // The connection of the program before an execve(2) may be seen to close only later.
        let replaced: Vec<_> =
            state.members.extract_if(.., |_, other| other.real_pid == member.real_pid).collect();
        let replaced = replaced.first().map(|(_, member)| member.rank);
        state.departed.retain(|departed| !departed.pidfd.has_ended());
        let came_back = state.departed.iter().position(|departed| departed.real_pid == member.real_pid);
        let came_back = came_back.map(|at| state.departed.swap_remove(at).rank);
        let before = replaced.or(came_back);
        // What is launched beside a restart that is under way belongs to its computation.
        let continues =
            !state.awaited.is_empty() && (member.restarted_from.is_some() || state.announced_by.is_some());
        let was_born_here = self.births.as_ref().is_some_and(|births| births.settle(member.pid));
        // All that was here has ended: this is another computation.
        let begins = state.members.is_empty() && before.is_none() && !continues && !was_born_here;
        state.intervals.joined(begins);
        if begins {
            state.begin();
            state.joined = 0;
        }
        if member.restarted_from.is_some() && state.parent.is_none() {
            state.parent.clone_from(&member.restarted_from);
        }
        if member.restarted_from.is_some() && state.restarted_in.is_none() {
            // None of them runs before all are there. One whose coordinator was replaced says where it is, as well.
            state.restarted_in = Some(Namespaces::of(member.real_pid));
        }
        if before.is_none() {
            state.joined = state.joined.saturating_add(1);
        }
        let id = state.next_member;
        state.next_member += 1;
        member.rank = before.unwrap_or(id);
        if member.restarted_from.is_some()
            && let Some(place) = state.awaited.iter().position(|(pid, _)| *pid == member.pid)
        {
            // The order of the checkpoint is kept.
            member.rank = place as u64;
        }
        log::line(format_args!("{} joined", member.name()));
        state.members.insert(id, member);
        state.claim_id();
        state.arrived(id);
        (id, state.round.as_ref().map(|round| round.events.clone()))
    }

    /// Removes a process whose connection has ended.
    pub async fn leave(&self, id: MemberId) {
        let (removed, events) = {
            let mut state = self.state.borrow_mut();
            let removed = state.members.remove(&id);
            if let Some(member) = &removed {
                log::line(format_args!("{} left", member.name()));
                state.was_here = member.pid == member.real_pid;
                let pidfd = Rc::clone(&member.pidfd);
                if !pidfd.has_ended() {
                    state.departed.push(Departed { real_pid: member.real_pid, pidfd, rank: member.rank });
                }
                if state.members.is_empty() {
                    state.claim = None;
                }
            }
            (removed, state.round.as_ref().map(|round| round.events.clone()))
        };
        if let Some(events) = events {
            // Nobody listens any more when the checkpoint has just ended.
            let _ = events.send((id, Event::Gone)).await;
        }
        drop(removed);
        self.changed.send_replace(());
    }

    /// Takes note of what a process says.
    pub async fn said(&self, id: MemberId, message: FromProcess) {
        let events = {
            let mut state = self.state.borrow_mut();
            let Some(member) = state.members.get_mut(&id) else { return };
            let token = match &message {
                FromProcess::Parting => {
                    member.has_parted = true;
                    self.changed.send_replace(());
                    return;
                }
                FromProcess::Phase { token, phase } => {
                    member.enter(*phase);
                    *token
                }
                FromProcess::Refused { token, .. } => {
                    member.enter(Phase::Running);
                    *token
                }
                FromProcess::Ready { token, .. }
                | FromProcess::Stopped { token, .. }
                | FromProcess::Captured { token, .. } => *token,
                FromProcess::Dumped { token, tracker, pause_us, stood_us, memory, .. } => {
                    member.tracker.clone_from(tracker);
                    if *pause_us > 0 {
                        member.last_pause_us = Some(*pause_us);
                        member.last_stood_us = Some(*stood_us);
                    }
                    member.last_memory = Some(*memory);
                    *token
                }
            };
            // What it says of a checkpoint that was given up comes too late.
            state.round.as_ref().filter(|round| round.token == token).map(|round| round.events.clone())
        };
        if let Some(events) = events {
            let _ = events.send((id, Event::Said(message))).await;
        }
    }

    /// Children that have been made and have not come, by their pids as their parents know them.
    pub fn births(&self) -> Vec<u32> {
        self.births.as_ref().map(Births::awaited).unwrap_or_default()
    }

    /// The pid here of a process, by the pid that its parent knows; `None` where there is none.
    pub fn real_pid(&self, pid: u32) -> Option<u32> {
        let state = self.state.borrow();
        match state.members.values().next() {
            Some(member) => process::real_pid(pid, member.real_pid),
            // Who started them may have ended before it joined.
            None => Some(pid)
                .filter(|&pid| (state.was_here || state.joined == 0) && process::state(pid).is_some()),
        }
    }

    /// A child that does not exist any more needs not come.
    pub fn forget_birth(&self, pid: u32) {
        if let Some(births) = &self.births {
            births.settle(pid);
        }
    }

    /// What a process has in namespaces that a restart would not put it in.
    pub fn elsewhere(&self, real_pid: u32) -> Vec<&'static str> {
        let own = Namespaces::of(std::process::id());
        let state = self.state.borrow();
        let places: Vec<&Namespaces> = std::iter::once(&own).chain(&state.restarted_in).collect();
        Namespaces::of(real_pid).beside(&places)
    }

    /// Calls `look` with the processes, by their connections.
    pub fn with_members<T>(&self, look: impl FnOnce(&mut BTreeMap<MemberId, Member>) -> T) -> T {
        look(&mut self.state.borrow_mut().members)
    }

    /// Begins a round: what processes say of `token` comes out of the receiver.
    pub fn open_round(&self, token: u64) -> (Events, mpsc::Receiver<(MemberId, Event)>) {
        let (events, receiver) = mpsc::channel(64);
        self.state.borrow_mut().round = Some(Round { token, events: events.clone() });
        (events, receiver)
    }

    /// Ends a checkpoint; `Ok` is the new checkpoint's id.
    pub fn close_round(&self, result: Result<&str, &[Refusal]>) {
        let mut state = self.state.borrow_mut();
        state.round = None;
        for member in state.members.values_mut() {
            if member.phase != Phase::Running {
                member.enter(Phase::Running);
            }
        }
        match result {
            Ok(id) => {
                log::line(format_args!("checkpoint {id}"));
                state.taken += 1;
                state.last_failure = None;
                state.last = Some(id.to_string());
                state.parent = Some(id.to_string());
            }
            Err(refusals) => {
                state.failed += 1;
                state.last_failure = refusals.first().map(|refusal| FailedCheckpoint {
                    failed_us: output::now_us(),
                    refusal: refusal.clone(),
                });
                for refusal in refusals {
                    log::line(format_args!("no checkpoint: {refusal}"));
                }
            }
        }
    }

    /// A number for a client.
    pub fn number_client(&self) -> ClientId {
        let mut state = self.state.borrow_mut();
        state.next_client += 1;
        state.next_client
    }

    /// Makes what connects from now on the continuation of `id` from `checkpoint`; where `id` runs on elsewhere, a computation
    /// of its own from there.
    ///
    /// # Errors
    /// Another computation is running here, or being restarted.
    pub fn resume(
        &self,
        client: ClientId,
        id: String,
        checkpoint: String,
        processes: &[u32],
    ) -> Result<(), Refusal> {
        let mut state = self.state.borrow_mut();
        if state.announced_by.is_some_and(|other| other != client) {
            return Err(Refusal {
                what: "another restart".into(),
                reason: format!("is under way at {}", self.settings.address),
                remedy: "wait for it, or restart under a coordinator of its own, --coord".into(),
            });
        }
        // Those that have just ended may not have been seen to leave yet.
        if let Some(member) = state.members.values().find(|member| !member.pidfd.has_ended()) {
            return Err(Refusal {
                what: member.name(),
                reason: format!("is running at {}", self.settings.address),
                remedy: "end it, or restart under a coordinator of its own, --coord".into(),
            });
        }
        state.members.clear();
        state.claim = None;
        state.claim = Claim::take(&id);
        // Made up when it is asked for.
        state.id = state.claim.is_some().then_some(id);
        state.parent = Some(checkpoint);
        state.awaited = processes.iter().map(|&pid| (pid, false)).collect();
        state.announced_by = (!processes.is_empty()).then_some(client);
        state.next_member = state.next_member.max(processes.len() as u64);
        state.restarted_in = None;
        state.admission.resume();
        state.departed.clear();
        state.joined = 0;
        state.intervals.ended();
        Ok(())
    }

    /// A client has gone. What it was restarting comes without it (`stasis restart` may be killed), or never.
    pub fn client_left(&self, client: ClientId) {
        let mut state = self.state.borrow_mut();
        if state.announced_by != Some(client) {
            return;
        }
        state.announced_by = None;
        if state.members.is_empty() {
            state.claim = None;
        } else if !state.members.values().any(|member| member.restarted_from.is_some()) {
            // Those that are here were launched meanwhile, and are a computation by themselves.
            state.begin();
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// Whether processes of a restart have not come yet.
    pub fn is_restarting(&self) -> bool {
        let state = self.state.borrow();
        !state.awaited.is_empty() && !state.members.is_empty()
    }

    /// How many processes joined since the computation began or was resumed.
    pub fn joined(&self) -> u32 {
        self.state.borrow().joined
    }

    /// Counts the connections; the coordinator is idle when there are none.
    pub fn connected(&self, by: isize) {
        let mut state = self.state.borrow_mut();
        state.connections = state.connections.saturating_add_signed(by);
        drop(state);
        self.changed.send_replace(());
    }

    pub fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.connections == 0 && state.round.is_none()
    }

    /// Waits until the processes that were told to [`ToProcess::Part`] have done so or ended, at most so long.
    pub async fn await_parting(&self, at_most: Duration) {
        let mut changes = self.changes();
        let parted = async {
            while !self.with_members(|members| members.values().all(|member| member.has_parted))
                && changes.changed().await.is_ok()
            {}
        };
        let _ = timeout(at_most, parted).await;
    }

    /// Something to wait on until the state has changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Calls `look` with the intervals at which checkpoints are taken.
    pub fn with_intervals<T>(&self, look: impl FnOnce(&mut Intervals) -> T) -> T {
        look(&mut self.state.borrow_mut().intervals)
    }

    pub fn skip_tick(&self) {
        self.state.borrow_mut().ticks_skipped += 1;
    }

    /// # Errors
    /// As [`Computation::id`].
    pub fn status(&self) -> io::Result<Status> {
        let computation = self.id()?;
        let state = self.state.borrow();
        Ok(Status {
            computation,
            coordinator_pid: std::process::id(),
            address: self.settings.address.to_string(),
            network: self.network.address().map(|address| format!("tcp:{address}")),
            store: self.settings.store.to_string_lossy().into_owned(),
            interval_us: state.intervals.current().map(|interval| interval.as_micros() as u64),
            checkpoints_taken: state.taken,
            checkpoints_failed: state.failed,
            ticks_skipped: state.ticks_skipped,
            last: state.last.clone(),
            last_failure: state.last_failure.clone(),
            processes: state.members.values().map(process_status).collect(),
        })
    }
}

impl State {
    /// Keeps the id from other coordinators.
    fn claim_id(&mut self) {
        let Some(id) = &self.id else { return };
        if !self.claim.as_ref().is_some_and(|claim| claim.is_of(id)) {
            self.claim = Claim::take(id);
        }
    }

    /// Makes this another computation.
    fn begin(&mut self) {
        self.id = None;
        self.claim = None;
        self.parent = None;
        self.awaited.clear();
        self.restarted_in = None;
    }

    /// Takes note of a process that may be of a restart; when it is the last one, all of them go on.
    fn arrived(&mut self, id: MemberId) {
        let Some(member) = self.members.get(&id) else { return };
        if member.restarted_from.is_none() {
            return;
        }
        for (pid, has_come) in &mut self.awaited {
            *has_come |= *pid == member.pid;
        }
        // One whose coordinator was replaced while it ran is not waited for by anybody: it just goes on.
        if self.awaited.iter().all(|(_, has_come)| *has_come) {
            self.awaited.clear();
            self.announced_by = None;
            for member in self.members.values().filter(|member| member.restarted_from.is_some()) {
                if let Err(reason) = member.send(&ToProcess::Go) {
                    log::line(format_args!("{}: {reason}", member.name()));
                }
            }
        }
    }
}

fn process_status(member: &Member) -> ProcessStatus {
    ProcessStatus {
        pid: member.pid,
        real_pid: member.real_pid,
        command: member.command.clone(),
        phase: member.phase,
        state: process::state(member.real_pid).unwrap_or('X'),
        phase_for_us: member.phase_since.elapsed().as_micros() as u64,
        tracker: member.tracker.clone(),
        last_pause_us: member.last_pause_us,
        last_stood_us: member.last_stood_us,
        last_memory: member.last_memory,
        restarted_from: member.restarted_from.clone(),
    }
}

/// A command line short enough for a message.
fn shorten(command: &str) -> String {
    const LONGEST: usize = 60;
    match command.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &command[..end]),
        None => command.into(),
    }
}

/// 64 random bits that are not all zero.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn random() -> io::Result<u64> {
    let mut urandom = File::open("/dev/urandom")?;
    loop {
        let mut bytes = [0; 8];
        urandom.read_exact(&mut bytes)?;
        let value = u64::from_ne_bytes(bytes);
        if value != 0 {
            return Ok(value);
        }
    }
}
