//! Lazy restarts: when the program runs again, how long it waits for what it touches, when all is there; the same with what
//! is known from an earlier restart; and what several restarts of one checkpoint take together.
//!
//! All of it from the page cache, beside an eager restart of the same checkpoint in the same round.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Setting, workload};
use crate::{
    disk,
    place::{self, Started},
    report::{Goal, Line, Unit},
    shared_page::{SharedPage, now},
    statistics::Samples,
    tools::{self, STASIS, Session as _, StasisSession},
};

/// Sizes of memory in MiB, among which the first tick is to come at the same time.
pub const FLAT: &[usize] = &[64, 1024, 4096];
pub const QUICK_FLAT: &[usize] = &[32, 64];

/// Milliseconds until the program ticks.
const FIRST_TICK: f64 = 10.0;
/// How much longer that may take with the greatest memory than with the least.
const IS_FLAT: f64 = 1.2;
/// Milliseconds until all of 2 GiB is there.
const COMPLETE: f64 = 400.0;
/// The same for an idle program, of an eager restart's time.
const COMPLETE_OF_EAGER: f64 = 1.3;
/// Microseconds that a thread waits for a page.
const FAULT_MEDIAN: f64 = 12.0;
const FAULT_P99: f64 = 70.0;
/// A program that reads a tenth of its pages at random, from the restart to when it has, of an eager restart's time.
const TENTH_OF_EAGER: f64 = 0.3;
/// How many of the faults of the first restart the second has.
const FAULTS_AGAIN: f64 = 0.1;
/// Memory of all clones together, of that of one.
const CLONES: f64 = 1.5;

/// A program with memory, its checkpoints, and what is needed to restart it.
struct Saved {
    session: StasisSession,
    page: SharedPage,
    modified: SystemTime,
    mib: usize,
    /// Before anything was restarted.
    checkpoint: String,
}

impl Saved {
    fn new(directory: &Path, mib: usize) -> anyhow::Result<Self> {
        let mut session = StasisSession::open(&tools::Stasis::find()?, directory)?;
        let page = SharedPage::create()?;
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        let path = page.path().to_str().context("a path that is not UTF-8")?;
        let (size, seed) = (mib.to_string(), seed.to_string());
        let program = workload(&["memory", "--mib", &size, "--seed", &seed, "--page", path])?;
        let program: Vec<&OsStr> = program.iter().map(AsRef::as_ref).collect();
        let ready = page.ask_for_tick();
        let mut started = Started::new(place::detached(&mut session.launch(&program)?))?;
        page.await_tick(&ready, || started.still_runs())?;
        session.await_joined(started.pid())?;
        session.checkpoint(started.pid())?;
        let modified = page.modified()?;
        let checkpoint = session.last()?;
        let saved = Self { session, page, modified, mib, checkpoint };
        saved.end(started)?;
        Ok(saved)
    }

    /// A tenth of its pages.
    fn tenth(&self) -> u32 {
        (self.mib * 256 / 10) as u32
    }

    /// Restarts it; the milliseconds until it ticks.
    fn restart(&self, how: &str) -> anyhow::Result<(Started, f64)> {
        self.page.set_modified(self.modified)?;
        disk::ready_memory((self.mib as u64) << 20)?;
        let ticked = self.page.ask_for_tick();
        let mut command = self.session.restart_with(&self.checkpoint, &[how])?;
        let begun = now();
        let mut started = Started::new(place::detached(&mut command))?;
        let tick = self.page.await_tick(&ticked, || started.still_runs())?;
        Ok((started, (tick - begun) as f64 / 1e6))
    }

    /// Restarts it, and it reads a tenth of its pages at random; the milliseconds until it has.
    fn restart_and_read(&self, how: &str) -> anyhow::Result<(Started, f64)> {
        self.page.set_modified(self.modified)?;
        disk::ready_memory((self.mib as u64) << 20)?;
        self.page.ask_to_read(self.tenth());
        let mut command = self.session.restart_with(&self.checkpoint, &[how])?;
        let begun = now();
        let mut started = Started::new(place::detached(&mut command))?;
        let done = self.page.await_read(self.tenth(), || started.still_runs())?;
        Ok((started, (done - begun) as f64 / 1e6))
    }

    /// Waits until all its memory is there; what `stasis status` tells then.
    fn await_complete(&self) -> anyhow::Result<Value> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let memory = self.session.arriving()?;
            if memory["complete_us"].is_u64() {
                return Ok(memory);
            }
            ensure!(Instant::now() < until, "memory does not arrive, or at once: {memory}");
            // Asking takes the processor from the pager.
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Has the program end, and waits for it.
    fn end(&self, started: Started) -> anyhow::Result<()> {
        self.page.stop();
        let status = started.wait()?;
        ensure!(status.success(), "the program did not end by itself: {status}");
        self.page.forget_stop();
        Ok(())
    }
}

fn line(quantity: impl Into<String>, unit: Unit, samples: &Samples) -> Line {
    Line::new(STASIS, quantity, unit, samples.clone())
}

/// From the command to the program's first tick, for programs with different memory.
pub fn first_tick(setting: &Setting<'_>, sizes: &[usize]) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut medians: Vec<Samples> = Vec::new();
    for &mib in sizes {
        let directory = place::directory(setting.directory)?;
        let saved = Saved::new(directory.path(), mib)?;
        let mut samples = Samples::default();
        for round in 0..=if setting.quick { 2 } else { 11 } {
            let (started, tick) = saved.restart("--lazy")?;
            if round > 0 {
                samples.push(tick);
            }
            saved.end(started)?;
        }
        let quantity = format!("{mib} MiB: restart to first tick");
        lines.push(line(quantity, Unit::Milliseconds, &samples).goal(Goal::AtMost(FIRST_TICK)));
        medians.push(samples);
    }
    if let [first, .., last] = &medians[..] {
        let ratio = [last.median() / first.median()].into_iter().collect();
        let quantity = "the greatest to the least";
        lines.push(line(quantity, Unit::Ratio, &ratio).goal(Goal::AtMost(IS_FLAT)));
    }
    Ok(lines)
}

/// How memory arrives.
pub fn arrival(setting: &Setting<'_>, mib: usize) -> anyhow::Result<Vec<Line>> {
    let rounds = if setting.quick { 1 } else { 5 };
    let [mut eager, mut idle, mut eager_read, mut first_read, mut second_read] =
        [(); 5].map(|()| Samples::default());
    let [mut median, mut p99, mut first_faults, mut second_faults] = [(); 4].map(|()| Samples::default());
    for _ in 0..rounds {
        let directory = place::directory(setting.directory)?;
        // A checkpoint of which nothing is known yet.
        let saved = Saved::new(directory.path(), mib)?;
        saved.end(saved.restart("--eager")?.0)?;
        let (started, took) = saved.restart("--eager")?;
        eager.push(took);
        saved.end(started)?;
        let (started, took) = saved.restart("--lazy")?;
        idle.push(took + number(&saved.await_complete()?, "complete_us")? / 1e3);
        saved.end(started)?;
        let (started, took) = saved.restart_and_read("--eager")?;
        eager_read.push(took);
        saved.end(started)?;
        for (read, faults) in [(&mut first_read, &mut first_faults), (&mut second_read, &mut second_faults)] {
            let (started, took) = saved.restart_and_read("--lazy")?;
            read.push(took);
            let memory = saved.await_complete()?;
            faults.push(number(&memory, "faults")?);
            if median.count() < eager.count() {
                median.push(number(&memory, "fault_median_ns")? / 1e3);
                p99.push(number(&memory, "fault_p99_ns")? / 1e3);
            }
            saved.end(started)?;
        }
    }
    let large = mib >= 2048;
    let goal = |line: Line, goal| if large { line.goal(goal) } else { line };
    Ok(vec![
        line("eager restart to first tick", Unit::Milliseconds, &eager),
        goal(line("idle: restart to all pages in", Unit::Milliseconds, &idle), Goal::AtMost(COMPLETE)),
        goal(line("the same, of eager", Unit::Ratio, &idle.ratio(&eager)), Goal::AtMost(COMPLETE_OF_EAGER)),
        goal(line("a page is waited for, median", Unit::Microseconds, &median), Goal::AtMost(FAULT_MEDIAN)),
        goal(line("the same, p99", Unit::Microseconds, &p99), Goal::AtMost(FAULT_P99)),
        line("eager restart to a tenth read at random", Unit::Milliseconds, &eager_read),
        line("the same, lazily", Unit::Milliseconds, &first_read),
        goal(
            line("the same, of eager", Unit::Ratio, &first_read.ratio(&eager_read)),
            Goal::AtMost(TENTH_OF_EAGER),
        ),
        line("the same, again", Unit::Milliseconds, &second_read),
        goal(
            line("the same again, of eager", Unit::Ratio, &second_read.ratio(&eager_read)),
            Goal::AtMost(TENTH_OF_EAGER),
        ),
        line("pages that the program waits for", Unit::Times, &first_faults),
        line("pages that the program waits for, again", Unit::Times, &second_faults),
        goal(
            line(
                "the program waits again, of the first time",
                Unit::Ratio,
                &second_faults.ratio(&first_faults),
            ),
            Goal::AtMost(FAULTS_AGAIN),
        ),
    ])
}

/// Several restarts of one checkpoint at once, and the memory that they take together.
pub fn clones(setting: &Setting<'_>, count: usize, mib: usize) -> anyhow::Result<Vec<Line>> {
    let [mut made, mut eager, mut memory] = [(); 3].map(|()| Samples::default());
    for _ in 0..if setting.quick { 1 } else { 3 } {
        let directory = place::directory(setting.directory)?;
        let saved = Saved::new(directory.path(), mib)?;
        saved.end(saved.restart("--eager")?.0)?;
        let (started, took) = saved.restart("--eager")?;
        eager.push(took);
        let one = resident(saved.session.pid()?, "Rss:")?;
        saved.end(started)?;
        saved.page.set_modified(saved.modified)?;
        disk::ready_memory((mib as u64) << 20)?;
        let begun = Instant::now();
        let pids = saved.session.clones(&saved.checkpoint, count)?;
        made.push(begun.elapsed().as_secs_f64() * 1000.0);
        let mut all = 0.0;
        for &pid in &pids {
            all += resident(pid, "Pss:")?;
        }
        memory.push(all / one);
        saved.page.stop();
        for pid in pids {
            await_end(pid)?;
        }
        saved.page.forget_stop();
    }
    let quantity = format!("{count} clones of {mib} MiB: memory, of one");
    Ok(vec![
        line("eager restart to first tick", Unit::Milliseconds, &eager),
        line(format!("{count} clones, command's end"), Unit::Milliseconds, &made),
        line(quantity, Unit::Ratio, &memory).goal(Goal::AtMost(CLONES)),
    ])
}

/// Waits for the end of a process that is nobody's child here.
fn await_end(pid: u32) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    while fs::exists(format!("/proc/{pid}"))? {
        place::collect(pid);
        ensure!(Instant::now() < until, "pid {pid} does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// From /proc/PID/smaps_rollup, in KiB: `Pss:` counts a page that n processes have as one n-th.
fn resident(pid: u32, what: &str) -> anyhow::Result<f64> {
    let content = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = content.lines().find_map(|line| line.strip_prefix(what)).context("a line of proc(5)")?;
    Ok(line.split_whitespace().next().context("a number")?.parse()?)
}

fn number(memory: &Value, name: &str) -> anyhow::Result<f64> {
    memory[name].as_f64().with_context(|| format!("no number {name} in {memory}"))
}
