//! The service's loop: new connections, requests, events. One thread; whatever a client does, the others are served in
//! their turn.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    time::{Duration, Instant},
};

use nix::sys::signalfd::SignalFd;
use stasis_events::Counter;
use stasis_protocol::{
    tracer::{self, Event, Reply, Request, What},
    wire,
};

use crate::{
    answer::{self, Answer, Asker},
    client::Client,
    events,
    programs::Loaded,
    turns::{self, Turns, Wish},
    users::{self, Users},
    values::text,
};

/// How long records gather in the ring buffer once the first has come: a wake-up for each would cost the program that
/// forks more than all else.
const GATHER: Duration = Duration::from_millis(5);

/// How long a client may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// Connections that are taken in a round, so that somebody who does nothing but connect does not keep the others
/// waiting.
const ACCEPTED: usize = 16;
/// On the whole machine.
const CLIENTS: usize = 1000;

/// What the service was started with, and may hand out.
pub struct Settings {
    /// Tracked processes of one user.
    pub limit: u64,
    pub userfaultfd: Option<OwnedFd>,
}

pub struct Server {
    listener: UnixListener,
    signals: SignalFd,
    loaded: Loaded,
    settings: Settings,
    turns: Turns<File>,
    clients: BTreeMap<u64, Client>,
    next: u64,
    users: Users,
    /// When the ring buffer is to be read.
    drain_at: Option<Instant>,
    dropped: u64,
    untracked: u64,
}

impl Server {
    /// `last_pid`: /proc/sys/kernel/ns_last_pid, where ids are given.
    pub fn new(
        listener: UnixListener,
        signals: SignalFd,
        loaded: Loaded,
        settings: Settings,
        last_pid: Option<File>,
    ) -> Self {
        let (dropped, untracked) = (loaded.counter(Counter::Dropped), loaded.counter(Counter::Untracked));
        Self {
            listener,
            signals,
            loaded,
            settings,
            turns: Turns::new(last_pid),
            clients: BTreeMap::new(),
            next: 0,
            users: Users::default(),
            // What came while no service ran wakes nobody any more.
            drain_at: Some(Instant::now()),
            dropped,
            untracked,
        }
    }

    /// Serves until a signal says that it is to end: that signal's number.
    ///
    /// # Errors
    /// When there is nothing left to wait with.
    pub fn run(&mut self) -> io::Result<u32> {
        loop {
            let ready = self.wait()?;
            if ready.signal
                && let Some(signal) = self.signals.read_signal()?
            {
                return Ok(signal.ssi_signo);
            }
            let now = Instant::now();
            if ready.ring && self.drain_at.is_none() {
                self.drain_at = Some(now + GATHER);
            }
            if self.drain_at.is_some_and(|at| at <= now) {
                self.drain_at = None;
                self.drain();
            }
            if ready.listener {
                self.accept(now);
            }
            for (id, hung_up) in ready.clients {
                let Some(client) = self.clients.get_mut(&id) else { continue };
                if Self::is_listened_to(client) {
                    client.ended |= client.receive().is_err();
                } else {
                    client.ended |= hung_up;
                }
            }
            self.serve(now);
            self.part(now);
            self.give_turns(now);
        }
    }

    /// Whether a request is to be looked at now.
    fn is_due(client: &Client, now: Instant) -> bool {
        !client.ended
            && !client.waits
            && client.watches.is_none()
            && client.is_flushed()
            && client.not_before.is_none_or(|at| at <= now)
            && client.has_request().unwrap_or(true)
    }

    /// One that has not read its answers, or has no credit, is not.
    fn is_listened_to(client: &Client) -> bool {
        client.is_flushed() && !client.waits && client.watches.is_none() && client.not_before.is_none()
    }

    fn wait(&self) -> io::Result<Ready> {
        let now = Instant::now();
        let mut deadline = match (self.drain_at, self.turns.deadline()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let mut sooner = |at: Instant| deadline = Some(deadline.map_or(at, |deadline| deadline.min(at)));
        for client in self.clients.values() {
            if Self::is_due(client, now) {
                sooner(now);
            }
            if let Some(at) = client.not_before {
                sooner(at);
            }
            if !client.greeted {
                sooner(client.since + HELLO);
            }
        }
        let timeout = deadline.map_or(-1, |at| {
            // Rounded up: waking before the time would spin.
            at.saturating_duration_since(now).as_micros().div_ceil(1000).min(60_000) as libc::c_int
        });
        let ring = if self.drain_at.is_none() { libc::POLLIN } else { 0 };
        let listen = if self.clients.len() < CLIENTS { libc::POLLIN } else { 0 };
        let mut events = vec![
            awaited(&self.signals, libc::POLLIN),
            awaited(&self.listener, listen),
            awaited(&self.loaded.events, ring),
        ];
        for client in self.clients.values() {
            let mut flags = libc::POLLRDHUP;
            if Self::is_listened_to(client) {
                flags |= libc::POLLIN;
            }
            if !client.is_flushed() {
                flags |= libc::POLLOUT;
            }
            events.push(awaited(client, flags));
        }
        // nix knows no POLLRDHUP, and tells nothing of a descriptor that has it.
        // SAFETY: an array of as many entries, whose descriptors stay open meanwhile.
        if unsafe { libc::poll(events.as_mut_ptr(), events.len() as libc::nfds_t, timeout) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(Ready::default())
            } else {
                Err(error)
            };
        }
        let ends = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
        let clients = self.clients.keys().zip(&events[3..]).filter(|(_, event)| event.revents != 0);
        Ok(Ready {
            signal: events[0].revents != 0,
            listener: events[1].revents != 0,
            ring: events[2].revents != 0,
            clients: clients.map(|(id, event)| (*id, event.revents & ends != 0)).collect(),
        })
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTED {
            let Ok((stream, _)) = self.listener.accept() else { return };
            let Ok(mut client) = Client::new(stream, now) else { continue };
            if !self.users.connect(client.uid, now) {
                let reason = answer::refused(
                    format!("uid {}", client.uid),
                    "has too many connections to the tracer",
                    "close some",
                );
                if let Ok(frame) = wire::frame(&reason) {
                    client.queue(&frame);
                    let _ = client.flush();
                }
                continue;
            }
            self.clients.insert(self.next, client);
            self.next += 1;
        }
    }

    /// One request of every client that has one, and whatever is to be sent.
    fn serve(&mut self, now: Instant) {
        for (&id, client) in &mut self.clients {
            if client.not_before.is_some_and(|at| at <= now) {
                client.not_before = None;
            }
            if client.has_request().is_err() {
                client.ended = true;
            }
            if Self::is_due(client, now) {
                match self.users.spend(client.uid, now) {
                    Ok(()) => {
                        let carried_out = match carry_out(client, &mut self.loaded, &self.settings) {
                            Ok(Some(wish)) => {
                                self.users.give_back(client.uid, users::CHEAP);
                                let asker = turns::Asker { client: id, uid: client.uid };
                                let answer = self.turns.answer(asker, &wish, now);
                                client.waits = answer.is_none();
                                answer.map_or(Ok(()), |answer| reply(client, &answer))
                            }
                            carried_out => carried_out.map(drop),
                        };
                        client.ended |= carried_out.is_err();
                    }
                    Err(wait) => client.not_before = Some(now + wait),
                }
            }
            if client.flush().is_err() {
                client.ended = true;
            }
        }
    }

    fn part(&mut self, now: Instant) {
        let Self { clients, users, turns, .. } = self;
        clients.retain(|&id, client| {
            let late = !client.greeted && client.since + HELLO <= now;
            let stays = !client.ended && !late;
            if !stays {
                users.disconnect(client.uid, now);
                turns.forget(id, now);
            }
            stays
        });
    }

    /// Ends a turn that has taken too long, and answers those who have one now.
    fn give_turns(&mut self, now: Instant) {
        let answers = self.turns.advance(now);
        for (uid, time) in self.turns.had.drain(..) {
            self.users.charge(uid, time);
        }
        for (asker, answer) in answers {
            let Some(client) = self.clients.get_mut(&asker.client) else { continue };
            client.waits = false;
            client.ended |= reply(client, &answer).and_then(|()| client.flush()).is_err();
        }
    }

    /// Reads the ring buffer and tells the watchers.
    fn drain(&mut self) {
        let Self { loaded, clients, .. } = self;
        let watched = clients.values().any(|client| client.watches.is_some());
        while let Some(record) = loaded.events.next() {
            if watched && let Some(event) = events::event(&record) {
                tell(clients.values_mut(), &event);
            }
        }
        let (dropped, untracked) =
            (self.loaded.counter(Counter::Dropped), self.loaded.counter(Counter::Untracked));
        if dropped != self.dropped || untracked != self.untracked {
            let lost = dropped.saturating_sub(self.dropped);
            (self.dropped, self.untracked) = (dropped, untracked);
            self.make_good(lost);
        }
    }

    /// After records were dropped: looks for all processes again, and tells watchers which there are.
    fn make_good(&mut self, lost: u64) {
        let Ok(tasks) = self.loaded.all_tasks() else { return };
        for client in self.clients.values_mut().filter(|client| client.watches.is_some()) {
            // Whose they were, nobody knows.
            let (uid, computation) = (client.uid, client.watches.flatten().unwrap_or(0));
            let note =
                Event { computation, owner: uid, time_ns: 0, pid: 0, what: What::Lost { events: lost } };
            tell(std::iter::once(&mut *client), &note);
            for task in &tasks {
                let what = What::Present { creator: task.creator, command: text(&task.comm) };
                let event = Event {
                    computation: task.computation,
                    owner: task.owner,
                    time_ns: task.start_ns,
                    pid: task.tgid,
                    what,
                };
                tell(std::iter::once(&mut *client), &event);
            }
        }
    }
}

#[derive(Default)]
struct Ready {
    signal: bool,
    listener: bool,
    ring: bool,
    /// Those of whom something came, and whether it was their end.
    clients: Vec<(u64, bool)>,
}

fn awaited(of: &impl AsFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: of.as_fd().as_raw_fd(), events, revents: 0 }
}

/// Queues an event for those who watch its computation and may.
fn tell<'a>(clients: impl Iterator<Item = &'a mut Client>, event: &Event) {
    let mut frame = None;
    for client in clients {
        let Some(wanted) = client.watches else { continue };
        if (client.uid != 0 && client.uid != event.owner)
            || wanted.is_some_and(|computation| computation != event.computation)
        {
            continue;
        }
        if !client.has_room() {
            client.lost += 1;
            continue;
        }
        if client.lost > 0 {
            let what = What::Lost { events: std::mem::take(&mut client.lost) };
            let note = Event { time_ns: event.time_ns, pid: 0, what, ..*event };
            if let Ok(frame) = wire::frame(&Reply::Event(note)) {
                client.queue(&frame);
            }
        }
        if frame.is_none() {
            frame = wire::frame(&Reply::Event(event.clone())).ok();
        }
        if let Some(frame) = &frame {
            client.queue(frame);
        }
    }
}

/// Carries out a client's next request; `Some`: what it asks for depends on whose turn it is.
fn carry_out(client: &mut Client, loaded: &mut Loaded, settings: &Settings) -> io::Result<Option<Wish>> {
    let (payload, beside) = client.take_request();
    if !client.greeted {
        wire::decode::<tracer::Hello>(&payload).map_err(io::Error::other)?;
        // One of another version learns ours, and goes.
        client.greeted = true;
        reply(client, &Reply::Hello { version: tracer::VERSION, pid: std::process::id() })?;
        return Ok(None);
    }
    let request: Request = wire::decode(&payload).map_err(io::Error::other)?;
    let asker = Asker { uid: client.uid, pid: client.pid, lives: client.lives() };
    match answer::answer(loaded, settings, &asker, request, beside) {
        Answer::Reply(answer) => reply(client, &answer)?,
        Answer::Watch(computation) => {
            // Records from before are not for it; they are few, or nobody was there to read them.
            client.watches = Some(computation);
            reply(client, &Reply::Done)?;
        }
        Answer::Userfaultfd => {
            let frame = wire::frame(&Reply::Done).map_err(io::Error::other)?;
            if let Some(device) = &settings.userfaultfd {
                client.send_beside(&frame, device.as_fd())?;
            }
        }
        Answer::InTurns(wish) => return Ok(Some(wish)),
    }
    Ok(None)
}

fn reply(client: &mut Client, reply: &Reply) -> io::Result<()> {
    client.queue(&wire::frame(reply).map_err(io::Error::other)?);
    Ok(())
}
