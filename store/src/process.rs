//! Handing out a dumped process: its pages' places and names, in a memfd.
//!
//! The places come from the leaves; the index of pages is asked only for those whose pack is gone. Whoever
//! reads the pages checks them against their names.

use std::{
    fs::File,
    io::{BufWriter, Write},
    os::fd::OwnedFd,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use stasis_protocol::store::{Extent, Hash, kind};

use crate::{
    error::StoreError,
    manifest::{Manifest, Reader},
    pack::{PAGE, Place},
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
    let mut extents: Vec<Extent> = Vec::new();
    let not_written = |error| StoreError::io("cannot make a memfd for", store.directory().path())(error);
    let mut names = Names::new().map_err(not_written)?;
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
                names.add(leaf.names(run.first, run.pages)).map_err(not_written)?;
                let extent = Extent {
                    space: root.space,
                    kind: if run.place == Place::ZERO { kind::ZERO } else { kind::RAW },
                    first_page: first + run.first as u64,
                    pages: run.pages as u64,
                    pack: u64::from(run.place.pack),
                    offset: run.place.offset(),
                };
                match extents.last_mut() {
                    Some(last) if continues(last, &extent) => last.pages += extent.pages,
                    _ => extents.push(extent),
                }
            }
            Ok(())
        })?;
    }
    let pages = names.pages;
    let memfd = names.seal(&extents).map_err(not_written)?;
    Ok(Listing { record: manifest.record, memfd, extents: extents.len() as u64, pages })
}

/// Whether `next` comes right behind `last`, in its space and in its pack.
fn continues(last: &Extent, next: &Extent) -> bool {
    last.space == next.space
        && last.kind == next.kind
        && last.first_page + last.pages == next.first_page
        && (last.kind == kind::ZERO
            || last.pack == next.pack && last.offset + last.pages * PAGE == next.offset)
}

/// The memfd in the making: names go there as they are found, without being collected first.
struct Names {
    file: BufWriter<File>,
    pages: u64,
}

impl Names {
    /// Bytes that are written at once: those of a few leaves.
    const BUFFER: usize = 128 << 10;

    fn new() -> std::io::Result<Self> {
        let memfd = memfd_create("stasis-process", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        Ok(Self { file: BufWriter::with_capacity(Self::BUFFER, memfd.into()), pages: 0 })
    }

    fn add(&mut self, names: &[Hash]) -> std::io::Result<()> {
        self.pages += names.len() as u64;
        self.file.write_all(names.as_flattened())
    }

    fn seal(mut self, extents: &[Extent]) -> std::io::Result<OwnedFd> {
        let table: Vec<u8> = extents.iter().flat_map(encode).collect();
        self.file.write_all(&table)?;
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file.into())
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
    bytes
}
