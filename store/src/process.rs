//! Handing out a dumped process: its pages' places and names, in a memfd.
//!
//! The places come from the leaves; the index of pages is asked only for those whose pack is gone. Whoever
//! reads the pages checks them against their names.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use stasis_protocol::store::{Extent, Hash, kind};

use crate::{
    error::StoreError,
    manifest::{LEAF_PAGES, Manifest, Reader},
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
    pub record: Vec<u8>,
    /// A sealed memfd: `pages` names, then `extents` extents.
    pub memfd: OwnedFd,
    pub extents: u64,
    pub pages: u64,
}

/// Lists the pages of the process called `manifest`. Who is told needs a [`crate::lease::Lease`] from before.
///
/// # Errors
/// It is not in the store, or a part of its manifest is damaged (named in the error).
pub fn list(store: &Store, manifest: &Hash) -> Result<Listing, StoreError> {
    let manifest = Manifest::load(store.index(), store.node_names(), manifest)?;
    let not_written = |error| StoreError::io("cannot make a memfd for", store.directory().path())(error);
    let expected = manifest.roots.iter().map(|root| root.pages).sum();
    let mut list = List::new(expected).map_err(not_written)?;
    let mut last: Option<Extent> = None;
    let mut packs = PackReader::new(&store.directory().packs());
    let mut reader = Reader::new(store.index(), store.node_names(), store.hasher().zero());
    for root in &manifest.roots {
        reader.each_leaf(root.name, &mut |_| true, &mut |first, _, leaf| {
            let leaf = leaf.map_err(|error| match error {
                StoreError::Damaged(problem) => StoreError::Damaged(format!(
                    "{problem}: the pages from {first:#x} on (space {}) cannot be found; `stasis verify` lists all damage",
                    root.space
                )),
                other => other,
            })?;
            let mut leaf = leaf.into_leaf();
            store.catalog().correct_to_read(&mut leaf)?;
            for run in leaf.runs() {
                list.add_names(leaf.names(run.first, run.pages)).map_err(not_written)?;
                let mut at = 0;
                while at < run.pages {
                    let Stretch { kind, pages, offset, stored, skipped } = match run.place {
                        Place::ZERO => {
                            Stretch { kind: kind::ZERO, pages: run.pages, offset: 0, stored: 0, skipped: 0 }
                        }
                        place => {
                            let place = Place { slot: place.slot + at as u32, ..place };
                            packs.stretch(store.catalog(), place, run.pages - at)?
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
    }
    last.map_or(Ok(()), |extent| list.add_extent(&extent)).map_err(not_written)?;
    let (pages, extents) = (list.pages, list.extents);
    if pages != expected {
        let problem = format!("the manifest names {pages} pages and says that there are {expected}");
        return Err(StoreError::Damaged(problem));
    }
    let memfd = list.seal().map_err(not_written)?;
    Ok(Listing { record: manifest.record, memfd, extents, pages })
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
    names: Part,
    table: Part,
    pages: u64,
    extents: u64,
}

/// A part of the memfd that is being filled.
struct Part {
    /// Where the next bytes go.
    at: u64,
    bytes: Vec<u8>,
}

impl Part {
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
    /// For as many pages.
    fn new(pages: u64) -> io::Result<Self> {
        let memfd = memfd_create("stasis-process", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let table = Part::new(pages.saturating_mul(32));
        Ok(Self { file: memfd.into(), names: Part::new(0), table, pages: 0, extents: 0 })
    }

    fn add_names(&mut self, names: &[Hash]) -> io::Result<()> {
        self.pages += names.len() as u64;
        self.names.add(&self.file, names.as_flattened())
    }

    fn add_extent(&mut self, extent: &Extent) -> io::Result<()> {
        self.extents += 1;
        self.table.add(&self.file, &encode(extent))
    }

    fn seal(mut self) -> io::Result<OwnedFd> {
        self.names.write(&self.file)?;
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
