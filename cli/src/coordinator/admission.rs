//! Who may join while processes of a restart are here: they, what comes of them, and what is launched here.
//!
//! A coordinator that is killed leaves its processes, and they join whoever listens at its address next. Where that one is of a
//! restart, they are the originals of its processes. Together they would be a checkpoint in which a pid is there twice, and
//! which ends them all and can never be restarted. They run on without a coordinator until the restarted ones have ended.

use std::{
    collections::BTreeMap,
    iter::{once, successors},
    rc::Rc,
};

use super::{
    computation::{Member, MemberId, random},
    log,
};
use crate::process::{self, Pidfd};

/// A process that asks to join.
pub struct Applicant<'a> {
    pub pid: u32,
    pub real_pid: u32,
    pub pidfd: &'a Rc<Pidfd>,
    pub is_restarted: bool,
    /// See [`stasis_protocol::coordinator::Role::Process`].
    pub epoch: u64,
}

#[derive(Default)]
pub struct Admission {
    /// Told to those who are welcome, and remembered by them and their children; 0: not made up yet.
    epoch: u64,
    /// What is here is of a restart.
    is_restart: bool,
    /// Processes that were turned away, by their pids here.
    originals: Vec<(u32, Rc<Pidfd>)>,
}

impl Admission {
    /// A restart is about to be made here.
    pub fn resume(&mut self) {
        self.epoch = 0;
        self.is_restart = true;
    }

    /// All that was here has ended.
    pub fn begin_anew(&mut self) {
        self.is_restart = false;
        self.originals.clear();
    }

    /// The epoch that a process joins in; otherwise those of the members that are to go with it.
    pub fn decide(
        &mut self,
        applicant: &Applicant<'_>,
        members: &BTreeMap<MemberId, Member>,
        mut awaited: impl Iterator<Item = u32>,
    ) -> Result<u64, Vec<MemberId>> {
        if self.epoch == 0 {
            self.epoch = random().unwrap_or(1);
        }
        if !self.is_restart || applicant.is_restarted {
            return Ok(self.epoch);
        }
        self.originals.retain(|(_, pidfd)| !pidfd.has_ended());
        let is_of_another = applicant.epoch != 0 && applicant.epoch != self.epoch;
        let is_double = |member: &Member| {
            member.pid == applicant.pid && member.real_pid != applicant.real_pid && !member.pidfd.has_ended()
        };
        let is_there = members.values().any(is_double) || awaited.any(|pid| pid == applicant.pid);
        let turned_away = |real_pid: u32| self.originals.iter().any(|(original, _)| *original == real_pid);
        if !is_of_another && !is_there && !line(applicant.real_pid).any(turned_away) {
            return Ok(self.epoch);
        }
        if !turned_away(applicant.real_pid) {
            log::line(format_args!(
                "pid {} (here {}) is not of this restart, and stays outside",
                applicant.pid, applicant.real_pid
            ));
            self.originals.push((applicant.real_pid, Rc::clone(applicant.pidfd)));
        }
        // Its children that have executed other programs know of no epoch, and may have come before it.
        let comes_of_it =
            |member: &Member| line(member.real_pid).any(|real_pid| real_pid == applicant.real_pid);
        Err(members.iter().filter(|(_, member)| comes_of_it(member)).map(|(id, _)| *id).collect())
    }
}

/// A process and its ancestors, by their pids here.
fn line(real_pid: u32) -> impl Iterator<Item = u32> {
    once(real_pid).chain(successors(process::parent(real_pid), |&pid| process::parent(pid)))
}
