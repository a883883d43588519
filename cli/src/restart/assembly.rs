//! The processes are made, by those who must make them, each with its id; they take their places in sessions and process
//! groups, and go on together: those that have ended end again, the others become programs.
//!
//! All of them are `stasis restart` still, copied. If one fails it says why, and none goes on.

use std::{cell::Cell, collections::BTreeMap, os::fd::RawFd, ptr};

use anyhow::{Context as _, anyhow};
use nix::{
    errno::Errno,
    sys::wait::waitpid,
    unistd::{Pid, getpgrp, getppid, getsid, setpgid, setsid},
};

use super::{
    board::{Board, GivenUp, Stage},
    ids,
    namespace::{self, exit},
    report,
    terminal::{self, Controlling},
    tree::{Kind, Node, Tree},
};

/// What every process that is made knows.
pub struct Assembly<'a> {
    pub tree: &'a Tree,
    pub board: &'a Board,
    /// The number of the report pipe, as the process that becomes a program has it.
    pub report: &'a Cell<RawFd>,
    /// Whether each process of the checkpoint was a subreaper, by its place there.
    pub subreapers: Vec<bool>,
    /// The terminals of sessions, by their leaders; and whether each process of the checkpoint had the one of its session.
    pub terminals: BTreeMap<i32, Controlling>,
    pub has_terminal: Vec<bool>,
    /// The process whose group had the terminal outside.
    pub foreground: Option<usize>,
    /// Becomes a process of the checkpoint, by its place there; returns why not.
    pub become_program: &'a dyn Fn(usize) -> anyhow::Error,
}

/// Why a process does not go on.
enum Failed {
    /// Another one has said why.
    GivenUp,
    /// An id cannot be had here: perhaps elsewhere.
    Ids(anyhow::Error),
    Other(anyhow::Error),
}

impl From<GivenUp> for Failed {
    fn from(_: GivenUp) -> Self {
        Self::GivenUp
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl Assembly<'_> {
    /// Makes those at the top, which make the others; by `stasis restart`, or by init with the channel on which live processes
    /// say that they are there. A failure is told on the report pipe.
    pub fn start(&self, channel: Option<RawFd>) {
        self.told(0, self.make_all(&self.tree.top, channel));
    }

    fn told(&self, pid: i32, result: Result<(), Failed>) {
        match result {
            Ok(()) | Err(Failed::GivenUp) => return,
            Err(Failed::Ids(error)) => report::tell(self.report.get(), pid, &error, true),
            Err(Failed::Other(error)) => report::tell(self.report.get(), pid, &error, false),
        }
        self.board.give_up();
    }

    fn make_all(&self, nodes: &[usize], channel: Option<RawFd>) -> Result<(), Failed> {
        nodes.iter().try_for_each(|&at| self.make(at, channel))
    }

    fn make(&self, at: usize, channel: Option<RawFd>) -> Result<(), Failed> {
        let id = self.tree.nodes[at].id;
        match ids::make(0, id) {
            Ok(0) => {
                self.told(id, self.be(at, channel));
                exit()
            }
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM)) => {
                Err(anyhow::Error::from(error).context("no more processes can be made (ulimit -u)").into())
            }
            Err(error) => Err(Failed::Ids(anyhow::Error::from(error).context(format!("pid {id}")))),
        }
    }

    /// By a child that ends: whoever is to adopt it does.
    fn make_stray(&self, at: usize, channel: Option<RawFd>) -> Result<(), Failed> {
        let made = ids::make_any().context("no more processes can be made (ulimit -u)")?;
        if made == 0 {
            self.told(self.tree.nodes[at].id, self.make(at, channel));
            exit()
        }
        await_end(made);
        Ok(())
    }

    /// The life of a process that was just made. All signals are blocked.
    fn be(&self, at: usize, channel: Option<RawFd>) -> Result<(), Failed> {
        let node = &self.tree.nodes[at];
        if let Kind::Process(process) = node.kind {
            if self.subreapers[process] {
                become_subreaper();
            }
            if let Some(channel) = channel {
                namespace::say_made(channel, node.id);
            }
        }
        self.make_all(&node.before, channel)?;
        if node.leads_session {
            setsid().context("it cannot have a session")?;
            if let Some(controlling) = self.terminals.get(&node.id) {
                controlling.take().context("it cannot have its controlling terminal")?;
            }
        }
        self.make_all(&node.after, channel)?;
        node.strays.iter().try_for_each(|&stray| self.make_stray(stray, channel))?;
        self.board.meet(Stage::Made)?;
        let own = Pid::from_raw(node.id);
        if node.leads_group && getpgrp() != own {
            setpgid(own, own).context("it cannot lead a process group")?;
        }
        self.board.meet(Stage::Leads)?;
        if !node.moves() {
            join(node)?;
        }
        self.board.meet(Stage::Joined)?;
        if node.moves() {
            join(node)?;
        }
        self.verify(node)?;
        if let Some(controlling) = node.session.and_then(|session| self.terminals.get(&session)) {
            match node.kind {
                _ if node.leads_session => controlling.set_foreground(),
                Kind::Process(process) if !self.has_terminal[process] => controlling.leave(),
                _ => {}
            }
        }
        self.board.meet(Stage::Settled)?;
        match node.kind {
            Kind::Ghost => {
                // Whoever adopts its children is not to find one that it never had.
                self.await_ghosts(node);
                Ok(())
            }
            Kind::Zombie(status) => end_as(status),
            Kind::Process(process) => {
                self.collect(at);
                self.verify_parent(node)?;
                // Before anybody runs, who might give it to others.
                if self.foreground == Some(process) {
                    terminal::come_forward();
                }
                Err((self.become_program)(process).into())
            }
        }
    }

    /// Looks whether the process is where it belongs.
    fn verify(&self, node: &Node) -> anyhow::Result<()> {
        let session = getsid(None)?;
        if node.session.is_some_and(|wanted| session != Pid::from_raw(wanted)) {
            return Err(anyhow!("its session came to be {session}"));
        }
        let group = getpgrp();
        if node.group.is_some_and(|wanted| group != Pid::from_raw(wanted)) {
            return Err(anyhow!("its process group came to be {group}"));
        }
        Ok(())
    }

    /// The same of its parent, once the ghost or zombie has ended that may have made it.
    fn verify_parent(&self, node: &Node) -> anyhow::Result<()> {
        let ends = |parent: Pid| {
            let mut ending = self.tree.nodes.iter().filter(|other| !matches!(other.kind, Kind::Process(_)));
            ending.any(|other| other.id == parent.as_raw())
        };
        while ends(getppid()) {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        let parent = node.parent.map(|parent| self.tree.nodes[parent].id);
        if parent.is_some_and(|wanted| getppid() != Pid::from_raw(wanted)) {
            return Err(anyhow!("its parent came to be {}", getppid()));
        }
        Ok(())
    }

    fn await_ghosts(&self, node: &Node) {
        for made in node.before.iter().chain(&node.after).map(|&made| &self.tree.nodes[made]) {
            if made.kind == Kind::Ghost {
                await_end(made.id);
            }
        }
    }

    /// Waits for the ends of ghosts and zombies, and takes the signals that tell of them. Zombies remain.
    fn collect(&self, at: usize) {
        self.await_ghosts(&self.tree.nodes[at]);
        let zombies = self.tree.nodes.iter().filter(|other| other.parent == Some(at));
        // First those whose children are adopted when they have ended.
        let (makers, others): (Vec<_>, Vec<_>) = zombies.partition(|zombie| !zombie.after.is_empty());
        for zombie in makers.into_iter().chain(others) {
            if matches!(zombie.kind, Kind::Zombie(_)) {
                let flags = libc::WEXITED | libc::WNOWAIT;
                // SAFETY: no information is asked for.
                while unsafe { libc::waitid(libc::P_PID, zombie.id as u32, ptr::null_mut(), flags) } < 0
                    && Errno::last() == Errno::EINTR
                {}
            }
        }
        // SAFETY: both sets are plain data, initialized by sigemptyset(3); the time-out is a constant.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGCHLD);
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            while libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const now) > 0 {}
        }
    }
}

/// Adopts the orphans among its descendants (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn become_subreaper() {
    // SAFETY: prctl(2) with numbers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

fn join(node: &Node) -> anyhow::Result<()> {
    match node.group {
        Some(group) if getpgrp() != Pid::from_raw(group) => setpgid(Pid::from_raw(0), Pid::from_raw(group))
            .with_context(|| format!("it cannot join the process group {group}")),
        _ => Ok(()),
    }
}

fn await_end(child: i32) {
    while waitpid(Pid::from_raw(child), None) == Err(Errno::EINTR) {}
}

/// Ends with a status as waitpid(2) tells it; without a core dump.
fn end_as(status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the default action is sound for any signal; the set is initialized by sigfillset(3). A core dump by a
        // pipe has no limit: undumpable processes have none (core(5)).
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            libc::signal(signal, libc::SIG_DFL);
            libc::kill(libc::getpid(), signal);
            let mut all = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const all, ptr::null_mut());
        }
    }
    // SAFETY: takes an integer.
    unsafe { libc::_exit(libc::WEXITSTATUS(status)) }
}

/// Ends everybody who was made here: from the top down, so that each is this process' child by the time that it is looked for.
/// A process that is not there yet finds that all was given up.
pub fn end_all(tree: &Tree, board: &Board) {
    board.give_up();
    let mut next: std::collections::VecDeque<usize> = tree.top.iter().copied().collect();
    while let Some(at) = next.pop_front() {
        let node = &tree.nodes[at];
        next.extend(node.before.iter().chain(&node.after).chain(&node.strays));
        let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;
        // SAFETY: no information is asked for. Only a child of ours, whose id nobody else can have, is signalled.
        unsafe {
            if libc::waitid(libc::P_PID, node.id as u32, ptr::null_mut(), flags) == 0 {
                libc::kill(node.id, libc::SIGKILL);
                await_end(node.id);
            }
        }
    }
}
