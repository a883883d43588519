//! Handing out a dumped process: its pages' places and names, in a memfd.
//!
//! The places come from the leaves; the index of pages is asked only for those whose pack is gone. Whoever
//! reads the pages checks them against their names.

use std::{fs::File, io::Write, os::fd::OwnedFd};

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
    /// A sealed memfd: `extents` extents, then `pages` names.
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
    let mut names: Vec<u8> = Vec::new();
    let mut reader = Reader::new(store.index(), store.node_names(), store.hasher().zero());
    for root in &manifest.roots {
        reader.each_leaf(root.name, &mut |_| true, &mut |first, _, leaf| {
            let mut leaf = leaf.map_err(|error| match error {
                StoreError::Damaged(problem) => StoreError::Damaged(format!(
                    "{problem}: the pages from {first:#x} on (space {}) cannot be found; `stasis verify` lists all damage",
                    root.space
                )),
                other => other,
            })?;
            store.catalog().correct_to_read(&mut leaf)?;
            for run in leaf.runs() {
                names.extend_from_slice(leaf.names(run.first, run.pages).as_flattened());
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
    let pages = (names.len() / 32) as u64;
    let memfd = sealed(&extents, &names)
        .map_err(StoreError::io("cannot make a memfd for", store.directory().path()))?;
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

fn sealed(extents: &[Extent], names: &[u8]) -> std::io::Result<OwnedFd> {
    let memfd = memfd_create("stasis-process", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(memfd);
    let table: Vec<u8> = extents.iter().flat_map(encode).collect();
    file.write_all(&table)?;
    file.write_all(names)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
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
