//! Checkpoints and restarts of a program with so much incompressible memory: how long it stands still, when
//! the checkpoint is durable, what it takes on the disk, and when the restarted program runs again.
//!
//! Beside it, in the same round: the disk's own time for the same bytes, and reading them from the page cache.

use std::{
    ffi::OsStr,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};

use super::{Setting, workload};
use crate::{
    disk,
    place::{self, Started},
    report::{Goal, Line, Unit},
    shared_page::{SharedPage, now},
    statistics::Samples,
    tools::{self, Session, Tool},
};

/// Milliseconds that a tiny program may stand still.
const TINY_PAUSE: f64 = 1.0;
/// Milliseconds until its checkpoint is durable, without the disk's sync.
const TINY_DURABLE: f64 = 10.0;
/// Milliseconds until it ticks after a restart.
const TINY_RESTART: f64 = 10.0;
/// What of the disk's speed a checkpoint of 2 GiB is to reach.
const SHARE_OF_DISK: f64 = 0.5;
/// Milliseconds until a program of 2 GiB ticks after a restart from the page cache.
const LARGE_RESTART: f64 = 500.0;

const TINY: usize = 1;
const LARGE: usize = 2048;

/// The part of the memory that is written between the first checkpoint and the second.
const DIRTIED_PERCENT: usize = 1;

const MIB: f64 = (1u64 << 20) as f64;

/// Measures all tools in turns, with memory of `mib` MiB.
pub fn measure(setting: &Setting<'_>, mib: usize) -> anyhow::Result<Vec<Line>> {
    let (rounds, restarts) = match (setting.quick, mib) {
        (true, _) => (2, 1),
        (_, ..=TINY) => (15, 5),
        (_, ..=64) => (7, 3),
        _ => (3, 3),
    };
    let stasis = tools::stasis()?;
    let mut compared = vec![&*stasis];
    compared.extend(setting.peers.iter().map(|peer| &**peer));

    let bytes = (mib as u64) << 20;
    let mut machine = Machine::default();
    let mut figures = vec![Figures::default(); compared.len()];
    for _ in 0..rounds {
        machine.write.push(milliseconds(disk::write_durably(setting.directory, bytes)?));
        for (tool, figures) in compared.iter().zip(&mut figures) {
            let directory = place::directory(setting.directory)?;
            let round = Round { tool: *tool, directory: directory.path(), mib, restarts };
            round
                .run(figures)
                .with_context(|| format!("{}; {}", tool.name(), place::log_end(directory.path())))?;
        }
        machine.read.push(milliseconds(disk::read_cached(setting.directory, bytes)?));
    }
    let mut lines = machine.lines(mib);
    for (tool, figures) in compared.iter().zip(figures) {
        lines.extend(figures.lines(tool.name(), mib, &machine));
    }
    Ok(lines)
}

/// A time in milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// What the machine itself does with the same bytes, in milliseconds.
#[derive(Default)]
struct Machine {
    write: Samples,
    read: Samples,
}

impl Machine {
    fn lines(&self, mib: usize) -> Vec<Line> {
        let speed = |samples: &Samples| format!("{:.2} GB/s", mib as f64 * MIB / samples.median() / 1e6);
        let line = |quantity, samples: &Samples| {
            Line::new("machine", quantity, Unit::Milliseconds, samples.clone()).note(speed(samples))
        };
        vec![
            line("write past the page cache, and sync", &self.write),
            line("read from the page cache into new memory", &self.read),
        ]
    }
}

/// What a checkpoint cost. Times in milliseconds, sizes in MiB.
#[derive(Clone, Default)]
struct Checkpoint {
    pause: Samples,
    said_pause: Samples,
    latency: Samples,
    written: Samples,
    said_written: Samples,
}

/// What one tool needs for one size.
#[derive(Clone, Default)]
struct Figures {
    first: Checkpoint,
    second: Checkpoint,
    /// A command that asks and changes nothing.
    ask: Samples,
    /// From the disk, or wherever the checkpoint has left the image.
    restart: Samples,
    /// When the image has just been read.
    restart_cached: Samples,
}

/// One life of the measured program.
struct Round<'a> {
    tool: &'a dyn Tool,
    directory: &'a Path,
    mib: usize,
    restarts: usize,
}

impl Round<'_> {
    fn run(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let mut session = self.tool.open(self.directory)?;
        let page = SharedPage::create()?;
        // Another content each time: what the store has already is not written again.
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        let path = page.path().to_str().context("a path that is not UTF-8")?;
        let (mib, seed) = (self.mib.to_string(), seed.to_string());
        let program = workload(&["memory", "--mib", &mib, "--seed", &seed, "--page", path])?;
        let program: Vec<&OsStr> = program.iter().map(AsRef::as_ref).collect();

        let ready = page.ask_for_tick();
        let mut started = Started::new(place::detached(&mut session.launch(&program)?))?;
        let pid = started.pid();
        page.await_tick(&ready, || started.still_runs())?;
        session.await_joined(pid)?;

        checkpoint(&mut *session, &page, &mut started, pid, &mut figures.first)?;
        if let Some(ask) = session.ask()? {
            figures.ask.push(milliseconds(ask));
        }
        let pages = (self.mib * 256 * DIRTIED_PERCENT).div_ceil(100);
        page.dirty(pages.try_into()?, || started.still_runs())?;
        checkpoint(&mut *session, &page, &mut started, pid, &mut figures.second)?;
        let modified = page.modified()?;
        end(&page, started)?;

        for restart in 0..=self.restarts {
            let ticked = page.ask_for_tick();
            let mut command = session.restart()?;
            page.set_modified(modified)?;
            disk::ready_memory((self.mib as u64) << 20)?;
            let begun = now();
            let mut started = Started::new(place::detached(&mut command))?;
            let tick = page.await_tick(&ticked, || started.still_runs())?;
            let took = (tick - begun) as f64 / 1e6;
            if restart == 0 { &mut figures.restart } else { &mut figures.restart_cached }.push(took);
            end(&page, started)?;
        }
        Ok(())
    }
}

/// Takes a checkpoint and looks on from the program's side.
fn checkpoint(
    session: &mut dyn Session,
    page: &SharedPage,
    started: &mut Started,
    pid: u32,
    figures: &mut Checkpoint,
) -> anyhow::Result<()> {
    let before = session.image_bytes();
    page.forget_gaps();
    let taken = session.checkpoint(pid)?;
    // The gap is noted when it ends.
    let ticked = page.ask_for_tick();
    page.await_tick(&ticked, || started.still_runs())?;
    figures.pause.push(page.longest_gap() as f64 / 1e6);
    figures.latency.push(milliseconds(taken.latency));
    figures.written.push((session.image_bytes() as f64 - before as f64) / MIB);
    figures.said_pause.extend(taken.said_pause.map(milliseconds));
    figures.said_written.extend(taken.said_written.map(|bytes| bytes as f64 / MIB));
    Ok(())
}

/// Has the program end, and waits for it.
pub fn end(page: &SharedPage, started: Started) -> anyhow::Result<()> {
    let begun = Instant::now();
    page.stop();
    let status = started.wait()?;
    ensure!(status.success(), "the program did not end by itself after {:?}: {status}", begun.elapsed());
    page.forget_stop();
    Ok(())
}

impl Checkpoint {
    /// The bytes that the tool says it wrote; else those that are on the disk, which a store's own log, made once,
    /// may outweigh.
    fn image(&self, line: impl Fn(&str, Unit, &Samples) -> Line) -> Line {
        let written = line("image, on the disk", Unit::Mebibytes, &self.written);
        if self.said_written.count() == 0 {
            return written;
        }
        let note = format!("the disk has {:.1} MiB more", self.written.median());
        line("image, written", Unit::Mebibytes, &self.said_written).note(note)
    }
}

impl Figures {
    fn lines(&self, tool: &'static str, mib: usize, machine: &Machine) -> Vec<Line> {
        let goal = |size, goal| (mib == size).then_some(goal);
        let durable = Goal::AtMost(TINY_DURABLE + machine.write.median());
        let mut lines = Vec::new();
        for (number, checkpoint) in [("first", &self.first), ("second", &self.second)] {
            let line = |what: &str, unit, samples: &Samples| {
                Line::new(tool, format!("{number} checkpoint: {what}"), unit, samples.clone())
            };
            lines.push(
                line("the program's longest gap", Unit::Milliseconds, &checkpoint.pause)
                    .goal_of_stasis(goal(TINY, Goal::AtMost(TINY_PAUSE)))
                    .note(said(&checkpoint.said_pause, "ms")),
            );
            let ask = if self.ask.count() > 0 {
                format!("of it {:.1} ms for any command", self.ask.median())
            } else {
                String::new()
            };
            lines.push(
                line("durable, command's end", Unit::Milliseconds, &checkpoint.latency)
                    .goal_of_stasis(goal(TINY, durable))
                    .note(ask),
            );
            lines.push(checkpoint.image(line));
        }
        let share = machine.write.ratio(&self.first.latency);
        lines.insert(
            2,
            Line::new(tool, "first checkpoint: of the disk's speed", Unit::Ratio, share)
                .goal_of_stasis(goal(LARGE, Goal::AtLeast(SHARE_OF_DISK))),
        );
        lines.push(
            Line::new(tool, "restart to first tick, first time", Unit::Milliseconds, self.restart.clone())
                .goal_of_stasis(goal(TINY, Goal::AtMost(TINY_RESTART))),
        );
        let cached = &self.restart_cached;
        let beside = format!("{:.2} × reading the same bytes", cached.median() / machine.read.median());
        let limit = if mib == LARGE { LARGE_RESTART } else { TINY_RESTART };
        lines.push(
            Line::new(tool, "restart to first tick, again", Unit::Milliseconds, cached.clone())
                .goal_of_stasis((mib == TINY || mib == LARGE).then_some(Goal::AtMost(limit)))
                .note(beside),
        );
        lines
    }
}

fn said(samples: &Samples, unit: &str) -> String {
    if samples.count() == 0 { String::new() } else { format!("it says {:.2} {unit}", samples.median()) }
}
