//! One round of all processes through a checkpoint: each copies what it can while it runs, then all stop, then all copy
//! the rest, then all go on. Nobody begins a step before everybody has done the one before it, so that what one sends
//! and another has not received yet is in exactly one of their records.
//!
//! A process that is alone in its computation does all steps without waiting. Processes come and go meanwhile:
//! - one that has ended before all stood still does not count;
//! - a child that has not said hello, or a process that is executing another program, is waited for ([`Newborn`]);
//! - one that joins is asked like the others, and catches up. After all stood still nobody who belongs to them can come:
//!   then the round is made again.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use stasis_protocol::{
    coordinator::{End, FromProcess, Outside, Phase, Refusal, Sharable, ToProcess},
    store::{ProcessEntry, SharedDescriptor},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    checkpoint::{allowance, gone, one, overdue, refusal, store_refusal},
    computation::{Computation, Event, Events, Member, MemberId},
    loans::Lender,
    newborn::Newborn,
    stopped,
    together::{self, Holder},
};
use crate::{
    process::{self, Pidfd},
    store,
};

/// What a process has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Asked,
    Ready,
    Stopped,
    Captured,
    Dumped,
}

/// A process that is being checkpointed, as it was when it was asked: it may end before the checkpoint is durable.
pub struct Subject {
    pub pid: u32,
    pub real_pid: u32,
    pub command: String,
    pub name: String,
    pub pidfd: Rc<Pidfd>,
    /// It stood stopped by a signal, and is to stop again.
    pub was_stopped: bool,
    /// Its place among the others.
    rank: u64,
    step: Step,
    /// `None` until it has said anything.
    phase: Option<Phase>,
    until: Instant,
    ends: Option<Vec<End>>,
    objects: Vec<u64>,
    elsewhere: Vec<u64>,
    /// Descriptors are on their way to it.
    receives: bool,
    /// What others have told of, and it has not: it may find that among those.
    foreign: Vec<u64>,
    /// The queues of sockets that were, and whether it has copied them.
    received: Vec<(u64, bool)>,
    present: Vec<u64>,
    uncopied: Vec<(u64, u64)>,
    sharable: Vec<Sharable>,
    dump: Option<ProcessDump>,
}

/// What a process handed over.
#[derive(Clone)]
pub struct ProcessDump {
    pub entry: ProcessEntry,
    pub pause_us: u64,
}

/// All that was handed over.
pub struct Gathered {
    pub dumps: Vec<ProcessDump>,
    pub shared: Vec<Vec<SharedDescriptor>>,
    /// Sockets whose other ends are outside.
    pub outside: Vec<Refusal>,
}

/// Why a round did not end well.
pub enum Failure {
    Refused(Vec<Refusal>),
    /// The program is between two steps, and would have to do the next one.
    Passing(Vec<Refusal>),
    /// Somebody came too late: another round may succeed.
    Again(Refusal),
    /// Others have come while one that seemed to be alone did all steps: it is not to do so in the next round.
    NotAlone(Refusal),
}

impl From<Vec<Refusal>> for Failure {
    fn from(refusals: Vec<Refusal>) -> Self {
        Self::Refused(refusals)
    }
}

/// What every process is asked.
pub struct Question {
    pub token: u64,
    pub store: String,
    pub hold: bool,
    pub outside: Outside,
    /// Processes without the library that the checkpoint is taken without.
    pub without: Vec<u32>,
}

/// How long nothing is heard before processes are looked at: nobody tells of one that is stopped.
const LOOK: Duration = Duration::from_millis(25);

/// Ends of connections by their names and those of the other ends.
pub type Suspects = BTreeMap<(u64, u64), Refusal>;

pub struct Round<'a> {
    computation: &'a Computation,
    question: Question,
    subjects: BTreeMap<MemberId, Subject>,
    /// The last step that all have done, and beyond which they were told to go.
    passed: Step,
    newborn: Newborn,
    /// Those that joined and have not been asked.
    newcomers: Vec<Newcomer>,
    /// The only process was asked to do all steps by itself, and has not said that it does otherwise. Who comes meanwhile may
    /// have been made before it stood still, or after.
    alone: bool,
    lender: Lender,
    sender: Events,
    events: mpsc::Receiver<(MemberId, Event)>,
    shared: Vec<Vec<SharedDescriptor>>,
    outside: Vec<Refusal>,
    /// What seemed to lead outside in the round before, and then in this one.
    suspects: &'a mut Option<Suspects>,
    /// The last process that has ended.
    ended: Option<Refusal>,
}

/// One that joined, as it was then: it may have left when it is to be asked.
struct Newcomer {
    id: MemberId,
    real_pid: u32,
    name: String,
    pidfd: Rc<Pidfd>,
}

impl<'a> Round<'a> {
    /// Opens a round; what processes say of it is listened to from now on.
    pub fn open(
        computation: &'a Computation,
        question: Question,
        suspects: &'a mut Option<Suspects>,
        lender: Lender,
    ) -> Self {
        let (sender, events) = computation.open_round(question.token);
        Self {
            computation,
            newborn: Newborn::but(&question.without, allowance(computation, Phase::Running, 0)),
            newcomers: Vec::new(),
            alone: false,
            lender,
            question,
            subjects: BTreeMap::new(),
            passed: Step::Asked,
            sender,
            events,
            shared: Vec::new(),
            outside: Vec::new(),
            suspects,
            ended: None,
        }
    }

    pub fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.subjects.values()
    }

    pub fn ids(&self) -> impl Iterator<Item = MemberId> {
        self.subjects.keys().copied()
    }

    /// The connection to the store, from which nothing is lent any more; `None` where it has failed.
    pub fn end_loans(&mut self) -> Option<store::Client> {
        self.lender.end()
    }

    /// Asks a process to dump itself; `lent` is its connection to the store, where it may not make one.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn ask(&mut self, id: MemberId, alone: bool, lent: Option<OwnedFd>) -> Result<(), Refusal> {
        self.alone = alone;
        let asked = self
            .computation
            .with_members(|members| members.get(&id).map(|member| (member.real_pid, member.name())));
        if let Some((real_pid, name)) = asked {
            let elsewhere = self.computation.elsewhere(real_pid);
            if !elsewhere.is_empty() {
                let reason = format!("it is in namespaces of its own (unshare(2)): {}", elsewhere.join(", "));
                let remedy = "launch it without, or launch it with its coordinator from inside of them";
                return Err(refusal(name, reason, remedy));
            }
        }
        let newborn = &mut self.newborn;
        let (subject, sent) = self.computation.with_members(|members| {
            let Some(member) = members.get(&id) else { return (None, Ok(())) };
            let is_stopped = process::is_stopped(member.real_pid);
            let was_stopped = newborn.was_continued(member.real_pid) || is_stopped;
            let message = ToProcess::Checkpoint {
                token: self.question.token,
                store: self.question.store.clone(),
                store_passed: lent.is_some(),
                hold: self.question.hold,
                was_stopped,
                alone,
            };
            let sent = if is_stopped {
                stopped::wake(member, &message, lent)
            } else {
                member.send_beside(&message, lent)
            };
            (Some(subject(member, was_stopped)), sent)
        });
        // One that is not there any more has ended, or comes back under another program.
        let Some(mut subject) = subject else { return Ok(()) };
        // One that tells no phases may be moving data all the time.
        subject.until += allowance(self.computation, Phase::Storing, subject.real_pid);
        let name = subject.name.clone();
        self.newborn.settle(subject.real_pid);
        self.subjects.insert(id, subject);
        sent.map_err(|reason| refusal(name, reason, "end it, or checkpoint again"))
    }

    /// Waits until every process has dumped itself.
    ///
    /// # Errors
    /// Why the checkpoint cannot be taken; the processes are to be told then.
    pub async fn gather(&mut self) -> Result<Gathered, Failure> {
        loop {
            self.ask_newcomers().await?;
            self.pass()?;
            if self.subjects.is_empty() && self.newborn.is_empty() {
                let ended = refusal("the computation", "has ended", "start it again");
                return Err(one(self.ended.take().unwrap_or(ended)).into());
            }
            if self.newborn.is_empty() && self.subjects.values().all(|subject| subject.step == Step::Dumped) {
                return Ok(self.gathered());
            }
            let working = self.subjects.values().filter(|subject| self.is_working(subject));
            let until = working.map(|subject| subject.until).chain(self.newborn.until()).min();
            let look = Instant::now() + LOOK;
            let next = timeout_at(until.map_or(look, |until| until.min(look)), self.events.recv()).await;
            match next {
                Ok(Some((id, event))) => self.take_note(id, event)?,
                Ok(None) => {
                    return Err(one(refusal("the checkpoint", "was given up", "take another one")).into());
                }
                Err(_) => {
                    self.newborn.leave_commands();
                    if let Some(subject) = self.came_to_a_stop() {
                        let reason = "was stopped by a signal while it was checkpointed";
                        return Err(Failure::Again(refusal(
                            &subject.name,
                            reason,
                            "take another checkpoint",
                        )));
                    }
                    let overdue = self.overdue();
                    if !overdue.is_empty() {
                        return Err(overdue.into());
                    }
                }
            }
        }
    }

    /// The pids here of the newcomers that have not left.
    fn newcomers_there(&self) -> Vec<u32> {
        self.computation.with_members(|members| {
            let there = self.newcomers.iter().filter(|newcomer| members.contains_key(&newcomer.id));
            there.map(|newcomer| newcomer.real_pid).collect()
        })
    }

    async fn ask_newcomers(&mut self) -> Result<(), Failure> {
        if self.alone {
            return Ok(());
        }
        let mut newcomers = std::mem::take(&mut self.newcomers);
        newcomers.retain(|newcomer| !self.subjects.contains_key(&newcomer.id));
        let with_pids: Vec<(MemberId, u32)> =
            newcomers.iter().map(|newcomer| (newcomer.id, newcomer.real_pid)).collect();
        let mut lent = self
            .lender
            .lend(self.computation, &with_pids)
            .await
            .map_err(|reason| one(store_refusal(self.computation, reason)))?;
        for &(id, _) in &with_pids {
            self.ask(id, false, lent.remove(&id)).map_err(one)?;
        }
        for Newcomer { real_pid, name, pidfd, .. } in newcomers {
            // It has left meanwhile, and its connection may have closed before its end: until then its parent has it neither as a
            // process nor as one that has ended. Where it has come back under another program, that was asked.
            let is_asked = self.subjects.values().any(|subject| subject.real_pid == real_pid);
            if !is_asked && !pidfd.has_ended() {
                self.newborn.await_program(real_pid, &name, pidfd, &self.sender);
            }
        }
        Ok(())
    }

    /// A process that will not get on before somebody continues it. Another round does, as it does with those that stood
    /// stopped before.
    fn came_to_a_stop(&self) -> Option<&Subject> {
        let mut working = self.subjects.values().filter(|subject| self.is_working(subject));
        working.find(|subject| process::is_stopped(subject.real_pid))
    }

    /// Whether a process has something to do, rather than to wait for others.
    fn is_working(&self, subject: &Subject) -> bool {
        subject.step != Step::Dumped && (subject.step == Step::Asked || subject.step <= self.passed)
    }

    fn overdue(&mut self) -> Vec<Refusal> {
        let newborn = self.newborn.overdue();
        let now = Instant::now();
        let late = self.subjects.values().filter(|subject| self.is_working(subject) && subject.until <= now);
        late.map(|subject| overdue(subject, subject.phase)).chain(newborn).collect()
    }

    fn gathered(&mut self) -> Gathered {
        let mut subjects: Vec<&Subject> = self.subjects.values().collect();
        subjects.sort_by_key(|subject| subject.rank);
        let dumps = subjects.into_iter().filter_map(|subject| subject.dump.clone()).collect();
        let (shared, outside) = (std::mem::take(&mut self.shared), std::mem::take(&mut self.outside));
        Gathered { dumps, shared, outside }
    }

    fn take_note(&mut self, id: MemberId, event: Event) -> Result<(), Failure> {
        let said = match event {
            Event::Joined => return self.joined(id),
            Event::Ended(real_pid) => {
                self.newborn.settle(real_pid);
                return Ok(());
            }
            Event::Gone => return self.left(id),
            Event::Said(said) => said,
        };
        let Some(subject) = self.subjects.get_mut(&id) else { return Ok(()) };
        match said {
            FromProcess::Phase { phase, .. } => {
                subject.phase = Some(phase);
                subject.until = Instant::now() + allowance(self.computation, phase, subject.real_pid);
            }
            FromProcess::Ready { ends, objects, children, receives, .. } => {
                (subject.ends, subject.objects, subject.receives) = (Some(ends), objects, receives);
                self.reach(id, Step::Ready, !children.is_empty())?;
            }
            FromProcess::Stopped { children, late, .. } => {
                if let Some((ends, objects, receives)) = late {
                    (subject.ends, subject.objects, subject.receives) = (Some(ends), objects, receives);
                }
                self.reach(id, Step::Stopped, !children.is_empty())?;
            }
            FromProcess::Captured { ends, sharable, objects, uncopied, received, .. } => {
                (subject.ends, subject.sharable, subject.objects) = (Some(ends), sharable, objects);
                (subject.uncopied, subject.received) = (uncopied, received);
                self.reach(id, Step::Captured, false)?;
            }
            FromProcess::Refused { refusals, .. } if refusals.is_empty() => {
                let refusal = refusal(&subject.name, "refused without a reason", "see its own output");
                return Err(one(refusal).into());
            }
            FromProcess::Refused { refusals, .. } if refusals.iter().all(Refusal::passes) => {
                return Err(Failure::Passing(refusals));
            }
            FromProcess::Refused { refusals, .. } => return Err(refusals.into()),
            FromProcess::Parting => {}
            FromProcess::Dumped { manifest, stats, pause_us, tracker, .. } => {
                let (pid, command) = (subject.pid, subject.command.clone());
                let entry = ProcessEntry { pid, command, manifest, stats, tracker };
                subject.dump = Some(ProcessDump { entry, pause_us });
                subject.step = Step::Dumped;
                if self.alone {
                    return self.end_alone(id);
                }
            }
        }
        Ok(())
    }

    /// The only process has done all steps by itself. Children that it has now were made after it stood still, or it would have
    /// said that it has some; of all others nobody knows.
    fn end_alone(&mut self, id: MemberId) -> Result<(), Failure> {
        let Some(subject) = self.subjects.get(&id) else { return Ok(()) };
        let joined = self.newcomers_there();
        let born = self.computation.births().into_iter().filter_map(|pid| self.computation.real_pid(pid));
        let mut others = joined.into_iter().chain(born).filter(|&other| other != subject.real_pid);
        if others.any(|other| process::parent(other).is_some_and(|parent| parent != subject.real_pid)) {
            let reason = "was copied by itself while another process joined";
            return Err(Failure::NotAlone(refusal(&subject.name, reason, "take another checkpoint")));
        }
        self.newcomers.clear();
        self.alone = false;
        self.passed = Step::Captured;
        Ok(())
    }

    /// Takes note of a step that a process has done; one that is behind the others is told to go on at once.
    fn reach(&mut self, id: MemberId, step: Step, has_children: bool) -> Result<(), Failure> {
        let Some(subject) = self.subjects.get_mut(&id) else { return Ok(()) };
        subject.step = step;
        self.alone = false;
        if has_children {
            let (real_pid, name) = (subject.real_pid, subject.name.clone());
            let mut members: Vec<u32> = self.subjects.values().map(|subject| subject.real_pid).collect();
            // They are asked next.
            members.extend(self.newcomers_there());
            let is_known = |child| members.contains(&child);
            self.newborn.await_children((real_pid, &name), is_known, &self.sender);
        }
        if step <= self.passed { self.tell(id, step) } else { Ok(()) }
    }

    /// Goes on where all have done a step and nobody is missing.
    fn pass(&mut self) -> Result<(), Failure> {
        loop {
            let next = match self.passed {
                Step::Asked => Step::Ready,
                Step::Ready => Step::Stopped,
                Step::Stopped => Step::Captured,
                Step::Captured | Step::Dumped => return Ok(()),
            };
            let all = self.subjects.values().all(|subject| subject.step >= next);
            // Before ends are compared, and again when nobody can make more.
            if all && matches!(next, Step::Ready | Step::Stopped) {
                self.await_orphans();
            }
            if !all || !self.newborn.is_empty() || self.subjects.is_empty() {
                return Ok(());
            }
            match next {
                Step::Ready => self.foresee_ends()?,
                Step::Stopped => self.share_out(),
                Step::Captured => {
                    self.check_ends()?;
                    self.check_objects()?;
                    self.shared = self.find_shared();
                }
                Step::Asked | Step::Dumped => {}
            }
            self.passed = next;
            let waiting: Vec<MemberId> =
                self.subjects.iter().filter(|(_, subject)| subject.step == next).map(|(id, _)| *id).collect();
            for id in waiting {
                self.tell(id, next)?;
            }
        }
    }

    /// Children whose parents have ended since are in no list but that of births.
    fn await_orphans(&mut self) {
        for pid in self.computation.births() {
            let known = self.subjects.values().any(|subject| subject.pid == pid);
            match self.computation.real_pid(pid).filter(|_| !known) {
                Some(real_pid) if self.newborn.await_orphan(real_pid, &self.sender) => {}
                _ => self.computation.forget_birth(pid),
            }
        }
    }

    /// Tells a process to go on from a step.
    fn tell(&mut self, id: MemberId, step: Step) -> Result<(), Failure> {
        let Some(subject) = self.subjects.get_mut(&id) else { return Ok(()) };
        let token = self.question.token;
        let (message, phase) = match step {
            Step::Ready => (ToProcess::Stop { token }, Phase::Quiescing),
            Step::Stopped => {
                let (mut elsewhere, present) = (subject.elsewhere.clone(), subject.present.clone());
                elsewhere.extend(&subject.foreign);
                elsewhere.sort_unstable();
                (ToProcess::Capture { token, elsewhere, present }, Phase::Snapshotting)
            }
            Step::Captured => (ToProcess::Resume { token }, Phase::Storing),
            Step::Asked | Step::Dumped => return Ok(()),
        };
        subject.until = Instant::now() + allowance(self.computation, phase, subject.real_pid);
        let sent =
            self.computation.with_members(|members| members.get(&id).map(|member| member.send(&message)));
        match sent {
            // It is about to be seen to have gone.
            None | Some(Ok(())) => Ok(()),
            Some(Err(reason)) => {
                let refusal = refusal(&subject.name, reason, "end it, or checkpoint again");
                Err(one(refusal).into())
            }
        }
    }

    /// While they run: connections come and go between one's look and another's. What seems to lead outside twice does; what
    /// still changes is looked at again when all stand still.
    fn foresee_ends(&mut self) -> Result<(), Failure> {
        if self.receives() {
            // What is on its way is looked at when all stand still.
            return Ok(());
        }
        let ends = self.subjects.values().flat_map(|subject| subject.ends.iter().flatten());
        let found: Suspects = together::alone(ends, self.question.outside)
            .map(|(end, refusal)| ((end.has, end.wants), refusal))
            .collect();
        let known = self.suspects.replace(found.clone());
        let first = found.values().next().cloned();
        match (known, first) {
            (None, Some(refusal)) => Err(Failure::Again(refusal)),
            (Some(known), Some(_)) => {
                let still = found.into_iter().filter(|(end, _)| known.contains_key(end));
                let refusals: Vec<Refusal> = still.map(|(_, refusal)| refusal).collect();
                if refusals.is_empty() { Ok(()) } else { Err(refusals.into()) }
            }
            (_, None) => Ok(()),
        }
    }

    /// Where all have told theirs.
    fn check_ends(&mut self) -> Result<(), Failure> {
        if self.subjects.values().any(|subject| subject.ends.is_none() && subject.step != Step::Dumped) {
            return Ok(());
        }
        let ends = self.subjects.values().flat_map(|subject| subject.ends.iter().flatten());
        let (refusals, reset) = together::outside(ends, self.question.outside);
        self.outside = reset;
        if refusals.is_empty() { Ok(()) } else { Err(refusals.into()) }
    }

    /// Decides who copies what several have.
    fn share_out(&mut self) {
        let elsewhere = together::elsewhere(self.subjects.values().map(|subject| &subject.objects[..]));
        let here = self.present_ends();
        let all: BTreeSet<u64> = match self.receives() {
            true => self.subjects.values().flat_map(|subject| subject.objects.iter().copied()).collect(),
            false => BTreeSet::new(),
        };
        for (subject, elsewhere) in self.subjects.values_mut().zip(elsewhere) {
            if subject.receives {
                let own: BTreeSet<u64> = subject.objects.iter().copied().collect();
                subject.foreign = all.difference(&own).copied().collect();
            }
            subject.elsewhere = elsewhere;
            let wanted = subject.ends.iter().flatten().map(|end| end.wants);
            subject.present = wanted.filter(|end| here.contains(end)).collect();
            subject.present.sort_unstable();
        }
    }

    /// Whether descriptors are on their way between processes.
    fn receives(&self) -> bool {
        self.subjects.values().any(|subject| subject.receives)
    }

    /// The ends that all have told of.
    fn present_ends(&self) -> BTreeSet<u64> {
        self.subjects.values().flat_map(|subject| subject.ends.iter().flatten()).map(|end| end.has).collect()
    }

    /// Whoever was to copy something may have let go of it just before it stopped.
    fn check_objects(&self) -> Result<(), Failure> {
        let mut copied: BTreeSet<u64> =
            self.subjects.values().flat_map(|subject| subject.objects.iter().copied()).collect();
        let here = self.present_ends();
        for subject in self.subjects.values() {
            for (pty, other_side) in &subject.uncopied {
                if !here.contains(other_side) {
                    // Of one whose other side nobody has opened yet, nothing is to be copied.
                    copied.insert(*pty);
                } else if !copied.contains(pty) {
                    let reason = "has opened a pseudo-terminal just before it stopped";
                    return Err(Failure::Again(refusal(&subject.name, reason, "take another checkpoint")));
                }
            }
        }
        let again = |subject: &Subject, reason| {
            Err(Failure::Again(refusal(&subject.name, reason, "take another checkpoint")))
        };
        for subject in self.subjects.values() {
            if subject.elsewhere.iter().any(|key| !copied.contains(key)) {
                return again(subject, "shares memory that another process has just let go of");
            }
            if subject.received.iter().any(|(key, _)| !copied.contains(key)) {
                return again(subject, "is sent a socket that another process has just let go of");
            }
        }
        // Two that look at one queue at once disturb each other.
        for (id, subject) in &self.subjects {
            let others = || self.subjects.iter().filter(|(other, _)| *other != id);
            let is_anothers = |key| others().any(|(_, other)| other.objects.contains(key));
            if subject.received.iter().any(|(key, copied)| *copied && is_anothers(key)) {
                return again(subject, "is sent a socket that another process has got meanwhile");
            }
        }
        Ok(())
    }

    fn find_shared(&self) -> Vec<Vec<SharedDescriptor>> {
        let mut holders: Vec<&Subject> = self.subjects.values().collect();
        holders.sort_by_key(|subject| subject.rank);
        let holders: Vec<Holder<'_>> = holders
            .into_iter()
            .map(|subject| Holder {
                pid: subject.pid,
                real_pid: subject.real_pid,
                sharable: &subject.sharable,
            })
            .collect();
        together::shared(&holders)
    }

    fn joined(&mut self, id: MemberId) -> Result<(), Failure> {
        if self.subjects.contains_key(&id) {
            return Ok(());
        }
        let newcomer = self.computation.with_members(|members| {
            let member = members.get(&id)?;
            let (real_pid, name, pidfd) = (member.real_pid, member.name(), Rc::clone(&member.pidfd));
            Some(Newcomer { id, real_pid, name, pidfd })
        });
        let Some(newcomer) = newcomer else { return Ok(()) };
        if self.passed == Step::Captured {
            // Made since the others went on.
            return Ok(());
        }
        if self.passed == Step::Stopped {
            let reason = "joined while the others stood still";
            return Err(Failure::Again(refusal(newcomer.name, reason, "take another checkpoint")));
        }
        self.newcomers.push(newcomer);
        Ok(())
    }

    fn left(&mut self, id: MemberId) -> Result<(), Failure> {
        let Some(subject) = self.subjects.get(&id) else { return Ok(()) };
        if self.passed >= Step::Stopped && subject.step != Step::Dumped {
            let refusal = gone(subject, subject.phase);
            // It was killed, which the others may take for what has happened before the next round.
            return Err(if subject.pidfd.has_ended() || process::is_ending(subject.real_pid) {
                Failure::Again(refusal)
            } else {
                one(refusal).into()
            });
        }
        if subject.step == Step::Dumped {
            // What it was is in the store.
            return Ok(());
        }
        self.alone = false;
        // Its connection may be seen to close before its end.
        self.ended = Some(gone(subject, subject.phase));
        if !subject.pidfd.has_ended() {
            let (real_pid, name, pidfd) = (subject.real_pid, subject.name.clone(), Rc::clone(&subject.pidfd));
            self.subjects.remove(&id);
            // It may be back already: then it must not be missed.
            let back = self.computation.with_members(|members| {
                members.iter().find(|(_, member)| member.real_pid == real_pid).map(|(id, _)| *id)
            });
            match back {
                Some(back) => return self.joined(back),
                None => self.newborn.await_program(real_pid, &name, pidfd, &self.sender),
            }
        }
        self.subjects.remove(&id);
        Ok(())
    }
}

fn subject(member: &Member, was_stopped: bool) -> Subject {
    Subject {
        pid: member.pid,
        real_pid: member.real_pid,
        command: member.command.clone(),
        name: member.name(),
        pidfd: Rc::clone(&member.pidfd),
        was_stopped,
        rank: member.rank,
        step: Step::Asked,
        phase: None,
        until: Instant::now(),
        ends: None,
        objects: Vec::new(),
        elsewhere: Vec::new(),
        receives: false,
        foreign: Vec::new(),
        received: Vec::new(),
        present: Vec::new(),
        uncopied: Vec::new(),
        sharable: Vec::new(),
        dump: None,
    }
}
