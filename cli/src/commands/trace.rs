//! `stasis trace`: what computations do, as the kernel sees it.

use anyhow::bail;
use serde::Serialize;
use stasis_protocol::tracer::{Connection, Event, OtherEnd, What};

use crate::{
    address::Address,
    args::TraceArgs,
    client::Client,
    context::Context,
    failure::{ExitCode, Failure},
    output,
    tracer::{self, client::Tracer, escapes, own},
};

/// What is said where there is none.
pub fn no_tracer() -> Failure {
    Failure::refused(
        "the tracer",
        "does not run on this machine",
        "have root start it: systemctl start stasis-tracer, or stasis-tracer by hand",
    )
}

pub fn run(context: &Context, args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let Some(mut tracer) = Tracer::connect()? else { bail!(no_tracer()) };
    let computation = if args.all { None } else { Some(computation(&mut tracer, &context.address()?)?) };
    if args.connections {
        let Some(computation) = computation else {
            bail!(Failure::Usage("--connections is of one computation: leave --all out".into()))
        };
        let mut connections = tracer.connections(computation)?;
        connections.retain(|connection| !own::has(connection));
        let reports: Vec<Report<'_>> = connections.iter().map(Report::from).collect();
        if context.json {
            output::json(&reports)?;
        } else {
            output::print(&render(&reports))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut left = args.count;
    let began = || {
        if !context.quiet {
            output::note("tracing");
        }
        Ok(())
    };
    if left == Some(0) {
        return Ok(ExitCode::SUCCESS);
    }
    tracer.watch(computation, began, |event| {
        output::print(&if context.json { json(&event)? } else { line(&event) })?;
        left = left.map(|left| left - 1);
        Ok(left != Some(0))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The number of the computation at `address`.
///
/// # Errors
/// [`Failure::NoCoordinator`] where there is none, and nothing that one has left.
fn computation(tracer: &mut Tracer, address: &Address) -> anyhow::Result<u64> {
    let number = tracer::number(address);
    if Client::try_connect(address)?.is_none()
        && tracer.tasks(Some(number))?.0.iter().all(|task| escapes::is_ours(task.pid))
    {
        bail!(Failure::NoCoordinator {
            address: address.to_string(),
            remedy: "`stasis launch` starts one with the program, and --all is for all computations"
        });
    }
    Ok(number)
}

/// An event as JSON: the names are an interface.
#[derive(Serialize, Default)]
struct EventReport<'a> {
    time_ns: u64,
    computation: String,
    uid: u32,
    pid: u32,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    child: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secure: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
}

fn report(event: &Event) -> EventReport<'_> {
    let mut report = EventReport {
        time_ns: event.time_ns,
        computation: format!("{:016x}", event.computation),
        uid: event.owner,
        pid: event.pid,
        ..EventReport::default()
    };
    match &event.what {
        What::Fork { child, flags, command, .. } => {
            report.event = "fork";
            (report.child, report.flags, report.command) =
                (Some(*child), Some(*flags), Some(command.as_str()));
        }
        What::Thread { tid, flags } => {
            report.event = "thread";
            (report.thread, report.flags) = (Some(*tid), Some(*flags));
        }
        What::Exec { file, command, secure, thread, .. } => {
            report.event = "exec";
            (report.file, report.command) = (Some(file.as_str()), Some(command.as_str()));
            (report.secure, report.thread) = (Some(*secure), *thread);
        }
        What::Exit { status, command } => {
            report.event = "exit";
            (report.status, report.command) = (Some(*status), Some(command.as_str()));
        }
        What::Tcp { old, new, local, remote, .. } => {
            report.event = "tcp";
            (report.from, report.to) = (Some(tcp_state(*old)), Some(tcp_state(*new)));
            (report.local, report.remote) = (Some(local.as_str()), Some(remote.as_str()));
        }
        What::Refused { child } => {
            report.event = "refused";
            report.child = Some(*child);
        }
        What::Lost { events } => {
            report.event = "lost";
            report.lost = Some(*events);
        }
        What::Present { command, .. } => {
            report.event = "present";
            report.command = Some(command);
        }
    }
    report
}

/// One line for each event, as programs read them.
fn json(event: &Event) -> anyhow::Result<String> {
    Ok(serde_json::to_string(&report(event))? + "\n")
}

fn line(event: &Event) -> String {
    let what = match &event.what {
        What::Fork { child, command, .. } => format!("fork     {child} ({command})"),
        What::Thread { tid, .. } => format!("thread   {tid}"),
        What::Exec { file, secure, .. } => {
            format!("exec     {file}{}", if *secure { " (gaining rights)" } else { "" })
        }
        What::Exit { status, command } => match status & 0x7f {
            0 => format!("exit     {} ({command})", status >> 8),
            signal => format!("exit     by signal {signal} ({command})"),
        },
        What::Tcp { old, new, local, remote, .. } => {
            format!("tcp      {} -> {} {local} {remote}", tcp_state(*old), tcp_state(*new))
        }
        What::Refused { child } => format!("refused  {child} is not tracked: its user has too many"),
        What::Lost { events } => format!("lost     {events} events; what is there now follows"),
        What::Present { command, .. } => format!("present  {command}"),
    };
    format!("{:>14.6} {:>7} {}\n", event.time_ns as f64 / 1e9, event.pid, output::printable(&what))
}

/// include/net/tcp_states.h
fn tcp_state(state: u16) -> &'static str {
    const NAMES: [&str; 13] = [
        "-",
        "established",
        "syn-sent",
        "syn-recv",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "close",
        "close-wait",
        "last-ack",
        "listen",
        "closing",
        "new-syn-recv",
    ];
    NAMES.get(usize::from(state)).copied().unwrap_or("-")
}

/// A connection as JSON.
#[derive(Serialize)]
struct Report<'a> {
    pid: u32,
    fd: u32,
    inode: u64,
    family: &'static str,
    kind: &'static str,
    state: &'static str,
    local: &'a str,
    remote: &'a str,
    /// `none`, `inside`, `computation`, `host`, `elsewhere`.
    other: &'static str,
    other_pid: Option<u32>,
    other_computation: Option<String>,
}

impl<'a> From<&'a Connection> for Report<'a> {
    fn from(connection: &'a Connection) -> Self {
        let (other, other_pid, other_computation) = match &connection.other {
            OtherEnd::None => ("none", None, None),
            OtherEnd::Inside { pid, .. } => ("inside", Some(*pid).filter(|&pid| pid != 0), None),
            OtherEnd::Computation { computation } => {
                ("computation", None, computation.map(|number| format!("{number:016x}")))
            }
            OtherEnd::Host { pid } => ("host", *pid, None),
            OtherEnd::Elsewhere => ("elsewhere", None, None),
        };
        Self {
            pid: connection.pid,
            fd: connection.fd,
            inode: connection.inode,
            family: match i32::from(connection.family) {
                libc::AF_UNIX => "unix",
                libc::AF_INET => "inet",
                libc::AF_INET6 => "inet6",
                libc::AF_NETLINK => "netlink",
                _ => "other",
            },
            kind: match i32::from(connection.kind) {
                libc::SOCK_STREAM => "stream",
                libc::SOCK_DGRAM => "datagram",
                libc::SOCK_SEQPACKET => "seqpacket",
                libc::SOCK_RAW => "raw",
                _ => "other",
            },
            state: tcp_state(connection.state),
            local: &connection.local,
            remote: &connection.remote,
            other,
            other_pid,
            other_computation,
        }
    }
}

fn render(reports: &[Report<'_>]) -> String {
    let header = ["PID", "FD", "FAMILY", "KIND", "STATE", "LOCAL", "REMOTE", "OTHER END"];
    let mut table = output::Table::new(&header, &[0, 1]);
    for report in reports {
        let whose = match (report.other_pid, &report.other_computation) {
            (Some(pid), _) => format!("{} (pid {pid})", report.other),
            (None, Some(computation)) => format!("{} {computation}", report.other),
            (None, None) => report.other.to_string(),
        };
        table.row([
            report.pid.to_string(),
            report.fd.to_string(),
            report.family.into(),
            report.kind.into(),
            report.state.into(),
            report.local.into(),
            report.remote.into(),
            whose,
        ]);
    }
    table.render()
}
