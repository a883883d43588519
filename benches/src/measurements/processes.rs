//! Checkpoints and restarts of computations of many small processes.

use std::ffi::OsStr;

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

#[derive(Default)]
struct Figures {
    first: Samples,
    second: Samples,
    restart: Samples,
}

pub fn measure(setting: &Setting<'_>, count: usize) -> anyhow::Result<Vec<Line>> {
    let rounds = match (setting.quick, count) {
        (true, _) => 1,
        (_, ..=100) => 7,
        _ => 3,
    };
    let mut figures = Figures::default();
    for _ in 0..rounds {
        let directory = place::directory(setting.directory)?;
        round(directory.path(), count, &mut figures)
            .with_context(|| format!("{}; {}", tools::STASIS, place::log_end(directory.path())))?;
    }
    let goal = |milliseconds| (count == GOAL_COUNT).then_some(Goal::AtMost(milliseconds));
    let line = |quantity, samples| Line::new(tools::STASIS, quantity, Unit::Milliseconds, samples);
    Ok(vec![
        line("first checkpoint durable", figures.first),
        line("second checkpoint durable", figures.second).goal_of_stasis(goal(GOAL_DURABLE)),
        line("restart until all tick", figures.restart).goal_of_stasis(goal(GOAL_TICKING)),
    ])
}

fn round(directory: &std::path::Path, count: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let mut session = StasisSession::open(&Stasis::find()?, directory)?;
    let page = SharedPage::create()?;
    let path = page.path().to_str().context("a path that is not UTF-8")?;
    let program = workload(&["family", "--count", &count.to_string(), "--page", path])?;
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
