//! Reading packs: pages by place, footers from the last to the first.
//!
//! Not here: which pages make a process (`manifest`).

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    FULL, PAGE,
    footer::{Footer, check_header, trailer},
    number, path,
};
use crate::{error::StoreError, hash::PAGE_SIZE};

/// Open packs of one directory, for reading.
pub struct PackReader {
    packs: PathBuf,
    open: HashMap<u32, File>,
}

/// How many packs a reader keeps open.
const KEPT_OPEN: usize = 64;

impl PackReader {
    #[must_use]
    pub fn new(packs: &Path) -> Self {
        Self { packs: packs.to_owned(), open: HashMap::new() }
    }

    /// Reads `buffer.len()` bytes at `offset` of a pack.
    ///
    /// # Errors
    /// The pack is not there, cannot be read, is too short, or is no pack.
    pub fn read(&mut self, pack: u32, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let path = path(&self.packs, pack);
        if !self.open.contains_key(&pack) {
            if self.open.len() >= KEPT_OPEN {
                self.open.clear();
            }
            let file = File::open(&path).map_err(StoreError::io("cannot open", &path))?;
            let mut page = [0; PAGE_SIZE];
            file.read_exact_at(&mut page, 0).map_err(StoreError::io("cannot read", &path))?;
            check_header(&page, pack)
                .map_err(|problem| StoreError::Damaged(format!("{}: {problem}", path.display())))?;
            self.open.insert(pack, file);
        }
        let Some(file) = self.open.get(&pack) else {
            return Err(StoreError::Damaged(format!("{} cannot be opened", path.display())));
        };
        file.read_exact_at(buffer, offset).map_err(StoreError::io("cannot read", &path))
    }

    /// The footers of a pack, from the one that ends at `end` down to the one whose segment starts at
    /// or before `from`, both in bytes.
    ///
    /// # Errors
    /// A footer is missing or damaged, or the pack cannot be read.
    pub fn footers(&mut self, pack: u32, from: u64, end: u64) -> Result<Vec<Footer>, StoreError> {
        let file = path(&self.packs, pack);
        let damaged = |problem: String| StoreError::Damaged(format!("{}: {problem}", file.display()));
        let missing = |at: u64| damaged(format!("there is no footer before offset {at}"));
        let longest = Footer::len_for((FULL / PAGE) as usize + 1);
        let mut footers = Vec::new();
        let mut at = end;
        while at > from {
            if !at.is_multiple_of(PAGE) || at < 2 * PAGE {
                return Err(missing(at));
            }
            let mut last = [0; PAGE_SIZE];
            self.read(pack, at - PAGE, &mut last)?;
            let (start, segment) = trailer(&last).ok_or_else(|| missing(at))?;
            if start >= at || segment >= start || segment < PAGE || at - start > longest {
                return Err(damaged(format!("the footer before offset {at} contradicts itself")));
            }
            let mut bytes = vec![0; (at - start) as usize];
            self.read(pack, start, &mut bytes)?;
            let footer = Footer::decode(&bytes).map_err(damaged)?;
            at = segment;
            footers.push(footer);
        }
        Ok(footers)
    }
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
