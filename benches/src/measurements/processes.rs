//! Checkpoints and restarts of computations of many small processes.

use std::{ffi::OsStr, thread};

use anyhow::Context as _;

use super::{
    Setting,
    checkpoint::{end, milliseconds},
    workload,
};
use crate::{
    place::{self, Started},
    report::{Goal, Line, Unit},
    shared_page::{SharedPage, now},
    statistics::Samples,
    tools::{self, Session as _, Stasis, StasisSession},
};

/// Of so many processes, a checkpoint is to be durable, and all are to tick after a restart, in these milliseconds.
const GOAL_COUNT: usize = 32;
const GOAL_DURABLE: f64 = 50.0;
const GOAL_TICKING: f64 = 60.0;

/// Computing processes for each processor, and how much longer a checkpoint may take than where they sleep: as long as
/// what has its turn when all others had theirs.
const CROWD: usize = 8;
const GOAL_CROWDED: f64 = CROWD as f64 + 1.0;

#[derive(Clone, Copy, Debug)]
struct Family {
    count: usize,
    computes: bool,
}

#[derive(Default)]
struct Figures {
    first: Samples,
    second: Samples,
    restart: Samples,
}

/// Processes that sleep most of the time.
pub fn measure(setting: &Setting<'_>, count: usize) -> anyhow::Result<Vec<Line>> {
    let rounds = match (setting.quick, count) {
        (true, _) => 1,
        (_, ..=100) => 7,
        _ => 3,
    };
    let [figures] = figures(setting, rounds, [Family { count, computes: false }])?;
    let goal = |milliseconds| (count == GOAL_COUNT).then_some(Goal::AtMost(milliseconds));
    let line = |quantity, samples| Line::new(tools::STASIS, quantity, Unit::Milliseconds, samples);
    Ok(vec![
        line("first checkpoint durable", figures.first),
        line("second checkpoint durable", figures.second).goal_of_stasis(goal(GOAL_DURABLE)),
        line("restart until all tick", figures.restart).goal_of_stasis(goal(GOAL_TICKING)),
    ])
}

/// More processes than there are processors, which compute all the time.
pub fn crowd(setting: &Setting<'_>) -> anyhow::Result<Vec<Line>> {
    let count = CROWD * thread::available_parallelism()?.get();
    let families = [false, true].map(|computes| Family { count, computes });
    let rounds = if setting.quick { 1 } else { 7 };
    let [asleep, computing] = figures(setting, rounds, families)?;
    let line =
        |quantity, samples: &Samples| Line::new(tools::STASIS, quantity, Unit::Milliseconds, samples.clone());
    Ok(vec![
        line("asleep: second checkpoint durable", &asleep.second),
        line("computing: first checkpoint durable", &computing.first),
        line("computing: second checkpoint durable", &computing.second),
        Line::new(tools::STASIS, "the same, of asleep", Unit::Ratio, computing.second.ratio(&asleep.second))
            .goal_of_stasis(Some(Goal::AtMost(GOAL_CROWDED))),
        line("computing: restart until all tick", &computing.restart),
    ])
}

/// Measures families in turns.
fn figures<const N: usize>(
    setting: &Setting<'_>,
    rounds: usize,
    families: [Family; N],
) -> anyhow::Result<[Figures; N]> {
    let mut all = [(); N].map(|()| Figures::default());
    for _ in 0..rounds {
        for (&family, figures) in families.iter().zip(&mut all) {
            let directory = place::directory(setting.directory)?;
            round(directory.path(), family, figures)
                .with_context(|| format!("{}; {}", tools::STASIS, place::log_end(directory.path())))?;
        }
    }
    Ok(all)
}

fn round(directory: &std::path::Path, family: Family, figures: &mut Figures) -> anyhow::Result<()> {
    let mut session = StasisSession::open(&Stasis::find()?, directory)?;
    let page = SharedPage::create()?;
    let path = page.path().to_str().context("a path that is not UTF-8")?;
    let count = family.count.to_string();
    let mut program = workload(&["family", "--count", &count, "--page", path])?;
    program.extend(family.computes.then(|| "--computes".into()));
    let program: Vec<&OsStr> = program.iter().map(AsRef::as_ref).collect();

    let ready = page.ask_for_tick();
    let mut started = Started::new(place::detached(&mut session.launch(&program)?))?;
    let pid = started.pid();
    page.await_tick(&ready, || started.still_runs())?;
    session.await_joined(pid)?;
    for samples in [&mut figures.first, &mut figures.second] {
        samples.push(milliseconds(session.checkpoint(pid)?.latency));
    }
    let modified = page.modified()?;
    end(&page, started)?;

    let ticked = page.ask_for_tick();
    let mut command = session.restart()?;
    page.set_modified(modified)?;
    let begun = now();
    let mut started = Started::new(place::detached(&mut command))?;
    let tick = page.await_tick(&ticked, || started.still_runs())?;
    figures.restart.push((tick - begun) as f64 / 1e6);
    end(&page, started)
}
