//! What it costs to start a program that does nothing.

use std::{ffi::OsStr, process::Command, time::Instant};

use anyhow::ensure;

use super::Setting;
use crate::{
    place,
    report::{Goal, Line, Unit},
    statistics::Samples,
    tools::{self, StasisSession, Tool},
};

const PROGRAM: &str = "/bin/true";

/// Milliseconds that `stasis launch` may add.
const GOAL: f64 = 3.0;

/// From before the fork to the collected exit status, in turns.
pub fn measure(setting: &Setting<'_>) -> anyhow::Result<Vec<Line>> {
    let directory = place::directory(setting.directory)?;
    let stasis = StasisSession::open(&tools::Stasis::find()?, directory.path())?;
    let program = [OsStr::new(PROGRAM)];
    let rounds = if setting.quick { 5 } else { 100 };

    let peers: Vec<&dyn Tool> =
        setting.peers.iter().map(|peer| &**peer).filter(|peer| peer.is_present_at_run_time()).collect();
    let directories: Vec<_> =
        peers.iter().map(|_| place::directory(setting.directory)).collect::<Result<_, _>>()?;
    let sessions: Vec<_> = peers
        .iter()
        .zip(&directories)
        .map(|(peer, directory)| peer.open(directory.path()))
        .collect::<Result<_, _>>()?;

    let (mut native, mut launched, mut preloaded) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut with_peer = vec![Samples::default(); peers.len()];
    for round in 0..=rounds {
        let sample = [
            time(&mut place::command(PROGRAM, directory.path())?)?,
            time(&mut tools::Session::launch(&stasis, &program)?)?,
            time(&mut stasis.preload(&program)?)?,
        ];
        // The first round finds nothing in caches.
        if round > 0 {
            native.push(sample[0]);
            launched.push(sample[1]);
            preloaded.push(sample[2]);
        }
        for (session, samples) in sessions.iter().zip(&mut with_peer) {
            let sample = time(&mut session.launch(&program)?)?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let mut lines = vec![
        Line::new("native", "true", Unit::Milliseconds, native.clone()),
        Line::new(
            tools::STASIS,
            "added by `stasis launch`",
            Unit::Milliseconds,
            launched.difference(&native),
        )
        .goal(Goal::AtMost(GOAL)),
        Line::new(tools::STASIS, "of it, in the program", Unit::Milliseconds, preloaded.difference(&native)),
        Line::new(tools::STASIS, "ratio to native", Unit::Ratio, launched.ratio(&native)),
    ];
    for (peer, samples) in peers.iter().zip(with_peer) {
        let (added, ratio) = (samples.difference(&native), samples.ratio(&native));
        lines.push(Line::new(peer.name(), "added by its launch", Unit::Milliseconds, added));
        lines.push(Line::new(peer.name(), "ratio to native", Unit::Ratio, ratio));
    }
    Ok(lines)
}

fn time(command: &mut Command) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let status = command.status()?;
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took)
}
