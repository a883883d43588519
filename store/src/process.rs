//! Handing out a dumped process: its pages' places and names, in a memfd.
//!
//! The places come from the leaves; the index of pages is asked only for those whose pack is gone. Whoever
//! reads the pages checks them against their names.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use stasis_protocol::store::{Extent, Hash, MEMORY, kind};

use crate::{
    error::StoreError,
    manifest::{Inner, LEAF_PAGES, MAX_PAGE, Manifest, Reader},
    pack::{
        PAGE, Place,
        reader::{PackReader, Stretch},
    },
    store::Store,
};

/// The bytes of an [`Extent`].
pub const EXTENT: usize = size_of::<Extent>();

/// What a process is restored from.
pub struct Listing {
    /// A sealed memfd: `pages` names, then `extents` extents.
    pub memfd: OwnedFd,
    pub extents: u64,
    pub pages: u64,
    /// What of the memory was left out: from one page to the one behind the last.
    pub later: Vec<(u64, u64)>,
    /// How many pages that are.
    pub later_pages: u64,
}

/// What is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    /// All but what there is much of in these ranges of pages, which are in address order.
    Outline(Vec<(u64, u64)>),
    /// Memory from one page to the one behind the last.
    Memory(Range<u64>),
}

/// A process whose pages are asked for, piece by piece perhaps.
pub struct Reading {
    name: Hash,
    manifest: Manifest,
    inner: Inner,
}

/// So many leaves are much: up to 32 MiB.
const MUCH: usize = 16;

impl Reading {
    /// # Errors
    /// The manifest is not in the store, or damaged.
    pub fn begin(store: &Store, manifest: &Hash) -> Result<Self, StoreError> {
        let loaded = Manifest::load(store.index(), store.node_names(), manifest)?;
        Ok(Self { name: *manifest, manifest: loaded, inner: Inner::new() })
    }

    /// Whether it is of this process.
    pub fn is_of(&self, manifest: &Hash) -> bool {
        self.name == *manifest
    }

    /// Lists pages. Who is told needs a [`crate::lease::Lease`] from before.
    ///
    /// # Errors
    /// A part of the manifest is damaged (named in the error).
    pub fn list(&mut self, store: &Store, part: &Part) -> Result<Listing, StoreError> {
        let inner = std::mem::take(&mut self.inner);
        let mut reader = Reader::knowing(store.index(), store.node_names(), store.hasher().zero(), inner);
        let listing = list(store, &self.manifest, &mut reader, part);
        self.inner = reader.into_inner();
        listing
    }
}

/// Of ranges of pages, the leaves that lie in them whole, where those are many. Both are in order. What is reserved and not
/// used, terabytes perhaps, is in none.
fn much(ranges: &[(u64, u64)], leaves: &[u64]) -> Vec<Range<u64>> {
    /// Fewer leaves between two that there are make no difference: 16 MiB.
    const GAP: u64 = 8;
    let mut near: Vec<Range<u64>> = Vec::new();
    for &(first, end) in ranges {
        let before = |end: u64| leaves.partition_point(|&leaf| leaf < end);
        let (from, to) = (before(first.div_ceil(LEAF_PAGES as u64)), before(end / LEAF_PAGES as u64));
        let Some(inside) = leaves.get(from..to).filter(|inside| inside.len() >= MUCH) else { continue };
        let begun = near.len();
        for &leaf in inside {
            match near[begun..].last_mut() {
                Some(last) if leaf < last.end + GAP => last.end = leaf + 1,
                _ => near.push(leaf..leaf + 1),
            }
        }
    }
    near
}

fn list(
    store: &Store,
    manifest: &Manifest,
    reader: &mut Reader<'_>,
    part: &Part,
) -> Result<Listing, StoreError> {
    let not_written = |error| StoreError::io("cannot make a memfd for", store.directory().path())(error);
    let named: u64 = manifest.roots.iter().map(|root| root.pages).sum();
    let mut list = List::new((*part == Part::All).then_some(named)).map_err(not_written)?;
    let mut last: Option<Extent> = None;
    let mut packs = PackReader::new(&store.directory().packs());
    let mut later = Vec::new();
    for root in &manifest.roots {
        let mut left_out = Vec::new();
        if let Part::Outline(ranges) = part
            && root.space == MEMORY
        {
            left_out = much(ranges, &reader.leaves_in(root.name, 0..MAX_PAGE / LEAF_PAGES as u64)?);
        }
        let within = |leaves: Range<u64>| match part {
            Part::All => true,
            Part::Outline(_) => {
                let at = left_out.partition_point(|out| out.end <= leaves.start);
                !left_out.get(at).is_some_and(|out| out.start <= leaves.start && leaves.end <= out.end)
            }
            Part::Memory(pages) => {
                let (first, end) = (leaves.start * LEAF_PAGES as u64, leaves.end * LEAF_PAGES as u64);
                root.space == MEMORY && first < pages.end && pages.start < end
            }
        };
        let pages_of = |first: u64| match part {
            Part::Memory(pages) => {
                let inside = |page: u64| page.clamp(first, first + LEAF_PAGES as u64) - first;
                inside(pages.start) as usize..inside(pages.end) as usize
            }
            _ => 0..LEAF_PAGES,
        };
        reader.each_leaf_within(root.name, &within, &mut |first, _, leaf| {
            let leaf = leaf.map_err(|error| match error {
                StoreError::Damaged(problem) => StoreError::Damaged(format!(
                    "{problem}: the pages from {first:#x} on (space {}) cannot be found; `stasis verify` lists all damage",
                    root.space
                )),
                other => other,
            })?;
            let wanted = pages_of(first);
            let mut leaf = leaf.into_leaf();
            store.catalog().correct_to_read(&mut leaf)?;
            for run in leaf.runs() {
                let mut at = wanted.start.saturating_sub(run.first).min(run.pages);
                let end = wanted.end.saturating_sub(run.first).min(run.pages);
                if at >= end {
                    continue;
                }
                list.add_names(leaf.names(run.first + at, end - at)).map_err(not_written)?;
                while at < end {
                    let Stretch { kind, pages, offset, stored, skipped } = match run.place {
                        Place::ZERO => {
                            Stretch { kind: kind::ZERO, pages: end - at, offset: 0, stored: 0, skipped: 0 }
                        }
                        place => {
                            let place = Place { slot: place.slot + at as u32, ..place };
                            packs.stretch(store.catalog(), place, end - at)?
                        }
                    };
                    let extent = Extent {
                        space: root.space,
                        kind,
                        first_page: first + (run.first + at) as u64,
                        pages: pages as u64,
                        pack: u64::from(run.place.pack),
                        offset,
                        stored,
                        skipped,
                    };
                    match &mut last {
                        Some(last) if continues(last, &extent) => last.pages += extent.pages,
                        other => {
                            let done = other.replace(extent);
                            done.map_or(Ok(()), |extent| list.add_extent(&extent)).map_err(not_written)?;
                        }
                    }
                    at += pages;
                }
            }
            Ok(())
        })?;
        let in_pages = |leaf: u64| leaf * LEAF_PAGES as u64;
        later.extend(left_out.iter().map(|out| (in_pages(out.start), in_pages(out.end))));
    }
    last.map_or(Ok(()), |extent| list.add_extent(&extent)).map_err(not_written)?;
    let (pages, extents) = (list.pages, list.extents);
    if *part == Part::All && pages != named {
        let problem = format!("the manifest names {pages} pages and says that there are {named}");
        return Err(StoreError::Damaged(problem));
    }
    let later_pages = if later.is_empty() { 0 } else { named.saturating_sub(pages) };
    let memfd = list.seal().map_err(not_written)?;
    Ok(Listing { memfd, extents, pages, later, later_pages })
}

/// Whether `next` comes right behind `last`, in its space and in its pack, or block.
fn continues(last: &Extent, next: &Extent) -> bool {
    last.space == next.space
        && last.kind == next.kind
        && last.first_page + last.pages == next.first_page
        && match last.kind {
            kind::ZERO => true,
            kind::RAW => last.pack == next.pack && last.offset + last.pages * PAGE == next.offset,
            _ => {
                (last.pack, last.offset) == (next.pack, next.offset)
                    && u64::from(last.skipped) + last.pages == u64::from(next.skipped)
            }
        }
}

/// The memfd in the making: names and extents go there as they are found. There may be millions of either.
struct List {
    file: File,
    names: Filled,
    /// Held until the names are there, where nobody knows how many that will be.
    table: Filled,
    holds_table: bool,
    pages: u64,
    extents: u64,
}

/// A part of the memfd that is being filled.
struct Filled {
    /// Where the next bytes go.
    at: u64,
    bytes: Vec<u8>,
}

impl Filled {
    /// Bytes that are written at once: those of a few leaves.
    const BUFFER: usize = 128 << 10;

    fn new(at: u64) -> Self {
        Self { at, bytes: Vec::with_capacity(Self::BUFFER + LEAF_PAGES * 32) }
    }

    fn add(&mut self, file: &File, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= Self::BUFFER { self.write(file) } else { Ok(()) }
    }

    fn write(&mut self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.bytes, self.at)?;
        self.at += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}

impl List {
    /// For as many pages, where that is known.
    fn new(pages: Option<u64>) -> io::Result<Self> {
        let memfd = memfd_create("stasis-process", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let table = Filled::new(pages.unwrap_or(0).saturating_mul(32));
        let holds_table = pages.is_none();
        Ok(Self { file: memfd.into(), names: Filled::new(0), table, holds_table, pages: 0, extents: 0 })
    }

    fn add_names(&mut self, names: &[Hash]) -> io::Result<()> {
        self.pages += names.len() as u64;
        self.names.add(&self.file, names.as_flattened())
    }

    fn add_extent(&mut self, extent: &Extent) -> io::Result<()> {
        self.extents += 1;
        if self.holds_table {
            self.table.bytes.extend_from_slice(&encode(extent));
            return Ok(());
        }
        self.table.add(&self.file, &encode(extent))
    }

    fn seal(mut self) -> io::Result<OwnedFd> {
        self.names.write(&self.file)?;
        if self.holds_table {
            self.table.at = self.names.at;
        }
        self.table.write(&self.file)?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(self.file.into())
    }
}

/// An extent as `repr(C)` lays it out: it has no padding.
fn encode(extent: &Extent) -> [u8; EXTENT] {
    let mut bytes = [0; EXTENT];
    bytes[0..4].copy_from_slice(&extent.space.to_ne_bytes());
    bytes[4..8].copy_from_slice(&extent.kind.to_ne_bytes());
    bytes[8..16].copy_from_slice(&extent.first_page.to_ne_bytes());
    bytes[16..24].copy_from_slice(&extent.pages.to_ne_bytes());
    bytes[24..32].copy_from_slice(&extent.pack.to_ne_bytes());
    bytes[32..40].copy_from_slice(&extent.offset.to_ne_bytes());
    bytes[40..44].copy_from_slice(&extent.stored.to_ne_bytes());
    bytes[44..48].copy_from_slice(&extent.skipped.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_what_there_is_and_not_what_is_reserved() {
        let page = |leaf: u64| leaf * LEAF_PAGES as u64;
        let leaves: Vec<u64> =
            (10..30).chain(33..35).chain([1000, 1 << 20]).chain(1 << 21..(1 << 21) + 15).collect();
        let ranges = [(page(5), page(1 << 20) + 1), (page(1 << 20) + 1, page(1 << 22))];
        assert_eq!(much(&ranges, &leaves), [10..35, 1000..1001]);
        let whole = [(0, page(1 << 22))];
        let end = (1 << 21) + 15;
        assert_eq!(much(&whole, &leaves), [10..35, 1000..1001, 1 << 20..(1 << 20) + 1, 1 << 21..end]);
    }
}
