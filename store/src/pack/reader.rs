//! Reading packs: pages by place, footers from the last to the first.
//!
//! Not here: which pages make a process (`manifest`).

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use stasis_protocol::store::kind;

use super::{
    Form, PAGE, Place,
    footer::{Footer, Run, check_header, run_count, sound_runs, table_len, trailer},
    map::SlotMap,
    number, path,
};
use crate::{catalog::Catalog, error::StoreError, hash::PAGE_SIZE, unpack::Unpacker};

/// Open packs of one directory, for reading.
pub struct PackReader {
    packs: PathBuf,
    open: HashMap<u32, (File, Form)>,
    /// Of compressed packs.
    maps: HashMap<u32, SlotMap>,
    unpacker: Unpacker,
}

/// Pages with slots one after the other, and what there is of them in one piece.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// See [`kind`].
    pub kind: u32,
    pub pages: usize,
    /// Where the first lies, or the block, in bytes.
    pub offset: u64,
    /// Bytes of the block; 0: raw.
    pub stored: u32,
    /// Pages of the block before the first.
    pub skipped: u32,
}

/// How many packs a reader keeps open.
const KEPT_OPEN: usize = 64;

/// Of how many it keeps the map: 100 KiB each.
const KEPT_MAPS: usize = 32;

impl PackReader {
    #[must_use]
    pub fn new(packs: &Path) -> Self {
        Self {
            packs: packs.to_owned(),
            open: HashMap::new(),
            maps: HashMap::new(),
            unpacker: Unpacker::default(),
        }
    }

    /// Where the first of `pages` pages lies that have slots one after the other from `place` on, and those behind it that
    /// lie with it.
    ///
    /// # Errors
    /// A footer is damaged that says so.
    pub fn stretch(&mut self, catalog: &Catalog, place: Place, pages: usize) -> Result<Stretch, StoreError> {
        let (form, end) = match catalog.pack(place.pack) {
            Some(record) => (record.form, record.committed),
            None => self.given_up(place.pack)?,
        };
        if form == Form::Plain {
            return Ok(Stretch { kind: kind::RAW, pages, offset: place.offset(), stored: 0, skipped: 0 });
        }
        if self.maps.get(&place.pack).is_none_or(|map| map.find(place.slot).is_none()) {
            // The pack may have grown since.
            let map = SlotMap::new(self.runs(place.pack, end)?);
            if self.maps.len() >= KEPT_MAPS {
                self.maps.clear();
            }
            self.maps.insert(place.pack, map);
        }
        let found = self.maps.get(&place.pack).and_then(|map| map.find(place.slot));
        let Some((run, skipped)) = found else {
            return Err(StoreError::Damaged(format!(
                "{}: no footer says where page {} of it lies",
                path(&self.packs, place.pack).display(),
                place.slot
            )));
        };
        let pages = pages.min((run.pages - skipped) as usize);
        Ok(match run.kind {
            kind::RAW => {
                let offset = run.offset + u64::from(skipped) * PAGE;
                Stretch { kind: kind::RAW, pages, offset, stored: 0, skipped: 0 }
            }
            kind => Stretch { kind, pages, offset: run.offset, stored: run.stored, skipped },
        })
    }

    /// Reads pages that have slots one after the other from `place` on, as many as `buffer` takes.
    ///
    /// # Errors
    /// As [`PackReader::read`]; a block is damaged.
    pub fn read_pages(
        &mut self,
        catalog: &Catalog,
        place: Place,
        mut buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        let mut slot = place.slot;
        while !buffer.is_empty() {
            let pages = buffer.len() / PAGE_SIZE;
            let stretch = self.stretch(catalog, Place { slot, ..place }, pages)?;
            let (now, rest) = buffer.split_at_mut(stretch.pages * PAGE_SIZE);
            if stretch.kind == kind::RAW {
                self.read(place.pack, stretch.offset, now)?;
            } else {
                self.open(place.pack)?;
                let path = path(&self.packs, place.pack);
                let (file, _) = self.open.get(&place.pack).ok_or_else(|| gone(&path))?;
                self.unpacker
                    .read(file, stretch.offset, stretch.stored, stretch.skipped, now)
                    .map_err(StoreError::io("cannot read a block of", &path))?;
            }
            slot += stretch.pages as u32;
            buffer = rest;
        }
        Ok(())
    }

    /// Reads `buffer.len()` bytes at `offset` of a pack.
    ///
    /// # Errors
    /// The pack is not there, cannot be read, is too short, or is no pack.
    pub fn read(&mut self, pack: u32, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.open(pack)?;
        let path = path(&self.packs, pack);
        let (file, _) = self.open.get(&pack).ok_or_else(|| gone(&path))?;
        file.read_exact_at(buffer, offset).map_err(StoreError::io("cannot read", &path))
    }

    fn open(&mut self, pack: u32) -> Result<(), StoreError> {
        if self.open.contains_key(&pack) {
            return Ok(());
        }
        if self.open.len() >= KEPT_OPEN {
            self.open.clear();
        }
        let path = path(&self.packs, pack);
        let file = File::open(&path).map_err(StoreError::io("cannot open", &path))?;
        let mut page = [0; PAGE_SIZE];
        file.read_exact_at(&mut page, 0).map_err(StoreError::io("cannot read", &path))?;
        let form = check_header(&page, pack)
            .map_err(|problem| StoreError::Damaged(format!("{}: {problem}", path.display())))?;
        self.open.insert(pack, (file, form));
        Ok(())
    }

    /// The form and the length in bytes of a pack of which the catalog knows nothing: what a collection has given up is
    /// what it was while it can be opened, and grows no more.
    fn given_up(&mut self, pack: u32) -> Result<(Form, u64), StoreError> {
        self.open(pack)?;
        let path = path(&self.packs, pack);
        let (file, form) = self.open.get(&pack).ok_or_else(|| gone(&path))?;
        let metadata = file.metadata().map_err(StoreError::io("cannot look at", &path))?;
        Ok((*form, metadata.len()))
    }

    /// The footers of a pack, from the one that ends at `end` down to the one whose segment starts at
    /// or before `from`, both in bytes.
    ///
    /// # Errors
    /// A footer is missing or damaged, or the pack cannot be read.
    pub fn footers(&mut self, pack: u32, from: u64, end: u64) -> Result<Vec<Footer>, StoreError> {
        let file = path(&self.packs, pack);
        let damaged = |problem: String| StoreError::Damaged(format!("{}: {problem}", file.display()));
        let mut footers = Vec::new();
        let mut at = end;
        while at > from {
            let (start, segment) = self.trailer(pack, at)?;
            let mut bytes = vec![0; (at - start) as usize];
            self.read(pack, start, &mut bytes)?;
            let footer = Footer::decode(&bytes).map_err(damaged)?;
            at = segment;
            footers.push(footer);
        }
        Ok(footers)
    }

    /// What the footers up to `end` say of where pages lie. One in which a bit has flipped is believed, since whoever reads
    /// a page compares it with its name: else that bit would cost all of a segment's pages.
    fn runs(&mut self, pack: u32, end: u64) -> Result<Vec<Run>, StoreError> {
        let mut runs = Vec::new();
        let mut at = end;
        while at > PAGE {
            let (start, segment) = self.trailer(pack, at)?;
            let mut bytes = vec![0; table_len(0).min((at - start) as usize)];
            self.read(pack, start, &mut bytes)?;
            bytes.resize(table_len(run_count(&bytes)).min((at - start) as usize), 0);
            self.read(pack, start, &mut bytes)?;
            runs.extend(sound_runs(&bytes, segment, start));
            at = segment;
        }
        Ok(runs)
    }

    /// Where the footer that ends at `at` starts, and where its segment does.
    fn trailer(&mut self, pack: u32, at: u64) -> Result<(u64, u64), StoreError> {
        let file = path(&self.packs, pack);
        let damaged = |problem: String| StoreError::Damaged(format!("{}: {problem}", file.display()));
        let missing = || damaged(format!("there is no footer before offset {at}"));
        if !at.is_multiple_of(PAGE) || at < 2 * PAGE {
            return Err(missing());
        }
        let mut last = [0; PAGE_SIZE];
        self.read(pack, at - PAGE, &mut last)?;
        let (start, segment) = trailer(&last).ok_or_else(missing)?;
        if start >= at || segment >= start || segment < PAGE || at - start > Footer::longest() {
            return Err(damaged(format!("the footer before offset {at} contradicts itself")));
        }
        Ok((start, segment))
    }
}

fn gone(path: &Path) -> StoreError {
    StoreError::Damaged(format!("{} cannot be opened", path.display()))
}

/// The packs in the directory `packs`, by number.
///
/// # Errors
/// The directory cannot be read.
pub fn list(packs: &Path) -> Result<Vec<u32>, StoreError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(packs).map_err(StoreError::io("cannot list", packs))? {
        let entry = entry.map_err(StoreError::io("cannot list", packs))?;
        numbers.extend(entry.file_name().to_str().and_then(number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
