//! The content of objects: memory and files that exist in the checkpoint only.

use std::{
    fs::File,
    ops::Range,
    os::{fd::AsFd, unix::fs::FileExt},
};

use anyhow::{Context as _, bail};
use stasis_protocol::{
    PAGE_SIZE,
    image::Object,
    store::{Extent, kind},
};
use stasis_store::{
    hash::{BATCH, Page, PageHasher},
    unpack::Unpacker,
};

use super::{computation::Saved, descriptors::Objects};

/// Fills objects with their content, each page compared with its hash.
///
/// # Errors
/// Names the pack and page that cannot be read or is damaged.
pub fn fill(processes: &[Saved], objects: &Objects) -> anyhow::Result<()> {
    for (process, saved) in processes.iter().enumerate() {
        fill_from(process, saved, objects)?;
    }
    Ok(())
}

/// Of an object that several processes have, one has the pages.
fn fill_from(process: usize, saved: &Saved, objects: &Objects) -> anyhow::Result<()> {
    for object in &saved.image.objects {
        let Some(fd) = objects.to_fill(process, object.id) else { continue };
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        each(saved, object, |at, bytes| {
            file.write_all_at(bytes, at).context("a file or memory of the program")
        })?;
    }
    Ok(())
}

/// Gives the pages that a process has of an object, as far as the object reaches: their offset and content.
///
/// # Errors
/// Names the pack and page that cannot be read or is damaged.
pub fn each(
    saved: &Saved,
    object: &Object,
    mut take: impl FnMut(u64, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for (extent, first_hash) in saved.pages.of(object.id) {
        let pages = 0..extent.pages;
        read(saved, extent, first_hash, pages, |at, bytes| {
            let len = (object.size.saturating_sub(at)).min(bytes.len() as u64) as usize;
            take(at, &bytes[..len])
        })?;
    }
    Ok(())
}

/// Gives some of the pages of an extent, counted from its first, that are not zeros: their address or offset, and content.
///
/// # Errors
/// Names the pack and page that cannot be read or is damaged.
pub fn read(
    saved: &Saved,
    extent: &Extent,
    first_hash: usize,
    range: Range<u64>,
    mut take: impl FnMut(u64, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if extent.kind == kind::ZERO {
        return Ok(());
    }
    let (pages, hasher) = (&saved.pages, PageHasher::new(&saved.key));
    let page = PAGE_SIZE as u64;
    let path = pages.pack(extent.pack);
    let pack = File::open(&path).with_context(|| format!("the pack {}", path.display()))?;
    let mut unpacker = Unpacker::default();
    for batch in range.clone().step_by(BATCH) {
        let count = (BATCH as u64).min(range.end - batch) as usize;
        let mut bytes = vec![0u8; count * PAGE_SIZE];
        let (offset, read) = match extent.kind {
            kind::LZ4 => {
                let skipped = extent.skipped.saturating_add(batch as u32);
                let read = unpacker.read(&pack, extent.offset, extent.stored, skipped, &mut bytes);
                (extent.offset, read)
            }
            _ => {
                let offset = extent.offset + batch * page;
                (offset, pack.read_exact_at(&mut bytes, offset))
            }
        };
        read.with_context(|| format!("the pack {}, offset {offset}", path.display()))?;
        let content: Vec<&Page> = bytes.as_chunks().0.iter().collect();
        let mut names = vec![[0u8; 32]; count];
        hasher.name_pages(&content, &mut names);
        let first = first_hash + batch as usize;
        if pages.hashes.get(first..first + count) != Some(names.as_slice()) {
            bail!(
                "the pack {} is damaged near offset {offset}: run `stasis verify`, and restart from another \
                 checkpoint",
                path.display()
            );
        }
        take((extent.first_page + batch) * page, &bytes)?;
    }
    Ok(())
}
