//! Checkpoints that are taken now and then, and for how long: what `stasis coordinator --interval` asks for holds as long as the
//! coordinator runs, what `launch` and `restart` ask for ends with their computation.

use std::{
    rc::{Rc, Weak},
    time::Duration,
};

use stasis_protocol::coordinator::IntervalLasts;
use tokio::{
    task::{AbortHandle, spawn_local},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    checkpoint::{self, Order},
    computation::Computation,
};

/// Takes a checkpoint every so often until it is dropped.
struct Ticking {
    every: Duration,
    task: AbortHandle,
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whose an interval is that ends with a computation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Of processes that have not come yet.
    Coming,
    /// Of those that are here.
    Present,
}

/// The intervals that were asked for; the computation's own, which may be none at all, counts before the coordinator's.
#[derive(Default)]
pub struct Intervals {
    coordinators: Option<Ticking>,
    computations: Option<(Option<Ticking>, Whose)>,
}

impl Intervals {
    /// How often checkpoints are taken now.
    pub fn current(&self) -> Option<Duration> {
        let ticking = self.computations.as_ref().map_or(&self.coordinators, |(own, _)| own);
        ticking.as_ref().map(|ticking| ticking.every)
    }

    fn ticks(&self, lasts: IntervalLasts) -> bool {
        lasts == IntervalLasts::Computation || self.computations.is_none()
    }

    /// A process has come. `begins` where it is the first one of another computation than the one before.
    pub fn joined(&mut self, begins: bool) {
        match &mut self.computations {
            Some((_, whose @ Whose::Coming)) => *whose = Whose::Present,
            Some((_, Whose::Present)) if begins => self.computations = None,
            _ => {}
        }
    }

    /// All that were here have ended, and others are to come.
    pub fn ended(&mut self) {
        self.computations.take_if(|(_, whose)| *whose == Whose::Present);
    }
}

/// Takes checkpoints every `interval` from now on; none where there is none, or it is zero.
pub fn set(computation: &Rc<Computation>, interval: Option<Duration>, lasts: IntervalLasts) {
    let ticking = interval.filter(|every| !every.is_zero()).map(|every| Ticking {
        every,
        task: spawn_local(tick(Rc::downgrade(computation), every, lasts)).abort_handle(),
    });
    computation.with_intervals(|intervals| match lasts {
        IntervalLasts::Computation => intervals.computations = Some((ticking, Whose::Coming)),
        IntervalLasts::Coordinator => *intervals = Intervals { coordinators: ticking, computations: None },
    });
}

async fn tick(computation: Weak<Computation>, every: Duration, lasts: IntervalLasts) {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let Some(computation) = computation.upgrade() else { return };
        let is_idle = computation.with_members(|members| members.is_empty());
        if is_idle || !computation.with_intervals(|intervals| intervals.ticks(lasts)) {
            continue;
        }
        match computation.turn.clone().try_lock_owned() {
            Ok(turn) => {
                spawn_local(checkpoint::take(computation, Order::default(), turn));
            }
            Err(_) => computation.skip_tick(),
        }
    }
}
