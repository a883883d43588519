//! From the image's address space to the plan's: what is mapped, where pages come from, and the
//! calls that make it exactly what it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::PathBuf,
};

use stasis_protocol::{
    PAGE_SIZE,
    coordinator::Refusal,
    image::{self, Backing, FileIdentity, ObjectKind, ProcessImage, flag},
    plan::{Call, Fill, Mapping},
    store::{Extent, MEMORY, kind},
};
use stasis_store::{client::PageNames, read_ahead::ReadAhead};

use super::{
    descriptors::{Files, Places},
    plan::{Plan, attempt, call, pointing},
    refusal,
    vdso::{self, Arrangement},
};

/// How much one filling thread takes at a time, in bytes.
const CHUNK: u64 = 2 << 20;

/// mmap(2), Linux 6.11; mseal(2), Linux 6.10.
const MAP_DROPPABLE: i32 = 0x08;
const SYS_MSEAL: i64 = 462;

/// Addresses that programs are loaded at are above and below; here hardly anything ever lies.
pub const AREA_FROM: u64 = 0x1000_0000_0000;
pub const AREA_TO: u64 = 0x5000_0000_0000;

/// Where else something may lie for a moment, beside what the kernel gives a fresh process: its program from the last third
/// of the addresses on, its libraries and its stack at their end.
const BELOW: Range<u64> = 1 << 21..AREA_FROM;
const BETWEEN: Range<u64> = 0x5800_0000_0000..0x7c00_0000_0000;

/// What a restart needs at least.
const LEAST_AREA: u64 = 16 << 20;

/// The end of user space with 47-bit addresses.
const ADDRESS_END: u64 = (1 << 47) - 4096;

/// Checks the address space: an image is hostile input.
pub fn check(image: &ProcessImage, files: &Files<'_>, refusals: &mut Vec<Refusal>) {
    let page = PAGE_SIZE as u64;
    let mut end = 0;
    for mapping in &image.mappings {
        let sound = mapping.start >= end
            && mapping.start < mapping.end
            && mapping.end <= ADDRESS_END
            && mapping.start % page == 0
            && mapping.end % page == 0
            && mapping.offset % page == 0;
        if !sound {
            refusals.push(refusal(
                format!("mapping {:x}-{:x}", mapping.start, mapping.end),
                "the image is damaged: the mapping is empty, overlaps another or lies outside user space",
                "run `stasis verify`, and restart from another checkpoint",
            ));
            return;
        }
        end = mapping.end;
        if let Backing::File(file) = &mapping.backing
            && !files.puts_back(&file.path)
        {
            check_file(image.ids.pid, file, mapping, refusals);
        }
    }
    if free_area(occupied(image).collect(), LEAST_AREA).is_none() {
        refusals.push(refusal(
            format!("pid {}", image.ids.pid),
            "its mappings leave no addresses free for what makes the process again",
            "restart from a checkpoint that was taken when it had reserved less",
        ));
    }
    let inside = |address: u64| image.mappings.iter().any(|m| m.start <= address && address < m.end);
    let resume = &image.resume;
    for (what, address) in [
        ("the library's entry", resume.thread_entry),
        ("the library's checkpoint entry", resume.checkpoint_entry),
        ("the library's state", resume.restart_info),
    ] {
        if !inside(address) {
            refusals.push(refusal(
                format!("address {address:x} ({what})"),
                "the image is damaged: nothing is mapped there",
                "run `stasis verify`, and restart from another checkpoint",
            ));
        }
    }
}

/// A file that is mapped privately must be what it was: its unmodified pages are not in the checkpoint. One that is
/// shared has its content for itself, and must only be long enough.
fn check_file(pid: i32, file: &FileIdentity, mapping: &image::Mapping, refusals: &mut Vec<Refusal>) {
    use std::os::unix::fs::MetadataExt;
    // A file is mapped in pieces, by several processes: it is told of once.
    let whose = format!(", mapped file {}", file.path);
    if refusals.iter().any(|refusal| refusal.what.ends_with(&whose)) {
        return;
    }
    let what = || format!("pid {pid}{whose}");
    match std::fs::metadata(&file.path) {
        Err(error) => refusals.push(refusal(what(), format!("it cannot be found: {error}"), "put it back")),
        Ok(now) => {
            let mtime_ns = now.mtime() * 1_000_000_000 + now.mtime_nsec();
            if mapping.shared {
                if !now.is_file() || now.size() < file.size {
                    refusals.push(refusal(
                        what(),
                        "it is shorter than it was at the checkpoint",
                        "put it back",
                    ));
                }
            } else if now.size() != file.size || mtime_ns != file.mtime_ns {
                refusals.push(refusal(
                    what(),
                    "it has changed since the checkpoint (size or modification time), and its unmodified \
                     pages are taken from it",
                    "put back the file that the program ran with",
                ));
            }
        }
    }
}

/// Whether a file can be opened for writing, which nobody notices.
fn is_writable(path: &str) -> bool {
    OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path).is_ok()
}

/// Where the image has something.
pub fn occupied(image: &ProcessImage) -> impl Iterator<Item = Range<u64>> {
    image.mappings.iter().map(|mapping| mapping.start..mapping.end)
}

/// Where `len` bytes are free beside what is occupied.
pub fn free_area(mut occupied: Vec<Range<u64>>, len: u64) -> Option<u64> {
    occupied.sort_unstable_by_key(|range| range.start);
    [AREA_FROM..AREA_TO, BELOW, BETWEEN].into_iter().find_map(|within| {
        let mut at = within.start;
        for range in &occupied {
            if range.end <= at {
                continue;
            }
            if range.start >= at + len {
                break;
            }
            at = range.end.next_multiple_of(1 << 21);
        }
        (at + len <= within.end).then_some(at)
    })
}

/// What of a process is not filled by the restorer.
#[derive(Default)]
pub struct Left {
    /// Mappings, in address order.
    pub regions: Vec<Range<u64>>,
    /// Where they are already, writable, to be moved to their places; otherwise they are left to the pager.
    pub staged: Option<Range<u64>>,
}

/// Writes the address space into the plan; opens what it takes, at numbers that the image does not use.
pub fn plan(
    image: &ProcessImage,
    pages: &Pages,
    objects: &dyn Fn(u32) -> Option<OwnedFd>,
    left: &Left,
    vdso: &Arrangement,
    places: &mut Places,
    plan: &mut Plan,
) -> anyhow::Result<()> {
    let lazy = &left.regions[..];
    plan.scratch = scratch(image, left, vdso)?;
    let mut files: BTreeMap<(String, bool), RawFd> = BTreeMap::new();
    let mut modified: Vec<(u64, u64)> = Vec::new();
    for mapping in &image.mappings {
        let len = mapping.end - mapping.start;
        let mut flags = if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let mut fd = -1;
        match &mapping.backing {
            Backing::Kernel(_) => {
                vdso.plan(mapping, places, plan)?;
                continue;
            }
            Backing::Anonymous => flags |= libc::MAP_ANONYMOUS,
            Backing::Object(id) if segment(image, *id).is_some() => {
                attach(image, mapping, plan.scratch.start, plan);
                continue;
            }
            Backing::Object(id) => {
                let object = objects(*id).ok_or_else(|| anyhow::anyhow!("the image names no object {id}"))?;
                fd = places.place(object)?;
            }
            Backing::File(file) => {
                let writes = mapping.protection & libc::PROT_WRITE as u32 != 0;
                let may_write = writes || mapping.flags & flag::MAY_WRITE != 0;
                let write = mapping.shared && (writes || may_write && is_writable(&file.path));
                let key = (file.path.clone(), write);
                fd = match files.get(&key) {
                    Some(fd) => *fd,
                    None => {
                        let opened = OpenOptions::new().read(true).write(write).open(&file.path)?;
                        let fd = places.place(opened.into())?;
                        files.insert(key, fd);
                        fd
                    }
                };
                if !mapping.shared {
                    modified.push((mapping.start, mapping.end));
                }
            }
        }
        if mapping.flags & flag::DROPPABLE != 0 {
            flags = flags & !libc::MAP_PRIVATE | MAP_DROPPABLE;
        }
        if mapping.flags & flag::GROWSDOWN != 0 {
            flags |= libc::MAP_GROWSDOWN;
        }
        if mapping.flags & flag::NORESERVE != 0 {
            flags |= libc::MAP_NORESERVE;
        }
        let is_lazy = lazy.binary_search_by_key(&mapping.start, |region| region.start).is_ok();
        if is_lazy && left.staged.is_some() {
            let protection = (libc::PROT_READ | libc::PROT_WRITE) as u32;
            if protection != mapping.protection || mapping.protection_key != 0 {
                plan.calls.push(protect(mapping));
            }
            advise(mapping, plan);
            continue;
        }
        let filled = !mapping.shared && !is_lazy && pages.any(mapping.start, mapping.end);
        let protection = if filled {
            mapping.protection | (libc::PROT_READ | libc::PROT_WRITE) as u32
        } else if mapping.protection_key != 0 {
            // Memory that can only be executed would get a key by itself, before the program's are there.
            libc::PROT_NONE as u32
        } else {
            mapping.protection
        };
        if protection != mapping.protection || mapping.protection_key != 0 {
            plan.calls.push(protect(mapping));
        }
        let flags = flags as u32;
        plan.mappings.push(Mapping {
            start: mapping.start,
            len,
            protection,
            flags,
            fd,
            _pad: 0,
            offset: mapping.offset,
        });
        advise(mapping, plan);
    }
    if image.settings.thp_disable == 0 {
        plan.huge = huge(image, pages, lazy);
    }
    let code = image.mappings.iter().filter(|mapping| vdso::is_code(mapping));
    let mut others: Vec<Range<u64>> = code.map(|mapping| mapping.start..mapping.end).collect();
    others.extend_from_slice(lazy);
    others.sort_unstable_by_key(|range| range.start);
    plan.kernel_mappings.extend_from_slice(&vdso.kernel);
    fills(pages, &modified, &others, places, plan)
}

/// The call that gives a mapping its protection, and its key where it has one.
fn protect(mapping: &image::Mapping) -> Call {
    let (start, len, protection) = (mapping.start, mapping.end - mapping.start, mapping.protection.into());
    match mapping.protection_key {
        0 => call(libc::SYS_mprotect, &[start, len, protection]),
        key => call(libc::SYS_pkey_mprotect, &[start, len, protection, key.into()]),
    }
}

/// Addresses at which the largest System V segment can be attached.
fn scratch(image: &ProcessImage, left: &Left, vdso: &Arrangement) -> anyhow::Result<Range<u64>> {
    let lengths = image.objects.iter().filter_map(|object| segment(image, object.id));
    let Some(len) = lengths.map(|(_, len)| len).max() else { return Ok(0..0) };
    let kernel = vdso.kernel.iter().map(|mapping| mapping.start..mapping.start + mapping.len);
    let start = free_area(occupied(image).chain(left.staged.clone()).chain(kernel).collect(), len);
    start
        .map(|start| start..start + len)
        .ok_or_else(|| anyhow::anyhow!("the image leaves no {len} bytes of addresses free for its segments"))
}

/// The System V segment that an object is: its id and its length in memory.
fn segment(image: &ProcessImage, object: u32) -> Option<(i32, u64)> {
    image.objects.iter().find(|one| one.id == object).and_then(|object| match &object.kind {
        ObjectKind::Segment { of, .. } => Some((of.id, object.size.next_multiple_of(PAGE_SIZE as u64))),
        _ => None,
    })
}

/// The calls that attach a segment, by the first mapping of it, and give each mapping its protection. It is attached at
/// `scratch` and moved from there piece by piece: the program may have unmapped parts, moved them (mremap(2)), or have
/// something else in their places.
fn attach(image: &ProcessImage, mapping: &image::Mapping, scratch: u64, plan: &mut Plan) {
    let Backing::Object(object) = mapping.backing else { return };
    let Some((id, len)) = segment(image, object) else { return };
    let base = mapping.start.wrapping_sub(mapping.offset);
    let pieces: Vec<&image::Mapping> = image
        .mappings
        .iter()
        .filter(|piece| piece.backing == mapping.backing && piece.start.wrapping_sub(piece.offset) == base)
        .collect();
    let has = |bit: i32| pieces.iter().any(|piece| piece.protection & bit as u32 != 0);
    let mut whole = libc::PROT_READ as u32;
    let mut flags = libc::SHM_RDONLY;
    if has(libc::PROT_WRITE) {
        (whole, flags) = (whole | libc::PROT_WRITE as u32, 0);
    }
    if has(libc::PROT_EXEC) {
        (whole, flags) = (whole | libc::PROT_EXEC as u32, flags | libc::SHM_EXEC);
    }
    if pieces.first().is_some_and(|first| first.start == mapping.start) {
        plan.calls.push(call(libc::SYS_shmat, &[id as u64, scratch, flags as u64]));
        let mut at = 0;
        for piece in &pieces {
            if at < piece.offset {
                plan.calls.push(call(libc::SYS_munmap, &[scratch + at, piece.offset - at]));
            }
            let (from, size) = (scratch + piece.offset, piece.end - piece.start);
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            plan.calls.push(call(libc::SYS_mremap, &[from, size, size, flags, piece.start]));
            at = piece.offset + size;
        }
        if at < len {
            plan.calls.push(call(libc::SYS_munmap, &[scratch + at, len - at]));
        }
    }
    if mapping.protection != whole || mapping.protection_key != 0 {
        plan.calls.push(protect(mapping));
    }
    advise(mapping, plan);
}

/// The calls that give a mapping its advice, guards, name and lock.
pub fn advise(mapping: &stasis_protocol::image::Mapping, plan: &mut Plan) {
    const MADV_GUARD_INSTALL: i32 = 102;
    const PR_SET_VMA: u64 = 0x5356_4d41;
    const PR_SET_VMA_ANON_NAME: u64 = 0;
    let (start, len) = (mapping.start, mapping.end - mapping.start);
    for (bit, advice) in [
        (flag::DONTFORK, libc::MADV_DONTFORK),
        (flag::DONTDUMP, libc::MADV_DONTDUMP),
        (flag::WIPEONFORK, libc::MADV_WIPEONFORK),
        (flag::HUGEPAGE, libc::MADV_HUGEPAGE),
        (flag::NOHUGEPAGE, libc::MADV_NOHUGEPAGE),
        (flag::MERGEABLE, libc::MADV_MERGEABLE),
        (flag::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (flag::RANDOM, libc::MADV_RANDOM),
    ] {
        if mapping.flags & bit != 0 {
            plan.calls.push(call(libc::SYS_madvise, &[start, len, advice as u64]));
        }
    }
    for &(from, to) in &mapping.guards {
        plan.calls.push(call(libc::SYS_madvise, &[from, to.saturating_sub(from), MADV_GUARD_INSTALL as u64]));
    }
    if let Some(name) = &mapping.name {
        let mut text = name.clone().into_bytes();
        text.push(0);
        let at = plan.keep(&text);
        // A kernel without CONFIG_ANON_VMA_NAME has no names to lose.
        let named = attempt(libc::SYS_prctl, &[PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, len]);
        plan.calls.push(pointing(named, 4, at));
    }
    if mapping.flags & flag::LOCKED != 0 {
        let on_fault = if mapping.flags & flag::LOCK_ON_FAULT != 0 { libc::MLOCK_ONFAULT as u64 } else { 0 };
        // It is locked, and then pages are looked for where there may be none: guards, PROT_NONE, a file's end (ENOMEM).
        plan.calls.push(attempt(libc::SYS_mlock2, &[start, len, on_fault]));
    }
    if mapping.flags & flag::SEALED != 0 {
        plan.seals.push(call(SYS_MSEAL, &[start, len, 0]));
    }
}

/// The pages of a process: extents and their hashes, in the same order.
pub struct Pages {
    pub extents: Vec<Extent>,
    pub hashes: PageNames,
    /// What of the memory is not among them, in pages and in address order, since a pager lists it; and how many pages that
    /// are.
    pub later: (Vec<Range<u64>>, u64),
    /// The store's directory.
    pub directory: PathBuf,
}

impl Pages {
    /// Extents of one space, each with the index of its first hash.
    pub fn of(&self, space: u32) -> impl Iterator<Item = (&Extent, usize)> {
        self.extents
            .iter()
            .scan(0, |next, extent| {
                let first = *next;
                *next += extent.pages as usize;
                Some((extent, first))
            })
            .filter(move |(extent, _)| extent.space == space)
    }

    /// Whether any page of the memory range is in the checkpoint.
    fn any(&self, start: u64, end: u64) -> bool {
        let page = PAGE_SIZE as u64;
        let from =
            self.extents.partition_point(|e| e.space == MEMORY && (e.first_page + e.pages) * page <= start);
        self.extents.get(from).is_some_and(|e| e.space == MEMORY && e.first_page * page < end)
    }

    /// For messages: the hash of the page at an address, and where the store keeps it.
    pub fn describe(&self, address: u64) -> (String, String) {
        let wanted = address / PAGE_SIZE as u64;
        let found = self
            .of(MEMORY)
            .find(|(extent, _)| (extent.first_page..extent.first_page + extent.pages).contains(&wanted));
        let Some((extent, first)) = found else { return Default::default() };
        let index = wanted - extent.first_page;
        let hash = self.hashes.get(first + index as usize).copied().unwrap_or_default();
        let hash = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let (offset, block) = match extent.kind {
            kind::LZ4 => (extent.offset, " (a compressed block)"),
            _ => (extent.offset + index * PAGE_SIZE as u64, ""),
        };
        (hash, format!("{}, offset {offset}{block}", self.pack(extent.pack).display()))
    }

    /// Looks whether all packs can be read, before anything is made.
    ///
    /// # Errors
    /// Which one cannot, and why.
    pub fn check_packs(&self) -> Result<(), String> {
        let numbers: BTreeSet<u64> = self
            .extents
            .iter()
            .filter(|extent| extent.kind != kind::ZERO)
            .map(|extent| extent.pack)
            .collect();
        for path in numbers.into_iter().map(|number| self.pack(number)) {
            File::open(&path).map_err(|error| {
                format!(
                    "the pack {} cannot be opened: {error}; run `stasis verify`, and restart from another checkpoint",
                    path.display()
                )
            })?;
        }
        Ok(())
    }

    /// The path of a pack.
    pub fn pack(&self, number: u64) -> PathBuf {
        self.directory.join(format!("packs/{number:08x}.pack"))
    }
}

/// The parts of a range that are not in any of `others`, which are in address order.
fn without(range: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut parts, mut at) = (Vec::new(), range.start);
    let first = others.partition_point(|other| other.end <= range.start);
    for other in others[first..].iter().take_while(|other| other.start < range.end) {
        if at < other.start {
            parts.push(at..other.start);
        }
        at = other.end;
    }
    if at < range.end {
        parts.push(at..range.end);
    }
    parts
}

fn fills(
    pages: &Pages,
    modified: &[(u64, u64)],
    others: &[Range<u64>],
    places: &mut Places,
    plan: &mut Plan,
) -> anyhow::Result<()> {
    let page = PAGE_SIZE as u64;
    let mut packs: BTreeMap<u64, (RawFd, RawFd)> = BTreeMap::new();
    let mut zeros: Option<RawFd> = None;
    /// Less than this between two blocks is read faster than left out.
    const BETWEEN: u64 = 64 << 10;
    let mut read_ahead = ReadAhead::bridging(BETWEEN);
    plan.header.hashes = pages.hashes.len() as u64;
    plan.header.hashes_fd = places.place(pages.hashes.as_fd().try_clone_to_owned()?)? as u64;
    for (extent, first_hash) in pages.of(MEMORY) {
        let (start, len) = (extent.first_page * page, extent.pages * page);
        let parts = without(start..start + len, others);
        if parts.is_empty() {
            continue;
        }
        let (fd, direct) = match extent.kind {
            kind::ZERO => {
                // Fresh anonymous memory is zero; a page of a file that the program zeroed is not.
                if !modified.iter().any(|&(from, to)| from < start + len && start < to) {
                    continue;
                }
                match zeros {
                    Some(fd) => (fd, -1),
                    None => (*zeros.insert(places.place(File::open("/dev/zero")?.into())?), -1),
                }
            }
            _ => match packs.get(&extent.pack) {
                Some(fds) => *fds,
                None => {
                    let path = pages.pack(extent.pack);
                    let file = File::open(&path).map_err(|error| {
                        anyhow::anyhow!("the pack {} cannot be opened: {error}", path.display())
                    })?;
                    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
                    let direct = direct.map_or(Ok(-1), |direct| places.place(direct.into()))?;
                    let fds = (places.place(file.into())?, direct);
                    packs.insert(extent.pack, fds);
                    fds
                }
            },
        };
        let is_block = extent.kind == kind::LZ4;
        if is_block {
            read_ahead.add(fd, extent.offset, extent.stored.into());
        }
        for part in parts {
            let mut address = part.start;
            while address < part.end {
                let end = part.end.min(address + CHUNK);
                let at = address - start;
                // A block is read whole, which is no multiple of what a disk can be asked for.
                let (direct, offset, skipped) = match is_block {
                    true => (-1, extent.offset, extent.skipped.saturating_add((at / page) as u32)),
                    false => (direct, extent.offset + at, 0),
                };
                plan.fills.push(Fill {
                    address,
                    len: end - address,
                    fd,
                    direct,
                    offset,
                    stored: extent.stored,
                    skipped,
                    hash: first_hash as u64 + at / page,
                    huge: plan.huge.partition_point(|&[piece, _]| piece < end) as u64,
                });
                address = end;
            }
        }
    }
    Ok(())
}

/// Memory that will be full in runs of 2 MiB: private, anonymous, not advised against huge pages.
fn huge(image: &ProcessImage, pages: &Pages, lazy: &[Range<u64>]) -> Vec<[u64; 2]> {
    const HUGE: u64 = 2 << 20;
    /// One call for so much: it drains the page caches of all processors, and what is read into a piece waits for it.
    const PIECE: u64 = 16 << 20;
    let page = PAGE_SIZE as u64;
    let mut full: Vec<(u64, u64)> = Vec::new();
    for (extent, _) in pages.of(MEMORY).filter(|(extent, _)| extent.kind != kind::ZERO) {
        let (start, end) = (extent.first_page * page, (extent.first_page + extent.pages) * page);
        match full.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => full.push((start, end)),
        }
    }
    let mut ranges = Vec::new();
    let mut mappings = image.mappings.iter().peekable();
    for (start, end) in full {
        while mappings.next_if(|mapping| mapping.end <= start).is_some() {}
        for mapping in mappings.clone().take_while(|mapping| mapping.start < end) {
            let fit = mapping.backing == Backing::Anonymous
                && !mapping.shared
                && lazy.binary_search_by_key(&mapping.start, |region| region.start).is_err()
                && mapping.flags & (flag::NOHUGEPAGE | flag::GROWSDOWN) == 0;
            let from = start.max(mapping.start).next_multiple_of(HUGE);
            let to = end.min(mapping.end) / HUGE * HUGE;
            if !fit || from >= to {
                continue;
            }
            let mut at = from;
            while at < to {
                let len = PIECE.min(to - at);
                ranges.push([at, len]);
                at += len;
            }
        }
    }
    ranges
}
