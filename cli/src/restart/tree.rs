//! Who makes whom: from the ids of a computation's processes to the order in which they are made again.
//!
//! A process is made by its parent, or by `stasis restart` (in a namespace: by init) where its parent is not of the
//! computation. What it is born into is the session of who makes it, and a process can leave that for a
//! session of its own only (setsid(2)). So some are made before their parent leaves its first session; and one
//! whose parent was never in its session, since it was adopted, is made by a child of the session's leader that ends at once.
//!
//! A session or process group whose leader has ended has its id still while it has members. A *ghost* is made with that
//! id, leads until they have joined, and ends.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nix::unistd::getsid;
use stasis_protocol::{
    coordinator::Refusal,
    image::{Ids, ProcessImage, Zombie},
};

use super::refusal;

/// What is known of a live process.
pub struct Member<'a> {
    pub ids: Ids,
    pub zombies: &'a [Zombie],
    pub subreaper: bool,
    /// Its session was nobody's who is outside.
    pub session_ended: bool,
}

impl<'a> Member<'a> {
    pub fn of(image: &'a ProcessImage) -> Self {
        // That of `stasis restart` is outside, whoever leads it.
        let is_here = getsid(None).is_ok_and(|session| session.as_raw() == image.ids.sid);
        Self {
            ids: image.ids,
            zombies: &image.zombies,
            subreaper: image.settings.subreaper,
            session_ended: image.settings.session_ended && !is_here,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A process of the checkpoint, by its place there.
    Process(usize),
    /// It ends with this status, which is left to be waited for.
    Zombie(i32),
    /// It ends when others have joined what it leads.
    Ghost,
}

/// A process to be made.
#[derive(Debug)]
pub struct Node {
    pub id: i32,
    pub kind: Kind,
    /// Its parent in the end, where that is of the computation.
    pub parent: Option<usize>,
    /// `None`: that of `stasis restart`. So for the group.
    pub session: Option<i32>,
    pub group: Option<i32>,
    pub leads_session: bool,
    /// Others join the group that has its id, or it is in it itself.
    pub leads_group: bool,
    /// Whom it makes in the session that it is born into.
    pub before: Vec<usize>,
    /// Whom it makes in its own.
    pub after: Vec<usize>,
    /// Whom it makes by a child that ends: somebody else adopts them.
    pub strays: Vec<usize>,
}

impl Node {
    /// Whether it leads a group that it leaves itself.
    pub fn moves(&self) -> bool {
        self.leads_group && self.group != Some(self.id)
    }

    /// Whether it adopts the orphans among its descendants.
    fn adopts(&self, members: &[Member<'_>]) -> bool {
        matches!(self.kind, Kind::Process(member) if members[member].subreaper)
    }
}

/// All processes to be made.
#[derive(Debug)]
pub struct Tree {
    pub nodes: Vec<Node>,
    /// Whom `stasis restart` makes, or init.
    pub top: Vec<usize>,
    /// For whom `stasis restart` stands in: the first process of the checkpoint, or its ancestor.
    pub root: usize,
}

/// When a process is made by its parent: before or after that calls setsid(2).
enum When {
    Before,
    After,
}

/// The session into which a process must be born.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Birth {
    Any,
    In(Option<i32>),
}

impl Tree {
    /// `detach`: what belonged to the session of who started the computation gets one of its own, led by the first process.
    ///
    /// `joined`: the sessions that are to be that of `stasis restart` though processes led them.
    ///
    /// # Errors
    /// Names the process that cannot have its place.
    pub fn new(members: &[Member<'_>], detach: bool, joined: &BTreeSet<i32>) -> Result<Self, Refusal> {
        let mut tree = Self { nodes: Vec::new(), top: Vec::new(), root: 0 };
        let mut numbers = BTreeMap::new();
        for (at, member) in members.iter().enumerate() {
            let Ids { pid, pgid, sid, .. } = member.ids;
            tree.add(&mut numbers, pid, Kind::Process(at), Some(sid), Some(pgid))?;
        }
        for (at, member) in members.iter().enumerate() {
            tree.nodes[at].parent = numbers
                .get(&member.ids.ppid)
                .copied()
                .filter(|&parent| parent != at && parent < members.len());
            for zombie in member.zombies {
                let kind = Kind::Zombie(zombie.status);
                let made = tree.add(&mut numbers, zombie.pid, kind, Some(zombie.sid), Some(zombie.pgid))?;
                tree.nodes[made].parent = Some(at);
            }
        }
        if let Some(first) = members.first() {
            let outer = (!first.session_ended).then_some(first.ids.sid);
            tree.place_outside(&numbers, first.ids, outer, detach, joined);
        }
        tree.lead(&mut numbers)?;
        tree.order(&numbers, members)?;
        while let Some(parent) = tree.nodes.get(tree.root).and_then(|root| root.parent) {
            tree.root = parent;
        }
        Ok(tree)
    }

    fn add(
        &mut self,
        numbers: &mut BTreeMap<i32, usize>,
        id: i32,
        kind: Kind,
        session: Option<i32>,
        group: Option<i32>,
    ) -> Result<usize, Refusal> {
        let number = self.nodes.len();
        if id <= 0 || numbers.insert(id, number).is_some() {
            return Err(damaged(id, "two processes have this id, or it is none"));
        }
        self.nodes.push(Node {
            id,
            kind,
            parent: None,
            session,
            group,
            leads_session: false,
            leads_group: false,
            before: Vec::new(),
            after: Vec::new(),
            strays: Vec::new(),
        });
        Ok(number)
    }

    /// Finds what belongs to the session and the group of who started the computation: those of the first process, where
    /// no process of the computation leads them. A process sees 0 for what is outside its pid namespace.
    fn place_outside(
        &mut self,
        numbers: &BTreeMap<i32, usize>,
        first: Ids,
        outer: Option<i32>,
        detach: bool,
        joined: &BTreeSet<i32>,
    ) {
        let is_led = |id: i32| numbers.get(&id).is_some_and(|&node| self.nodes[node].session == Some(id));
        let sid = outer.filter(|&sid| !is_led(sid));
        let outside: Vec<bool> = self
            .nodes
            .iter()
            .map(|node| {
                let joins = node.session.is_some_and(|session| session == 0 || joined.contains(&session));
                joins || node.session == sid && sid.is_some()
            })
            .collect();
        let own = (detach && outside.first() == Some(&true)).then_some(first.pid);
        for (node, outside) in self.nodes.iter_mut().zip(outside) {
            if !outside {
                continue;
            }
            node.session = own;
            let led = node.group.is_some_and(|group| numbers.contains_key(&group));
            if node.group == Some(0) || node.group == Some(first.pgid) && !led {
                node.group = own;
            }
        }
        // Who leads a session leads its group.
        if own.is_some()
            && let Some(node) = self.nodes.first_mut().filter(|node| node.session == own)
        {
            node.group = own;
        }
    }

    /// Finds the leaders of sessions and groups, and makes ghosts of those that have ended.
    fn lead(&mut self, numbers: &mut BTreeMap<i32, usize>) -> Result<(), Refusal> {
        for at in 0..self.nodes.len() {
            let Some(session) = self.nodes[at].session else { continue };
            let leader = match numbers.get(&session) {
                Some(&leader) => leader,
                None => self.add(numbers, session, Kind::Ghost, Some(session), Some(session))?,
            };
            if self.nodes[leader].session != Some(session) {
                return Err(damaged(self.nodes[at].id, "the leader of its session is in another one"));
            }
            self.nodes[leader].leads_session = true;
            if self.nodes[leader].group != Some(session) {
                return Err(damaged(session, "it leads a session and is not in its group"));
            }
        }
        for at in 0..self.nodes.len() {
            let Some(group) = self.nodes[at].group else { continue };
            let session = self.nodes[at].session;
            let leader = match numbers.get(&group) {
                Some(&leader) => leader,
                None => self.add(numbers, group, Kind::Ghost, session, Some(group))?,
            };
            if self.nodes[leader].session != session {
                return Err(damaged(
                    self.nodes[at].id,
                    "the leader of its process group is in another session",
                ));
            }
            self.nodes[leader].leads_group = true;
        }
        Ok(())
    }

    /// Decides who makes whom, and when.
    fn order(&mut self, numbers: &BTreeMap<i32, usize>, members: &[Member<'_>]) -> Result<(), Refusal> {
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        let mut down: VecDeque<usize> = VecDeque::new();
        for (at, node) in self.nodes.iter().enumerate() {
            match node.parent {
                Some(parent) => children[parent].push(at),
                None => down.push_back(at),
            }
        }
        let mut sorted = Vec::with_capacity(self.nodes.len());
        while let Some(at) = down.pop_front() {
            down.extend(&children[at]);
            sorted.push(at);
        }
        let births = self.births(&sorted, &children, numbers, members);
        self.adopt(&births, numbers, members);
        for &at in &sorted {
            self.assign(at, &births, numbers, members)?;
        }
        let mut made = 0;
        let mut down: Vec<usize> = self.top.clone();
        while let Some(at) = down.pop() {
            made += 1;
            let node = &self.nodes[at];
            down.extend(node.before.iter().chain(&node.after).chain(&node.strays));
        }
        if made != self.nodes.len() {
            return Err(damaged(self.nodes[0].id, "some processes are each other's ancestors"));
        }
        Ok(())
    }

    /// Into which session each must be born. `sorted` has parents before their children.
    fn births(
        &self,
        sorted: &[usize],
        children: &[Vec<usize>],
        numbers: &BTreeMap<i32, usize>,
        members: &[Member<'_>],
    ) -> Vec<Birth> {
        let mut births = vec![Birth::Any; self.nodes.len()];
        for &at in sorted.iter().rev() {
            let node = &self.nodes[at];
            births[at] = if node.leads_session {
                // An orphan that it has adopted: of a session that one of its descendants leads, or of one whose
                // leader has ended, where it was born into another session itself.
                let adopted = |session: Option<i32>| {
                    let leader = session.and_then(|session| numbers.get(&session).copied());
                    let is_ghost = leader.is_some_and(|leader| self.nodes[leader].kind == Kind::Ghost);
                    let is_elsewhere =
                        node.parent.is_some_and(|parent| self.nodes[parent].session != session);
                    let descends = leader.is_some_and(|leader| self.descends(leader, at));
                    descends || is_ghost && is_elsewhere && node.adopts(members)
                };
                let inherited = |child: &usize| match births[*child] {
                    Birth::In(session) if session != node.session && !adopted(session) => {
                        Some(Birth::In(session))
                    }
                    _ => None,
                };
                children[at].iter().find_map(inherited).unwrap_or(Birth::Any)
            } else {
                Birth::In(node.session)
            };
        }
        births
    }

    /// Whether a process is below another. A damaged image may have a circle of parents.
    fn descends(&self, at: usize, from: usize) -> bool {
        let parent = |&at: &usize| self.nodes[at].parent;
        std::iter::successors(parent(&at), parent).take(self.nodes.len()).any(|above| above == from)
    }

    /// Makes ghosts of sessions the children of the subreapers that adopted whom they make.
    fn adopt(&mut self, births: &[Birth], numbers: &BTreeMap<i32, usize>, members: &[Member<'_>]) {
        for at in 0..births.len() {
            let Some(parent) = self.nodes[at].parent.filter(|&parent| self.nodes[parent].adopts(members))
            else {
                continue;
            };
            let session = match births[at] {
                Birth::In(Some(session)) if self.when(parent, births[at], births).is_none() => session,
                _ => continue,
            };
            let Some(&leader) = numbers.get(&session) else { continue };
            // Nobody makes his own ancestor.
            let mut line = std::iter::successors(Some(parent), |&at| self.nodes[at].parent);
            if self.nodes[leader].kind == Kind::Ghost
                && self.nodes[leader].parent.is_none()
                && line.all(|at| self.nodes[at].session != Some(session))
            {
                self.nodes[leader].parent = Some(parent);
            }
        }
    }

    /// When its parent makes a process, where it can: in its own session, or before it leaves the one it was born into.
    fn when(&self, parent: usize, birth: Birth, births: &[Birth]) -> Option<When> {
        match birth {
            Birth::Any => Some(When::After),
            Birth::In(session) if session == self.nodes[parent].session => Some(When::After),
            _ if self.nodes[parent].leads_session && births[parent] == birth => Some(When::Before),
            Birth::In(_) => None,
        }
    }

    fn assign(
        &mut self,
        at: usize,
        births: &[Birth],
        numbers: &BTreeMap<i32, usize>,
        members: &[Member<'_>],
    ) -> Result<(), Refusal> {
        let (parent, birth) = (self.nodes[at].parent, births[at]);
        let list = match (parent, birth) {
            (Some(parent), _) => match self.when(parent, birth, births) {
                Some(When::Before) => Some(&mut self.nodes[parent].before),
                Some(When::After) => Some(&mut self.nodes[parent].after),
                None => None,
            },
            (None, Birth::Any | Birth::In(None)) => Some(&mut self.top),
            _ => None,
        };
        if let Some(list) = list {
            list.push(at);
            return Ok(());
        }
        let Birth::In(session) = birth else { return Ok(()) };
        let leader = session.and_then(|session| numbers.get(&session).copied());
        // Whom a ghost leaves goes where the ghost was made.
        let is_left_to_its_parent = |leader: usize| {
            let (leader, node) = (&self.nodes[leader], &self.nodes[at]);
            leader.kind != Kind::Ghost || node.kind == Kind::Ghost || leader.parent == node.parent
        };
        let adopts = |parent: usize| self.nodes[parent].adopts(members);
        let leader = leader.filter(|&leader| parent.is_none_or(adopts) && is_left_to_its_parent(leader));
        let Some(leader) = leader else {
            let id = self.nodes[at].id;
            return Err(refusal(
                format!("pid {id}"),
                "it is in a session that its parent was never in, and the kernel gives no way to make that again",
                "restart another checkpoint, taken when one of both has ended",
            ));
        };
        // A child of who ends is adopted anyway, and a ghost is waited for by whoever made it.
        let lasting =
            matches!(self.nodes[leader].kind, Kind::Process(_)) && self.nodes[at].kind != Kind::Ghost;
        let leader = &mut self.nodes[leader];
        if lasting {
            leader.strays.push(at)
        } else {
            leader.after.push(at)
        }
        Ok(())
    }
}

fn damaged(id: i32, reason: &str) -> Refusal {
    refusal(
        format!("pid {id}"),
        format!("the image is damaged: {reason}"),
        "run `stasis verify`, and restart from another checkpoint",
    )
}
