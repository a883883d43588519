//! How long a full dump takes, beside what the disk itself can do: `dump_speed DIR [MIB] [ROUNDS]`.
//!
//! The store's server is the one beside this program. The process side is as lean as can be (its
//! pages lie in the staging buffer already), so what is measured is the store.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    process::Command,
    time::Instant,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        uio::pwritev,
    },
};
use stasis_protocol::store::{CheckpointDraft, ProcessEntry, StagedRun};
use stasis_store::{client::Client, location::LOCK, pack::AlignedPage};

const PAGE: usize = 4096;
const CHUNK: usize = 4 << 20;

/// Parts of the staging buffer: while one is filled, others are named and written.
const PARTS: usize = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: dump_speed DIR [MIB] [ROUNDS]")?;
    let mib: usize = arguments.next().map_or(Ok(2048), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let directory = Path::new(&directory).join("dump-speed");
    fs::create_dir_all(&directory)?;
    let server = std::env::current_exe()?.with_file_name("../stasis-store");

    // A ring of random pages, made different in each use by eight bytes per page.
    let staging_len = 64 << 20;
    let memfd = memfd_create("staging", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let staging = File::from(memfd.try_clone()?);
    staging.set_len(staging_len as u64)?;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    let mut noise = vec![0; staging_len];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);

    let mut disk = Vec::new();
    let mut store = Vec::new();
    for round in 0..rounds {
        disk.push(disk_write(&directory.join("raw"), mib)?);

        let stored = directory.join("store");
        let mut client = Client::connect_or_start_with(&stored, Command::new(&server))?;
        client.staging(memfd.as_fd(), staging_len as u64)?;
        client.begin_dump(1, 1, None)?;
        let part = staging_len / PARTS;
        let started = Instant::now();
        let mut outstanding = 0;
        for (turn, first) in (0..mib << 20).step_by(part).enumerate() {
            let at = turn % PARTS * part;
            let bytes = part.min((mib << 20) - first);
            if outstanding == PARTS {
                client.released()?;
                outstanding -= 1;
            }
            for page in noise[at..at + bytes].chunks_exact_mut(PAGE) {
                let stamp = (round * mib + first) as u64 ^ page.as_ptr() as u64;
                page[..8].copy_from_slice(&stamp.to_le_bytes());
                page[8..16].copy_from_slice(&(turn as u64).to_le_bytes());
            }
            staging.write_all_at(&noise[at..at + bytes], at as u64)?;
            let run = StagedRun {
                space: 0,
                first_page: (first / PAGE) as u64,
                pages: (bytes / PAGE) as u32,
                staging_offset: at as u64,
            };
            client.send_pages(vec![run])?;
            outstanding += 1;
        }
        for _ in 0..outstanding {
            client.released()?;
        }
        let released = started.elapsed();
        let (manifest, stats) = client.end_dump(Vec::new())?;
        let dumped = started.elapsed();
        let process =
            ProcessEntry { pid: 1, command: String::new(), manifest, stats, tracker: "full".into() };
        let draft = CheckpointDraft {
            shared: Vec::new(),
            computation: "speed".into(),
            parent: None,
            label: None,
            host: String::new(),
            pause_us: 0,
            processes: vec![process],
        };
        client.commit(1, draft)?;
        let committed = started.elapsed();
        println!(
            "store: released {released:.3?}, durable {dumped:.3?}, committed {committed:.3?} ({stats:?})"
        );
        store.push(committed.as_secs_f64());

        let started = Instant::now();
        client.read_process(&manifest, &[])?;
        println!("store: listed in {:.3?}", started.elapsed());
        // Five small checkpoints, as of a tiny process.
        for turn in 0..5u64 {
            noise[..8].copy_from_slice(&(round as u64 * 100 + turn).to_be_bytes());
            staging.write_all_at(&noise[..200 * PAGE], 0)?;
            let started = Instant::now();
            client.begin_dump(2, 1, None)?;
            let run = StagedRun { space: 0, first_page: 0, pages: 200, staging_offset: 0 };
            client.send_pages(vec![run])?;
            client.released()?;
            let (manifest, stats) = client.end_dump(Vec::new())?;
            let dumped = started.elapsed();
            let process =
                ProcessEntry { pid: 1, command: String::new(), manifest, stats, tracker: "full".into() };
            let draft = CheckpointDraft {
                shared: Vec::new(),
                computation: "speed".into(),
                parent: None,
                label: None,
                host: String::new(),
                pause_us: 0,
                processes: vec![process],
            };
            client.commit(2, draft)?;
            println!("small: durable {dumped:.3?}, committed {:.3?}", started.elapsed());
        }
        client.shutdown()?;
        drop(client);
        // The server holds this lock until it is gone.
        File::open(stored.join(LOCK))?.lock()?;
        fs::remove_dir_all(&stored)?;
    }
    let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let (disk, store) = (best(&disk), best(&store));
    println!(
        "{mib} MiB: disk {disk:.3} s, store {store:.3} s: {:.0} % of the disk's rate",
        100.0 * disk / store
    );
    fs::remove_dir_all(&directory)?;
    Ok(())
}

/// Seconds to write `mib` with O_DIRECT, 4 MiB at a time on two threads, and sync.
fn disk_write(path: &Path, mib: usize) -> io::Result<f64> {
    let buffer = vec![AlignedPage([7; PAGE]); CHUNK / PAGE];
    let parts: Vec<IoSlice<'_>> = buffer.iter().map(|page| IoSlice::new(&page.0)).collect();
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(path)?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (file, parts) = (&file, &parts);
                scope.spawn(move || {
                    (thread..mib / 4).step_by(2).try_for_each(|at| -> io::Result<()> {
                        let written = pwritev(file, parts, (at * CHUNK) as i64)?;
                        if written == CHUNK { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
                    })
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    file.sync_data()?;
    let seconds = started.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    println!("disk: {mib} MiB in {seconds:.3} s ({:.2} GB/s)", (mib << 20) as f64 / seconds / 1e9);
    Ok(seconds)
}
