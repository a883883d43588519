//! Restarting lazily: which memory is left to a pager, and starting it.
//!
//! The pager is a fork of this process, made before the program is: it has the list of pages already. It is not the
//! program's child and not in its session, and ends when the program has ended.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    thread,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask},
    unistd::{ForkResult, fork},
};
use stasis_protocol::{
    PAGE_SIZE,
    image::{Backing, Mapping, ProcessImage, flag},
    store::{Extent, MEMORY, kind},
};
use stasis_store::{
    client::Client,
    pager::{self, Learnt, List, Source, Table, Task, order},
};
use stasis_sys::userfaultfd;

use crate::{address::Address, store::connect_or_start, tracer};

use super::{
    computation::{Computation, Saved},
    descriptors::{self, Places},
    disabled,
    layout::Pages,
    plan::Plan,
    spawn::Request,
};

const PAGE: u64 = PAGE_SIZE as u64;

/// A mapping with fewer pages than this in the checkpoint is filled at once: stacks, and what libraries have of their own.
/// For tests, STASIS_LAZY_FROM says it otherwise ([`few`]), and nothing is listed beforehand then.
const FEW: u64 = 64;

fn few() -> Option<u64> {
    std::env::var("STASIS_LAZY_FROM").ok().and_then(|pages| pages.parse().ok())
}

/// Less memory than this is filled at once, in pages: that takes less time than a pager to get ready, and gives huge pages.
const SMALL: u64 = (32 << 20) / PAGE;

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Lazily where that is possible and worth it.
    #[default]
    Auto,
    Lazy,
    Eager,
}

/// How memory comes back.
#[derive(Default)]
pub struct Choice {
    /// What of each process is left to a pager, in bytes; in address order. Empty: nothing.
    regions: Vec<Vec<Range<u64>>>,
    /// An open /dev/userfaultfd, where there is one for this user.
    device: Option<File>,
    /// Why it is not lazy, though that was asked for or worth it.
    pub why_not: Option<String>,
}

impl Choice {
    /// What of a process is left to a pager.
    pub fn regions(&self, process: usize) -> &[Range<u64>] {
        self.regions.get(process).map_or(&[], Vec::as_slice)
    }
}

/// Chooses what is left to pagers. An ordinary user has a full userfaultfd from the tracer, if at all: this process
/// becomes part of the computation at `address` for that.
pub fn choose(wish: Wish, processes: &[Saved], address: &Address) -> Choice {
    if wish == Wish::Eager || disabled("lazy") {
        return Choice::default();
    }
    let choose = |saved: &Saved| {
        let (regions, stored) = regions(&saved.image, &saved.pages);
        if wish == Wish::Auto && stored < SMALL { Vec::new() } else { regions }
    };
    let regions: Vec<_> = processes.iter().map(choose).collect();
    if regions.iter().all(Vec::is_empty) {
        return Choice::default();
    }
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd");
    match device {
        Ok(device) => Choice { regions, device: Some(device), why_not: None },
        Err(no_device) => match userfaultfd::open_full(None) {
            Ok(fd) => {
                let _ = stasis_sys::file::close(fd);
                Choice { regions, device: None, why_not: None }
            }
            Err(error) => match tracer::userfaultfd(address) {
                Ok(device) => Choice { regions, device: Some(device), why_not: None },
                Err(refused) => {
                    let why_not = format!(
                        "userfaultfd(2): {error}, /dev/userfaultfd: {no_device}, the tracer: {refused:#}; a lazy restart \
                         needs root, the tracer, access to /dev/userfaultfd, or the sysctl vm.unprivileged_userfaultfd=1"
                    );
                    Choice { why_not: Some(why_not), ..Choice::default() }
                }
            },
        },
    }
}

/// Memory that may be left to a pager, in pages and in address order.
pub fn may_wait(image: &ProcessImage) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for mapping in image.mappings.iter().filter(|mapping| is_fit(mapping)) {
        let (start, end) = (mapping.start / PAGE, mapping.end / PAGE);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// How many pages of a range are in other ranges, which are in address order.
fn common(range: &Range<u64>, others: &[Range<u64>]) -> u64 {
    let from = others.partition_point(|other| other.end <= range.start);
    let met = others[from..].iter().take_while(|other| other.start < range.end);
    met.map(|other| range.end.min(other.end) - range.start.max(other.start)).sum()
}

/// Private anonymous memory of which much is in the checkpoint, and how many pages that are, at most.
pub fn regions(image: &ProcessImage, pages: &Pages) -> (Vec<Range<u64>>, u64) {
    let mut extents = pages
        .of(MEMORY)
        .filter(|(extent, _)| extent.kind != kind::ZERO)
        .map(|(extent, _)| extent.first_page * PAGE..(extent.first_page + extent.pages) * PAGE)
        .peekable();
    let few = few().unwrap_or(FEW);
    let (mut regions, mut all) = (Vec::new(), 0);
    for mapping in &image.mappings {
        let mut stored = 0;
        while let Some(extent) = extents.peek() {
            if extent.start >= mapping.end {
                break;
            }
            let part = extent.start.max(mapping.start)..extent.end.min(mapping.end);
            stored += part.end.saturating_sub(part.start) / PAGE;
            if extent.end > mapping.end {
                break;
            }
            extents.next();
        }
        let later = common(&(mapping.start / PAGE..mapping.end / PAGE), &pages.later.0);
        stored += later;
        if (stored >= few || later > 0) && is_fit(mapping) {
            regions.push(mapping.start..mapping.end);
            all += stored;
        }
    }
    (regions, all)
}

/// Of memory that is whole when the program goes on, what is tracked from then on: the mappings, as address and length, and
/// what of them is as the checkpoint has it. `left` to a pager is the rest.
///
/// The same mappings as a pager may have: what the program has little of costs less to be compared by hash.
pub fn watched(image: &ProcessImage, pages: &Pages, left: &[Range<u64>]) -> (Vec<[u64; 2]>, Vec<[u64; 2]>) {
    /// Holes that are smaller are protected, too: that makes page tables, of which there is one for so much.
    const HOLE: u64 = 2 << 20;
    let is_whole = |region: &Range<u64>| left.binary_search_by_key(&region.start, |left| left.start).is_err();
    let in_bytes = |pages: &Range<u64>| [pages.start * PAGE, (pages.end - pages.start) * PAGE];
    let regions = in_pages(regions(image, pages).0.iter().filter(|region| is_whole(region)));
    let stored = pages.of(MEMORY).map(|(extent, _)| extent).filter(|extent| extent.kind != kind::ZERO);
    let stored: Vec<_> = stored.map(pages_of).collect();
    let unwritten = held(&stored, &regions, HOLE / PAGE);
    (regions.iter().map(in_bytes).collect(), unwritten.iter().map(in_bytes).collect())
}

fn in_pages<'a>(regions: impl Iterator<Item = &'a Range<u64>>) -> Vec<Range<u64>> {
    regions.map(|region| region.start / PAGE..region.end / PAGE).collect()
}

fn pages_of(extent: &Extent) -> Range<u64> {
    extent.first_page..extent.first_page + extent.pages
}

/// What of `regions` is in `known`, with holes between that are smaller than `hole`; all in pages and in address order.
fn held(known: &[Range<u64>], regions: &[Range<u64>], hole: u64) -> Vec<Range<u64>> {
    let mut held = Vec::<Range<u64>>::new();
    for region in regions {
        let begun = held.len();
        let from = known.partition_point(|range| range.end <= region.start);
        for range in known[from..].iter().take_while(|range| range.start < region.end) {
            let (start, end) = (range.start.max(region.start), range.end.min(region.end));
            match held[begun..].last_mut() {
                Some(last) if start < last.end + hole => last.end = last.end.max(end),
                _ => held.push(start..end),
            }
        }
    }
    held
}

/// The kernel gives userfaultfd only private anonymous memory whole; locked memory is to be there, and the main stack
/// grows.
fn is_fit(mapping: &Mapping) -> bool {
    mapping.backing == Backing::Anonymous
        && !mapping.shared
        && mapping.flags & (flag::LOCKED | flag::GROWSDOWN) == 0
}

/// What the processes are given of their pagers.
pub struct Pagers(Vec<Option<Ends>>);

struct Ends {
    socket: OwnedFd,
    table: OwnedFd,
}

impl Pagers {
    /// Starts a pager for each process that is to have one.
    ///
    /// # Errors
    /// A pack cannot be opened; resources are short.
    pub fn start(request: &Request<'_>) -> anyhow::Result<Self> {
        let mut pagers = Self(Vec::new());
        for process in 0..request.computation.processes.len() {
            let ends = match request.memory.regions(process) {
                [] => None,
                regions => Some(start(request.computation, process, regions)?),
            };
            pagers.0.push(ends);
        }
        Ok(pagers)
    }

    /// Tells the restorer of a process of its pager.
    ///
    /// # Errors
    /// No descriptor number is left.
    pub fn plan(
        &self,
        choice: &Choice,
        process: usize,
        places: &mut Places,
        plan: &mut Plan,
    ) -> anyhow::Result<()> {
        let Some(Some(ends)) = self.0.get(process) else { return Ok(()) };
        plan.header.info.table_fd = places.place(ends.table.try_clone()?)?;
        plan.header.info.pager_fd = places.place(ends.socket.try_clone()?)?;
        plan.header.userfaultfd_device = match &choice.device {
            Some(device) => places.place(device.try_clone()?.into())?.into(),
            None => -1,
        };
        let regions = choice.regions(process).iter();
        plan.lazy = regions.map(|region| [region.start, region.end - region.start]).collect();
        Ok(())
    }
}

fn start(computation: &Computation, process: usize, regions: &[Range<u64>]) -> anyhow::Result<Ends> {
    let saved = &computation.processes[process];
    let pages = &saved.pages;
    let regions = in_pages(regions.iter());
    let all = few().map(|_| all_of(pages, &regions));
    let (listed, later, count) = match &all {
        Some(all) => (&[][..], all, all.iter().map(|range| range.end - range.start).sum()),
        None => (&regions[..], &pages.later.0, pages.later.1),
    };
    let source =
        Source::open(&pages.directory, &saved.key, &pages.extents, pages.hashes.try_clone()?, listed)
            .context("the store's packs")?
            .listing(later, count, lister(pages.directory.clone(), saved.manifest));
    let table = Table::make().context("a table for the pager")?;
    let (theirs, ours) = UnixStream::pair()?;
    let ends = Ends { socket: theirs.into(), table: table.as_fd().try_clone_to_owned()? };
    let kept = BTreeSet::from([0, 1, 2, ours.as_raw_fd(), table.as_fd().as_raw_fd()]);
    let lease = computation.store.as_fd().as_raw_fd();
    let task = Task {
        source,
        regions,
        order: saved.working_set.clone(),
        prefetch: !disabled("prefetch"),
        socket: ours,
        table,
        whose: format!("pid {} of checkpoint {}", saved.image.ids.pid, computation.record.id),
    };
    // SAFETY: this process has one thread, so that the child may do what it likes.
    match unsafe { fork() }.context("no process for the pager")? {
        ForkResult::Parent { .. } => Ok(ends),
        ForkResult::Child => {
            drop(ends);
            let learns = Learns {
                store: pages.directory.clone(),
                checkpoint: computation.record.id.clone(),
                pid: saved.image.ids.pid as u32,
            };
            be_pager(task, kept, lease, learns)
        }
    }
}

/// What of `regions` the checkpoint has, listed or not, and small holes with it.
fn all_of(pages: &Pages, regions: &[Range<u64>]) -> Vec<Range<u64>> {
    const HOLE: u64 = (16 << 20) / PAGE;
    let listed = pages.of(MEMORY).map(|(extent, _)| pages_of(extent));
    let mut known: Vec<_> = listed.chain(pages.later.0.iter().cloned()).collect();
    known.sort_unstable_by_key(|range| range.start);
    held(&known, regions, HOLE)
}

/// Asks the store where pages lie, by a connection of the pager's own. Packs stay where they are by that of `stasis restart`, which
/// the pager has, too.
fn lister(store: PathBuf, manifest: [u8; 32]) -> List {
    let mut client: Option<Client> = None;
    Box::new(move |pages| {
        let ask = |client: &mut Client| client.read_pages(&manifest, pages.clone());
        let known = client.as_mut().map(ask);
        let list = match known {
            Some(Ok(list)) => list,
            // The server has ended: the next one knows as much.
            _ => {
                let mut new = connect_or_start(&store).map_err(io::Error::other)?;
                let list = ask(&mut new).map_err(io::Error::other)?;
                client = Some(new);
                list
            }
        };
        let (extents, names) = list.pages()?;
        Ok((extents, names.to_vec()))
    })
}

/// For whom a pager learns what is touched first.
struct Learns {
    store: PathBuf,
    checkpoint: String,
    pid: u32,
}

impl Learns {
    /// Keeps it with the checkpoint. Where that is not possible the next restart is slower, and nothing else.
    fn keep(&self, learnt: &Learnt) {
        let Some(order) = &learnt.order else { return };
        if let Ok(mut client) = Client::connect(&self.store) {
            let _ = client.keep_working_set(&self.checkpoint, self.pid, order::encode(order));
        }
    }
}

/// In the child: looks after the program until it has ended.
fn be_pager(task: Task, mut kept: BTreeSet<RawFd>, lease: RawFd, learns: Learns) -> ! {
    // SAFETY: reads a string.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"stasis-pager".as_ptr()) };
    // What the terminal sends is for the program.
    let _ = nix::unistd::setsid();
    // SAFETY: no handler is installed.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        for number in 0..3 {
            // SAFETY: dup2(2) with numbers. Who waits for the end of an output waits for the program's only.
            unsafe { libc::dup2(null.as_raw_fd(), number) };
        }
    }
    kept.extend(task.source.descriptors());
    kept.insert(lease);
    descriptors::close_others(kept);
    let mut keeping = None;
    let _ = pager::run(task, |learnt| {
        // Beside the pager, whom a checkpoint may ask something meanwhile.
        keeping = thread::Builder::new()
            .spawn(move || {
                learns.keep(&learnt);
                // The packs may go now, and so may the store's server.
                // SAFETY: the store's client is not used any more in this process.
                unsafe { libc::close(lease) };
            })
            .ok();
    });
    if let Some(keeping) = keeping {
        let _ = keeping.join();
    }
    // SAFETY: ends the process, without running what belongs to the one that it was forked from.
    unsafe { libc::_exit(0) }
}

/// For messages: why memory that could come later comes at once.
pub fn explain(why_not: &str) -> io::Result<()> {
    use std::io::Write;
    writeln!(io::stderr(), "stasis: all memory is loaded before the program goes on: {why_not}")
}
