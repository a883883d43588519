//! What the store takes: bytes on the disk, time until a checkpoint is durable, memory of its server.

use std::{fs::File, os::fd::OwnedFd};

use anyhow::ensure;

use super::Setting;
use crate::{
    disk,
    dumper::{Dumper, Server},
    place,
    report::{Goal, Line, Unit},
    statistics::Samples,
    tools::STASIS,
};

/// Bytes on the disk for each byte of pages that were written.
const BYTES: f64 = 1.1;
/// What a process that has the same pages as another adds, of its own size.
const TWIN: f64 = 0.02;
/// Of the machine's own time for the same bytes, and milliseconds beside.
const DURABLE: (f64, f64) = (1.5, 20.0);
/// MiB of the server's memory, whatever is dumped.
const MEMORY: f64 = 200.0;

const MIB: f64 = (1u64 << 20) as f64;

/// Checkpoints of memory of which a hundredth is written between two, anywhere.
pub fn bytes(setting: &Setting<'_>) -> anyhow::Result<Vec<Line>> {
    let (mib, checkpoints) = if setting.quick { (16, 5) } else { (1024, 100) };
    let directory = place::directory(setting.directory)?;
    let server = Server::start(directory.path(), "store")?;
    let mut dumper = Dumper::new(&server, mib, 1)?;
    dumper.full()?;
    let before = place::disk_usage(&server.store);
    let dirty = dumper.pages().div_ceil(100);
    let (mut durable, mut machine, mut unique) = (Samples::default(), Samples::default(), 0);
    for _ in 0..checkpoints {
        let taken = dumper.next(dirty)?;
        ensure!(taken.stats.written == dirty as u64, "pages were found that nobody wrote");
        unique += taken.stats.bytes;
        durable.push(taken.durable.as_secs_f64() * 1000.0);
        machine.push(disk::write_durably(directory.path(), (dirty as u64) << 12)?.as_secs_f64() * 1000.0);
    }
    let after = place::disk_usage(&server.store);
    let twin = Dumper::new(&server, mib, 1)?.full()?;
    let of_twin = place::disk_usage(&server.store).cast_signed() - after.cast_signed();
    let grown = after.cast_signed() - before.cast_signed();
    let ratio = |over: i64, under: u64| [over as f64 / under as f64].into_iter().collect::<Samples>();
    let (share, beside) = DURABLE;
    let limit = share * machine.median() + beside;
    let lines = vec![
        Line::new("machine", "write a hundredth of it, and sync", Unit::Milliseconds, machine),
        Line::new(STASIS, "a hundredth written: durable", Unit::Milliseconds, durable)
            .goal(Goal::AtMost(limit))
            .note(format!("goal: {share} × the machine's + {beside} ms")),
        Line::new(STASIS, format!("{checkpoints} such: disk / new pages"), Unit::Ratio, ratio(grown, unique))
            .goal(Goal::AtMost(BYTES))
            .note(format!("{:.1} MiB of {:.1}", grown as f64 / MIB, unique as f64 / MIB)),
        Line::new(
            STASIS,
            "an identical process: disk / its size",
            Unit::Ratio,
            ratio(of_twin, (mib as u64) << 20),
        )
        .goal(Goal::AtMost(TWIN))
        .note(format!("{} of its pages were written", twin.stats.written)),
    ];
    server.stop()?;
    Ok(lines)
}

/// The server's memory while it does what it does with large memory.
pub fn memory(setting: &Setting<'_>) -> anyhow::Result<Vec<Line>> {
    let mib = if setting.quick { 16 } else { 4096 };
    let directory = place::directory(setting.directory)?;
    let server = Server::start(directory.path(), "store")?;
    let mut lines = Vec::new();
    let mut note = |server: &Server, what: &str| -> anyhow::Result<()> {
        let peak = server.peak()? as f64 / MIB;
        let line =
            Line::new(STASIS, format!("{what}, {mib} MiB"), Unit::Mebibytes, [peak].into_iter().collect());
        lines.push(line.goal(Goal::AtMost(MEMORY)));
        server.forget_peak()
    };
    let mut dumper = Dumper::new(&server, mib, 1)?;
    let first = dumper.full()?;
    note(&server, "a full dump")?;
    let dirty = dumper.pages().div_ceil(100);
    for _ in 0..3 {
        dumper.next(dirty)?;
    }
    note(&server, "a hundredth, 3 times")?;
    // The server's mapping of its staging buffer goes with it.
    drop(dumper);
    let second = Dumper::new(&server, mib, 2)?.full()?;
    note(&server, "a second full dump")?;
    let mut client = server.client()?;
    server.forget_peak()?;
    let found = client.verify(None)?;
    ensure!(found.damage.is_empty(), "{:?}", found.damage);
    note(&server, "verify")?;
    let stream = directory.path().join("stream");
    let last = client.resolve("latest~1")?.id;
    client.export(vec![first.id.clone(), last], OwnedFd::from(File::create(&stream)?))?;
    note(&server, "export")?;
    client.prune(vec![second.id])?;
    client.collect(false)?;
    note(&server, "gc")?;
    let other = Server::start(directory.path(), "other")?;
    other.client()?.import(OwnedFd::from(File::open(&stream)?))?;
    note(&other, "import")?;
    other.stop()?;
    server.stop()?;
    Ok(lines)
}
