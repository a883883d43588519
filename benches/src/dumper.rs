//! A store server of its own, and memory that is dumped to it: what the store costs, without a program around it.
//!
//! The content of a page follows from its number and from how often it was written, so memory of any size needs four
//! bytes a page here. No page is like another, and none compresses.

use std::{
    fs,
    io::{BufRead, BufReader},
    num::NonZero,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    ptr::NonNull,
    slice,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap, munmap},
    },
    unistd::ftruncate,
};
use stasis_protocol::store::{CheckpointDraft, DumpStats, Hash, MEMORY, ProcessEntry, StagedRun};
use stasis_store::client::Client;

use crate::{
    place::{self, Started},
    workload::XorShift,
};

const PAGE: usize = 4096;

/// As large as the library makes it.
const STAGING: usize = 64 << 20;

/// Messages under way, each with its part of the staging buffer.
const PARTS: usize = 8;

/// A store server in the foreground; killed when dropped.
pub struct Server {
    process: Started,
    pub store: PathBuf,
}

impl Server {
    /// Starts one for the store `name` in `directory`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(directory: &Path, name: &str) -> anyhow::Result<Self> {
        let store = directory.join(name);
        let mut command = place::command(place::binary("stasis-store")?, directory)?;
        command.arg(&store).arg("--foreground").stdout(Stdio::piped());
        let mut process = Started::new(&mut command)?;
        let mut said = String::new();
        let stdout = process.child().stdout.take().context("a pipe was asked for")?;
        BufReader::new(stdout).read_line(&mut said)?;
        ensure!(said.starts_with("listening"), "the store server did not start; it said {said:?}");
        Ok(Self { process, store })
    }

    /// # Errors
    /// When it does not answer.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.store)?)
    }

    /// The most memory that it has had so far, in bytes; a staging buffer that it has mapped counts.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmHWM")?;
        Ok(kib.trim().parse::<u64>()? << 10)
    }

    /// From now on, [`Self::peak`] tells of what comes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.process.pid()), "5")?)
    }

    /// Ends it, and waits until all is on the disk that it had to put there.
    ///
    /// # Errors
    /// When it fails.
    pub fn stop(self) -> anyhow::Result<()> {
        self.client()?.shutdown()?;
        self.process.wait()?;
        Ok(())
    }
}

/// Memory, and a connection to dump it by.
pub struct Dumper {
    client: Client,
    memfd: OwnedFd,
    staging: NonNull<u8>,
    /// How often each page was written.
    versions: Vec<u32>,
    /// Tells one memory from another.
    seed: u64,
    random: XorShift,
    base: Option<Hash>,
    token: u64,
}

/// A checkpoint that was taken.
pub struct Taken {
    /// From the first message to the answer that it is durable; filling the staging buffer does not count.
    pub durable: Duration,
    pub stats: DumpStats,
    pub id: String,
}

impl Dumper {
    /// # Errors
    /// When the server does not answer, or there is no memory.
    pub fn new(server: &Server, mib: usize, seed: u64) -> anyhow::Result<Self> {
        let memfd = memfd_create("staging", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&memfd, STAGING as i64)?;
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
        let len = NonZero::new(STAGING).context("a staging buffer has a length")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel finds room, of a file that cannot shrink.
        let staging = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &memfd, 0) }?.cast();
        let client = server.client()?;
        let versions = vec![0; mib << 8];
        Ok(Self { client, memfd, staging, versions, seed, random: XorShift::new(seed), base: None, token: 0 })
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.versions.len()
    }

    /// A full checkpoint.
    ///
    /// # Errors
    /// The store's.
    pub fn full(&mut self) -> anyhow::Result<Taken> {
        self.base = None;
        let all: Vec<usize> = (0..self.pages()).collect();
        self.take(&all)
    }

    /// Writes `count` pages anywhere, and takes a checkpoint of them alone.
    ///
    /// # Errors
    /// The store's.
    pub fn next(&mut self, count: usize) -> anyhow::Result<Taken> {
        let mut dirty = std::collections::BTreeSet::new();
        while dirty.len() < count.min(self.pages()) {
            dirty.insert((self.random.step() % self.pages() as u64) as usize);
        }
        dirty.iter().for_each(|page| self.versions[*page] += 1);
        self.take(&dirty.into_iter().collect::<Vec<_>>())
    }

    fn take(&mut self, pages: &[usize]) -> anyhow::Result<Taken> {
        self.token += 1;
        let part = STAGING / PARTS / PAGE;
        let parts: Vec<&[usize]> = pages.chunks(part).collect();
        // What fits the buffer is there before the clock starts, as it is when a program has been copied.
        for (turn, pages) in parts.iter().take(PARTS).enumerate() {
            self.fill(turn, pages);
        }
        let mut begun = Instant::now();
        self.client.staging(self.memfd.as_fd(), STAGING as u64)?;
        self.client.begin_dump(self.token, 1, self.base)?;
        let mut outstanding = 0;
        for (turn, pages) in parts.iter().enumerate() {
            if outstanding == PARTS {
                self.client.released()?;
                outstanding -= 1;
                let filling = Instant::now();
                self.fill(turn, pages);
                begun += filling.elapsed();
            }
            self.client.send_pages(runs(turn % PARTS * part, pages))?;
            outstanding += 1;
        }
        for _ in 0..outstanding {
            self.client.released()?;
        }
        let (manifest, stats) = self.client.end_dump(b"no record".to_vec())?;
        let process =
            ProcessEntry { pid: 1, command: String::new(), manifest, stats, tracker: "full".into() };
        let draft = CheckpointDraft {
            computation: "benches".into(),
            parent: None,
            label: None,
            host: String::new(),
            pause_us: 0,
            processes: vec![process],
            shared: Vec::new(),
        };
        let record = self.client.commit(self.token, draft)?;
        self.base = Some(manifest);
        Ok(Taken { durable: begun.elapsed(), stats, id: record.id })
    }

    fn fill(&mut self, turn: usize, pages: &[usize]) {
        // SAFETY: mapped as long as `self` lives, written by nobody else; the server reads it when it has been told.
        let staging = unsafe { slice::from_raw_parts_mut(self.staging.as_ptr(), STAGING) };
        let part = &mut staging[turn % PARTS * (STAGING / PARTS)..];
        for (at, page) in part.chunks_exact_mut(PAGE).zip(pages) {
            let version = u64::from(self.versions[*page]);
            let mut content = XorShift::new(self.seed << 52 ^ version << 32 ^ *page as u64);
            at.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = content.step().to_ne_bytes());
        }
    }
}

impl Drop for Dumper {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody borrows from.
        let _ = unsafe { munmap(self.staging.cast(), STAGING) };
    }
}

/// Pages that lie one after the other in the staging buffer, from page `first` of it on.
fn runs(first: usize, pages: &[usize]) -> Vec<StagedRun> {
    let mut runs: Vec<StagedRun> = Vec::new();
    for (at, page) in pages.iter().enumerate() {
        let first_page = *page as u64;
        match runs.last_mut() {
            Some(run) if run.first_page + u64::from(run.pages) == first_page => run.pages += 1,
            _ => {
                let staging_offset = ((first + at) * PAGE) as u64;
                runs.push(StagedRun { space: MEMORY, first_page, pages: 1, staging_offset });
            }
        }
    }
    runs
}
