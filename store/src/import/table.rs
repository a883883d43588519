//! The pages of a stream by number: their names and places, in a file without a name. There may be more than memory has
//! room for.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{directory::Directory, error::StoreError, hash::Hash, pack::Place};

const ENTRY: usize = 40;

/// Entries that are written together.
const AT_ONCE: usize = 4096;

pub struct PageTable {
    file: File,
    len: u64,
    /// The last entries, which have not been written.
    tail: Vec<u8>,
}

impl PageTable {
    /// # Errors
    /// There can be no file.
    pub fn new(directory: &Directory) -> Result<Self, StoreError> {
        let file = directory.scratch()?;
        Ok(Self { file, len: 0, tail: Vec::with_capacity(AT_ONCE * ENTRY) })
    }

    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// # Errors
    /// It cannot be written.
    pub fn push(&mut self, name: &Hash, place: Place) -> io::Result<()> {
        self.tail.extend_from_slice(name);
        self.tail.extend_from_slice(&place.pack.to_le_bytes());
        self.tail.extend_from_slice(&place.slot.to_le_bytes());
        self.len += 1;
        if self.tail.len() == AT_ONCE * ENTRY {
            let written = self.len - AT_ONCE as u64;
            self.file.write_all_at(&self.tail, written * ENTRY as u64)?;
            self.tail.clear();
        }
        Ok(())
    }

    /// The pages from number `first` on; `None` where there are not so many.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get(&self, first: u64, pages: usize) -> io::Result<Option<Vec<(Hash, Place)>>> {
        if first.checked_add(pages as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let written = self.len - (self.tail.len() / ENTRY) as u64;
        let in_file = written.saturating_sub(first).min(pages as u64) as usize * ENTRY;
        let mut bytes = vec![0; pages * ENTRY];
        let (from_file, from_tail) = bytes.split_at_mut(in_file);
        self.file.read_exact_at(from_file, first * ENTRY as u64)?;
        let at = first.saturating_sub(written) as usize * ENTRY;
        from_tail.copy_from_slice(&self.tail[at..at + from_tail.len()]);
        Ok(Some(bytes.as_chunks::<ENTRY>().0.iter().filter_map(entry).collect()))
    }
}

fn entry(bytes: &[u8; ENTRY]) -> Option<(Hash, Place)> {
    let (name, place) = bytes.split_first_chunk::<32>()?;
    let (pack, slot) = place.split_first_chunk::<4>()?;
    let slot = u32::from_le_bytes(*slot.first_chunk()?);
    Some((*name, Place { pack: u32::from_le_bytes(*pack), slot }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_by_number_written_or_not() {
        let directory = tempfile::tempdir().unwrap();
        let directory = Directory::open(&directory.path().join("store"), false).unwrap();
        let mut table = PageTable::new(&directory).unwrap();
        let page = |number: u32| ([number as u8; 32], Place { pack: number, slot: number + 1 });
        let count = 2 * AT_ONCE as u32 + 10;
        for number in 0..count {
            let (name, place) = page(number);
            table.push(&name, place).unwrap();
        }
        for first in [0, 1, AT_ONCE as u32 - 3, 2 * AT_ONCE as u32 - 3, 2 * AT_ONCE as u32 + 3, count - 7] {
            let pages = table.get(u64::from(first), 7).unwrap().unwrap();
            assert_eq!(pages, (first..first + 7).map(page).collect::<Vec<_>>());
        }
        assert_eq!((table.len(), table.get(u64::from(count) - 6, 7).unwrap()), (u64::from(count), None));
        assert_eq!(table.get(u64::MAX, 7).unwrap(), None);
    }
}
