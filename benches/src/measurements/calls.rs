//! What single calls cost a program that was launched, beside the same program that was not.

use std::ffi::OsStr;

use super::{Setting, printed_number, workload};
use crate::{
    place,
    report::{Goal, Line, Unit},
    statistics::Samples,
    tools::{self, Tool},
    workload::Call,
};

/// How much slower than natively a call may be, where the kernel answers all there is to ask.
const GOAL: f64 = 1.05;

/// The goal of a call; those that wait with a time-out have none.
fn goal(call: Call) -> Option<Goal> {
    use Call::{
        ClockGettime, ForkExec, ForkExit, Getpid, MallocFree, OpenClose, Pipe, ReadWrite, SocketPingPong,
        Spawn, Stat,
    };
    let limit = match call {
        Getpid | OpenClose | Stat | Pipe | ClockGettime | MallocFree => GOAL,
        ReadWrite | SocketPingPong => 1.02,
        ForkExit => 1.5,
        ForkExec | Spawn => 2.0,
        _ => return None,
    };
    Some(Goal::AtMost(limit))
}

/// The program prints what a call took, so that its start does not count; runs in turns.
pub fn measure(setting: &Setting<'_>, call: Call) -> anyhow::Result<Vec<Line>> {
    let (rounds, millis) = if setting.quick { (2, 20) } else { (11, 100) };
    let program = workload(&["call", &call.name(), "--millis", &millis.to_string()])?;
    let program: Vec<&OsStr> = program.iter().map(AsRef::as_ref).collect();

    let stasis = tools::stasis()?;
    let mut compared = vec![&*stasis];
    compared.extend(setting.peers.iter().map(|peer| &**peer).filter(|peer| peer.is_present_at_run_time()));
    let directories: Vec<_> =
        compared.iter().map(|_| place::directory(setting.directory)).collect::<Result<_, _>>()?;
    let sessions: Vec<_> = compared
        .iter()
        .zip(&directories)
        .map(|(tool, directory): (&&dyn Tool, _)| tool.open(directory.path()))
        .collect::<Result<_, _>>()?;

    let mut native = Samples::default();
    let mut launched = vec![Samples::default(); sessions.len()];
    for _ in 0..rounds {
        let mut command = place::command(program[0], directories[0].path())?;
        native.push(printed_number(command.args(&program[1..]))?);
        for (session, samples) in sessions.iter().zip(&mut launched) {
            samples.push(printed_number(&mut session.launch(&program)?)?);
        }
    }
    let mut lines = vec![Line::new("native", call.describe(), Unit::Nanoseconds, native.clone())];
    for (tool, samples) in compared.iter().zip(launched) {
        let note = format!("{:.0} ns", samples.median());
        let line = Line::new(tool.name(), "ratio to native", Unit::Ratio, samples.ratio(&native));
        lines.push(line.goal_of_stasis(goal(call)).note(note));
    }
    Ok(lines)
}
