//! A store in a temporary directory, its server, and a process that dumps itself.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use stasis_protocol::store::{
    CheckpointDraft, CheckpointRecord, DumpStats, Hash, ProcessEntry, Space, StagedRun, kind,
};
use stasis_store::{
    client::{Client, ClientError},
    unpack::Unpacker,
};
use tempfile::TempDir;

pub const PAGE: usize = 4096;

pub type Page = [u8; PAGE];

/// The pages of a process, by space and number.
pub type Pages = BTreeMap<(Space, u64), Page>;

/// A store directory. Its socket goes when it does.
pub struct Store {
    _temporary: TempDir,
    pub directory: PathBuf,
}

impl Store {
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// In a new directory below `parent`.
    pub fn below(parent: &Path) -> Self {
        let temporary = TempDir::new_in(parent).unwrap();
        let directory = temporary.path().join("store");
        Self { _temporary: temporary, directory }
    }

    pub fn command(&self) -> Command {
        Command::new(env!("CARGO_BIN_EXE_stasis-store"))
    }

    /// Starts the server in the foreground and waits until it listens.
    pub fn serve(&self) -> Server {
        self.serve_with(|_| {}).expect("the server starts")
    }

    /// As [`Store::serve`], with a change to the command; `None` when the server ends before it listens.
    pub fn serve_with(&self, change: impl FnOnce(&mut Command)) -> Option<Server> {
        let mut command = self.command();
        command.arg(&self.directory).arg("--foreground").stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let server = Server { child, directory: self.directory.clone() };
        line.starts_with("listening on ").then_some(server)
    }

    pub fn packs(&self) -> Vec<PathBuf> {
        let mut packs: Vec<PathBuf> =
            fs::read_dir(self.directory.join("packs")).unwrap().map(|entry| entry.unwrap().path()).collect();
        packs.sort();
        packs
    }

    /// How many bytes they have.
    pub fn packs_size(&self) -> u64 {
        self.packs().iter().map(|path| path.metadata().unwrap().len()).sum()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Ok(socket) = stasis_store::location::socket_path(&self.directory) {
            let _ = fs::remove_file(socket);
        }
    }
}

/// A server in the foreground; killed when dropped.
pub struct Server {
    pub child: Child,
    directory: PathBuf,
}

impl Server {
    pub fn client(&self) -> Client {
        Client::connect(&self.directory).unwrap()
    }

    /// SIGKILL, as a crash would end it.
    pub fn crash(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A staging buffer.
pub struct Staging {
    pub memfd: OwnedFd,
    pub file: File,
    pub len: u64,
}

impl Staging {
    pub fn new(pages: usize) -> Self {
        let memfd = memfd_create("staging", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let len = (pages * PAGE) as u64;
        let file = File::from(memfd.try_clone().unwrap());
        file.set_len(len).unwrap();
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        Self { memfd, file, len }
    }
}

/// A page whose content follows from `seed`; no two are alike.
pub fn page(seed: u64) -> Page {
    let mut page = [0; PAGE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page);
    page
}

/// The same for pages that compress to a fifth or so.
pub fn soft_page(seed: u64) -> Page {
    let mut page = [0; PAGE];
    let hard = self::page(seed);
    page.chunks_mut(512).for_each(|part| part.copy_from_slice(&hard[..512]));
    page
}

/// As [`memory`], of pages that compress.
pub fn soft_memory(first: u64, count: u64, seed: u64) -> Pages {
    (0..count).map(|at| ((0, first + at), soft_page(seed + at))).collect()
}

/// `count` pages from `first` on in the process' memory, of contents from `seed` on.
pub fn memory(first: u64, count: u64, seed: u64) -> Pages {
    (0..count).map(|at| ((0, first + at), page(seed + at))).collect()
}

/// Reads the answers to `count` messages, all of them; the first problem counts.
fn await_released(client: &mut Client, count: usize) -> Result<(), ClientError> {
    let answers: Vec<Result<(), ClientError>> = (0..count).map(|_| client.released()).collect();
    answers.into_iter().collect()
}

/// Hands over `pages` through a small staging buffer, two messages under way, as a process does.
pub fn send(client: &mut Client, pages: &Pages) -> Result<(), ClientError> {
    const HALF: usize = 256;
    let staging = Staging::new(2 * HALF);
    client.staging(staging.memfd.as_fd(), staging.len)?;
    let all: Vec<_> = pages.iter().collect();
    let mut outstanding = 0;
    for (turn, part) in all.chunks(HALF).enumerate() {
        if outstanding == 2 {
            if let Err(problem) = client.released() {
                let _ = await_released(client, 1);
                return Err(problem);
            }
            outstanding -= 1;
        }
        let start = (turn % 2) * HALF * PAGE;
        let mut runs: Vec<StagedRun> = Vec::new();
        for (at, ((space, number), page)) in part.iter().enumerate() {
            let offset = (start + at * PAGE) as u64;
            staging.file.write_all_at(&page[..], offset).unwrap();
            match runs.last_mut() {
                Some(run) if run.space == *space && run.first_page + u64::from(run.pages) == *number => {
                    run.pages += 1;
                }
                _ => runs.push(StagedRun {
                    space: *space,
                    first_page: *number,
                    pages: 1,
                    staging_offset: offset,
                }),
            }
        }
        client.send_pages(runs)?;
        outstanding += 1;
    }
    await_released(client, outstanding)
}

/// A full dump of `pages` under `token`.
pub fn dump(client: &mut Client, token: u64, pages: &Pages) -> Result<(Hash, DumpStats), ClientError> {
    client.begin_dump(token, 1, None)?;
    send(client, pages)?;
    client.end_dump(b"the record".to_vec())
}

pub fn draft(processes: &[(Hash, DumpStats)]) -> CheckpointDraft {
    CheckpointDraft {
        computation: "test".into(),
        parent: None,
        label: None,
        host: "here".into(),
        pause_us: 1,
        processes: processes
            .iter()
            .map(|(manifest, stats)| ProcessEntry {
                pid: 1,
                command: "test".into(),
                manifest: *manifest,
                stats: *stats,
                tracker: "full".into(),
            })
            .collect(),
        shared: Vec::new(),
    }
}

/// A checkpoint of one process with `pages`.
pub fn checkpoint(client: &mut Client, token: u64, pages: &Pages) -> Result<CheckpointRecord, ClientError> {
    let dumped = dump(client, token, pages)?;
    client.commit(token, draft(&[dumped]))
}

/// The manifest of a checkpoint of one process.
pub fn manifest(record: &CheckpointRecord) -> &[u8; 32] {
    &record.draft.processes[0].manifest
}

/// Reads a process back from the packs, as a restart does, checking every page against its name.
pub fn read_back(client: &mut Client, manifest: &Hash) -> Pages {
    let process = client.read_process(manifest, &[]).unwrap();
    let (extents, names) = process.pages().unwrap();
    let mut names = names.iter();
    let mut pages = Pages::new();
    let mut last = None;
    let mut unpacker = Unpacker::default();
    for extent in extents {
        assert!(last < Some((extent.space, extent.first_page)), "extents are sorted");
        for at in 0..extent.pages {
            let mut page = [0; PAGE];
            let pack = || {
                let path = process.directory.join(format!("packs/{:08x}.pack", extent.pack));
                File::open(path).unwrap()
            };
            match extent.kind {
                kind::RAW => {
                    assert_eq!((extent.offset % PAGE as u64, extent.stored), (0, 0));
                    pack().read_exact_at(&mut page, extent.offset + at * PAGE as u64).unwrap();
                }
                kind::LZ4 => {
                    let skipped = extent.skipped + at as u32;
                    unpacker.read(&pack(), extent.offset, extent.stored, skipped, &mut page).unwrap();
                }
                _ => {}
            }
            assert_eq!(blake3::keyed_hash(&process.key, &page).as_bytes(), names.next().unwrap());
            pages.insert((extent.space, extent.first_page + at), page);
        }
        last = Some((extent.space, extent.first_page + extent.pages - 1));
    }
    assert!(names.next().is_none());
    pages
}
