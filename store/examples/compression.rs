//! What compressing saves and costs, beside the same pages raw, in one run: `compression DIR FILE [ROUNDS]`.
//!
//! FILE has the pages: memory of a program, copied out of /proc/PID/mem, for one. They are put into a store, read as a pager
//! reads them (all, and 64 KiB at random places), compressed as `stasis gc` does, and read again.

use std::{
    fs::{self, File},
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use stasis_protocol::store::{CheckpointDraft, Hash, ProcessEntry, StagedRun};
use stasis_store::{client::Client, pager::Source};

const PAGE: usize = 4096;

/// What is sent at a time, and what is read at a time.
const PART: usize = 8 << 20;

/// Pages around a fault.
const FAULT: u64 = 16;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: compression DIR FILE [ROUNDS]";
    let directory = Path::new(&arguments.next().ok_or(usage)?).join("compression");
    let file = File::open(arguments.next().ok_or(usage)?)?;
    let rounds: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let len = file.metadata()?.len() as usize / PAGE * PAGE;
    fs::create_dir_all(&directory)?;
    let server = std::env::current_exe()?.with_file_name("../stasis-store");
    let mut client = Client::connect_or_start_with(&directory.join("store"), Command::new(&server))?;
    let manifest = dump(&mut client, &file, len)?;

    let before = client.disk_usage()?;
    let raw = Reading::measure(&mut client, &manifest, rounds)?;
    let started = Instant::now();
    let collected = client.collect(true)?;
    let took = started.elapsed();
    let after = client.disk_usage()?;
    let compressed = Reading::measure(&mut client, &manifest, rounds)?;

    println!(
        "on the disk: {} MiB of pages, {} MiB raw, {} MiB compressed: 1 : {:.2}",
        before.distinct >> 20,
        before.packs >> 20,
        after.packs >> 20,
        before.packs as f64 / after.packs as f64
    );
    println!(
        "compressing: {took:.2?}, {:.2} GB/s ({} packs)",
        (collected.pages_moved * PAGE as u64) as f64 / took.as_secs_f64() / 1e9,
        collected.packs_compressed
    );
    raw.tell("raw");
    compressed.tell("compressed");
    println!(
        "compressed to raw: all {:.2}, 64 KiB {:.2}",
        compressed.all.as_secs_f64() / raw.all.as_secs_f64(),
        compressed.fault.as_secs_f64() / raw.fault.as_secs_f64()
    );
    client.shutdown()?;
    fs::remove_dir_all(&directory)?;
    Ok(())
}

/// A checkpoint of the first `len` bytes of a file.
fn dump(client: &mut Client, file: &File, len: usize) -> Outcome<Hash> {
    let memfd = memfd_create("staging", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let staging = File::from(memfd.try_clone()?);
    staging.set_len(PART as u64)?;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    client.staging(memfd.as_fd(), PART as u64)?;
    client.begin_dump(1, 1, None)?;
    let mut part = vec![0; PART];
    for at in (0..len).step_by(PART) {
        let part = &mut part[..PART.min(len - at)];
        file.read_exact_at(part, at as u64)?;
        staging.write_all_at(part, 0)?;
        let (first_page, pages) = ((at / PAGE) as u64, (part.len() / PAGE) as u32);
        client.send_pages(vec![StagedRun { space: 0, first_page, pages, staging_offset: 0 }])?;
        client.released()?;
    }
    let (manifest, stats) = client.end_dump(Vec::new())?;
    let process = ProcessEntry { pid: 1, command: String::new(), manifest, stats, tracker: "full".into() };
    let draft = CheckpointDraft {
        shared: Vec::new(),
        computation: "compression".into(),
        parent: None,
        label: None,
        host: String::new(),
        pause_us: 0,
        processes: vec![process],
    };
    client.commit(1, draft)?;
    Ok(manifest)
}

/// Medians; one thread, from the page cache.
struct Reading {
    all: Duration,
    fault: Duration,
    pages: u64,
}

impl Reading {
    fn measure(client: &mut Client, manifest: &Hash, rounds: usize) -> Outcome<Self> {
        let process = client.read_process(manifest, &[])?;
        let (extents, names) = process.pages()?;
        let end = extents.last().map_or(0, |extent| extent.first_page + extent.pages);
        let everything = 0..end;
        let wanted = std::slice::from_ref(&everything);
        let source = Source::open(&process.directory, &process.key, &extents, names, wanted)?;
        let runs: Vec<_> = source.runs().collect();
        let pages: u64 = runs.iter().map(|run| run.end - run.start).sum();
        let mut buffer = vec![0; PART];
        let mut all = Vec::new();
        for _ in 0..rounds {
            let started = Instant::now();
            for run in &runs {
                let mut page = run.start;
                while page < run.end {
                    let end = run.end.min(page + (PART / PAGE) as u64);
                    let len = (end - page) as usize * PAGE;
                    source.load(std::slice::from_ref(&(page..end)), &mut buffer[..len])?;
                    page = end;
                }
            }
            all.push(started.elapsed());
        }
        let mut faults = Vec::new();
        let mut state = 1u64;
        while faults.len() < 1000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let first = (state >> 33) % end / FAULT * FAULT;
            let started = Instant::now();
            // Where there are pages of zeros, it is not one fault.
            if source
                .load(std::slice::from_ref(&(first..first + FAULT)), &mut buffer[..FAULT as usize * PAGE])
                .is_ok()
            {
                faults.push(started.elapsed());
            }
        }
        let median = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        Ok(Self { all: median(all), fault: median(faults), pages })
    }

    fn tell(&self, what: &str) {
        let rate = (self.pages * PAGE as u64) as f64 / self.all.as_secs_f64() / 1e9;
        println!("reading {what}: all {:.0?} ({rate:.2} GB/s), 64 KiB {:.1?}", self.all, self.fault);
    }
}
