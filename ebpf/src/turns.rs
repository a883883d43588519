//! Ids that are asked for, by the one counter from which the whole machine gets its ids: who asks has it in turns.
//!
//! A turn is from [`Request::NextPid`](stasis_protocol::tracer::Request::NextPid) until its asker says that it has made its
//! process, or is gone, or [`TURN_MS`] have passed, and then the counter goes on where it was. Who
//! asks meanwhile waits; users have turns alternately, however many connections one has, and are charged for the time:
//! what others make meanwhile has ids from there, too.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use stasis_protocol::tracer::{Reply, TURN_MS};

use crate::answer::refused;

const TURN: Duration = Duration::from_millis(TURN_MS);

/// Low ids are the system's own; with 300 the kernel begins again (kernel/pid.c, RESERVED_PIDS).
const FIRST: u32 = 300;
/// Above all ids (include/linux/threads.h, PID_MAX_LIMIT).
const LIMIT: u32 = 1 << 22;

/// Who asks: the connection, and its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub client: u64,
    pub uid: u32,
}

/// What is asked for: see [`stasis_protocol::tracer::Request`].
pub enum Wish {
    NextPid(u32),
    GoOn(u32),
}

/// What the ids of the machine are counted by.
pub trait Counter {
    /// The id that was given last, or is to count as it.
    fn last(&self) -> Option<u32>;
    /// # Errors
    /// write(2)'s.
    fn set_last(&self, id: u32) -> std::io::Result<()>;
    fn is_in_use(&self, id: u32) -> bool;
}

/// /proc/sys/kernel/ns_last_pid: the service may write it as long as it has CAP_CHECKPOINT_RESTORE (Linux 5.9).
impl Counter for File {
    fn last(&self) -> Option<u32> {
        let mut text = [0; 16];
        let len = self.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(text.get(..len)?).ok()?.trim().parse().ok()
    }

    fn set_last(&self, id: u32) -> std::io::Result<()> {
        self.write_all_at(id.to_string().as_bytes(), 0)
    }

    fn is_in_use(&self, id: u32) -> bool {
        // Threads are there, too, though not listed.
        Path::new(&format!("/proc/{id}")).exists()
    }
}

struct Turn {
    asker: Asker,
    /// Where the counter was.
    before: u32,
    since: Instant,
}

pub struct Turns<C> {
    counter: Option<C>,
    turn: Option<Turn>,
    /// One for each connection at most, since its further requests are not looked at before this one has its answer.
    waiting: Vec<(Asker, u32)>,
    /// When each user had the last turn, as long as anybody waits.
    last: HashMap<u32, Instant>,
    /// Which users have had turns, and for how long; taken by who charges them.
    pub had: Vec<(u32, Duration)>,
}

impl<C: Counter> Turns<C> {
    /// Without a counter no id is given.
    pub fn new(counter: Option<C>) -> Self {
        Self { counter, turn: None, waiting: Vec::new(), last: HashMap::new(), had: Vec::new() }
    }

    /// Whether ids are given at all.
    ///
    /// # Errors
    /// The refusal.
    fn check(&self) -> Result<(), Reply> {
        match self.counter {
            Some(_) => Ok(()),
            None => Err(refused(
                "a pid",
                "none are given by this tracer",
                "its administrator started it with --no-pids, or it lacks CAP_CHECKPOINT_RESTORE",
            )),
        }
    }

    /// `None`: the asker waits for its turn, and [`Turns::advance`] answers.
    pub fn answer(&mut self, asker: Asker, wish: &Wish, now: Instant) -> Option<Reply> {
        match *wish {
            Wish::NextPid(id) => self.ask(asker, id, now),
            Wish::GoOn(after) => Some(self.go_on(asker, after, now)),
        }
    }

    /// Has this id given next, in the asker's turn.
    fn ask(&mut self, asker: Asker, id: u32, now: Instant) -> Option<Reply> {
        if self.turn.as_ref().is_some_and(|turn| turn.asker != asker) {
            self.waiting.push((asker, id));
            return None;
        }
        Some(self.begin(asker, id, now))
    }

    fn begin(&mut self, asker: Asker, id: u32, now: Instant) -> Reply {
        let what = format!("pid {id}");
        let Some(counter) = &self.counter else { return self.check().err().unwrap_or(Reply::Done) };
        if !(FIRST..LIMIT).contains(&id) {
            return refused(what, "is not for programs", "let the kernel choose");
        }
        if counter.is_in_use(id) {
            return refused(what, "is in use", "end it, or let the kernel choose");
        }
        // A turn does not become longer by being asked for again.
        let (before, since) = match &self.turn {
            Some(turn) => (Some(turn.before), turn.since),
            None => (counter.last(), now),
        };
        let Some(before) = before else {
            return refused(what, "ns_last_pid cannot be read", "see the tracer's log");
        };
        match counter.set_last(id - 1) {
            Ok(()) => {
                self.turn = Some(Turn { asker, before, since });
                self.last.insert(asker.uid, now);
                Reply::Done
            }
            Err(error) => refused(what, format!("ns_last_pid: {error}"), "see `stasis doctor`"),
        }
    }

    /// The asker's turn is over, if it has one; ids go on after this one at least.
    fn go_on(&mut self, asker: Asker, after: u32, now: Instant) -> Reply {
        if let Err(refusal) = self.check() {
            return refusal;
        }
        if self.turn.as_ref().is_some_and(|turn| turn.asker == asker) {
            self.end(now);
        }
        if let Some(counter) = &self.counter
            && after < LIMIT
            && self.turn.is_none()
            && counter.last().is_some_and(|last| last < after)
        {
            // A restart does that once, and it stays: the price is that of the longest turn.
            self.had.push((asker.uid, TURN));
            if let Err(error) = counter.set_last(after) {
                return refused(
                    format!("pid {after}"),
                    format!("ns_last_pid: {error}"),
                    "see `stasis doctor`",
                );
            }
        }
        Reply::Done
    }

    fn end(&mut self, now: Instant) {
        if let Some((turn, counter)) = self.turn.take().zip(self.counter.as_ref()) {
            self.had.push((turn.asker.uid, now.saturating_duration_since(turn.since)));
            // Nothing is lost if that fails: ids are given once, wherever the counter is.
            let _ = counter.set_last(turn.before);
        }
    }

    /// Forgets a connection that is gone.
    pub fn forget(&mut self, client: u64, now: Instant) {
        self.waiting.retain(|(asker, _)| asker.client != client);
        if self.turn.as_ref().is_some_and(|turn| turn.asker.client == client) {
            self.end(now);
        }
    }

    /// When there is something to be done.
    pub fn deadline(&self) -> Option<Instant> {
        self.turn.as_ref().map(|turn| turn.since + TURN)
    }

    /// Ends a turn that has taken too long, and gives the next: the answers for those who have waited.
    pub fn advance(&mut self, now: Instant) -> Vec<(Asker, Reply)> {
        if self.deadline().is_some_and(|at| at <= now) {
            self.end(now);
        }
        let mut answers = Vec::new();
        while self.turn.is_none() {
            // Whose user's last turn was longest ago; of those the first.
            let first = (0..self.waiting.len()).min_by_key(|&at| self.last.get(&self.waiting[at].0.uid));
            let Some(first) = first else { break };
            let (asker, id) = self.waiting.remove(first);
            answers.push((asker, self.begin(asker, id, now)));
        }
        if self.turn.is_none() {
            self.last.clear();
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io};

    use super::*;

    #[derive(Default)]
    struct Number(Cell<u32>);

    impl Counter for &Number {
        fn last(&self) -> Option<u32> {
            Some(self.0.get())
        }

        fn set_last(&self, id: u32) -> io::Result<()> {
            self.0.set(id);
            Ok(())
        }

        fn is_in_use(&self, id: u32) -> bool {
            id == 5000
        }
    }

    const A: Asker = Asker { client: 1, uid: 1 };
    const B: Asker = Asker { client: 2, uid: 2 };

    #[test]
    fn the_counter_goes_on_where_it_was() {
        let (number, now) = (Number(Cell::new(9000)), Instant::now());
        let mut turns = Turns::new(Some(&number));
        assert_eq!(turns.ask(A, 700, now), Some(Reply::Done));
        assert_eq!(number.0.get(), 699);
        assert_eq!(turns.ask(A, 800, now), Some(Reply::Done), "it has the turn");
        assert_eq!(turns.go_on(A, 0, now), Reply::Done);
        assert_eq!(number.0.get(), 9000);
        // Forward only, and by who has a turn, or nobody.
        turns.had.clear();
        assert_eq!((turns.go_on(A, 9500, now), number.0.get()), (Reply::Done, 9500));
        assert_eq!(turns.had, [(A.uid, TURN)]);
        assert_eq!((turns.go_on(A, 300, now), number.0.get()), (Reply::Done, 9500));
        assert_eq!(turns.ask(A, 700, now), Some(Reply::Done));
        assert_eq!((turns.go_on(B, 9800, now), number.0.get()), (Reply::Done, 699));
        turns.forget(A.client, now);
        assert_eq!(number.0.get(), 9500);
    }

    #[test]
    fn what_is_in_use_or_the_system_s_is_refused_and_leaves_the_counter_alone() {
        let (number, now) = (Number(Cell::new(9000)), Instant::now());
        let mut turns = Turns::new(Some(&number));
        for id in [0, 1, 299, 5000, 1 << 22, u32::MAX] {
            assert!(matches!(turns.ask(A, id, now), Some(Reply::Refused(_))), "{id}");
        }
        assert_eq!((number.0.get(), turns.deadline()), (9000, None));
        assert!(matches!(Turns::<&Number>::new(None).ask(A, 700, now), Some(Reply::Refused(_))));
    }

    #[test]
    fn who_never_ends_a_turn_loses_it() {
        let (number, now) = (Number(Cell::new(9000)), Instant::now());
        let mut turns = Turns::new(Some(&number));
        assert_eq!(turns.ask(A, 700, now), Some(Reply::Done));
        assert_eq!(turns.ask(B, 800, now), None);
        assert_eq!(turns.ask(A, 700, now + TURN / 2), Some(Reply::Done), "and that makes it no longer");
        assert_eq!((turns.advance(now + TURN / 2), turns.had.len()), (Vec::new(), 0));
        let answers = turns.advance(now + TURN);
        assert_eq!((answers, &turns.had), (vec![(B, Reply::Done)], &vec![(A.uid, TURN)]));
        assert_eq!(number.0.get(), 799);
        assert_eq!(turns.go_on(A, 0, now), Reply::Done);
        assert_eq!(number.0.get(), 799, "it is another's turn");
        assert_eq!(turns.go_on(B, 0, now), Reply::Done);
        assert_eq!(number.0.get(), 9000);
    }

    #[test]
    fn a_user_with_many_connections_has_every_other_turn() {
        let (number, now) = (Number(Cell::new(9000)), Instant::now());
        let mut turns = Turns::new(Some(&number));
        assert_eq!(turns.ask(A, 700, now), Some(Reply::Done));
        for client in 10..70 {
            assert_eq!(turns.ask(Asker { client, uid: A.uid }, 700, now), None);
        }
        assert_eq!(turns.ask(B, 800, now), None);
        turns.go_on(A, 0, now);
        let answers = turns.advance(now + Duration::from_millis(1));
        assert_eq!(answers, [(B, Reply::Done)]);
    }
}
