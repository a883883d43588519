//! A leaf: up to 512 pages, their names and where they lie.
//!
//! Encoded: `L`, version u8, runs u16, then for each run of pages (kind u8, zero u8, first u16,
//! pages u16, pack u32, slot u32), then the names of the pages of all runs but those of zeros.

use stasis_protocol::store::kind;

use super::NodeNames;
use crate::{
    error::{StoreError, hex},
    hash::Hash,
    pack::Place,
};

/// Pages per leaf, and children per node above.
pub const LEAF_PAGES: usize = 512;

const TAG: u8 = b'L';
const VERSION: u8 = 1;
const RUN: usize = 14;

/// The pages of 2 MiB of a space.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    present: [u64; LEAF_PAGES / 64],
    /// Empty, or one entry for each of the [`LEAF_PAGES`]: an emptied leaf costs nothing.
    names: Vec<Hash>,
    places: Vec<Place>,
}

/// Pages one after the other, in a leaf and in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafRun {
    pub first: usize,
    pub pages: usize,
    /// Of the first page; the others follow it, unless it is [`Place::ZERO`].
    pub place: Place,
}

impl Default for Leaf {
    fn default() -> Self {
        Self { present: [0; LEAF_PAGES / 64], names: Vec::new(), places: Vec::new() }
    }
}

impl Leaf {
    /// Whether there is a page at `at`, counted from the leaf's first.
    #[must_use]
    pub fn contains(&self, at: usize) -> bool {
        self.present[at / 64] >> (at % 64) & 1 == 1
    }

    /// The name and the place of the page at `at`.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<(&Hash, Place)> {
        self.contains(at).then(|| (&self.names[at], self.places[at]))
    }

    pub fn set(&mut self, at: usize, name: Hash, place: Place) {
        if self.names.is_empty() {
            self.names = vec![[0; 32]; LEAF_PAGES];
            self.places = vec![Place::ZERO; LEAF_PAGES];
        }
        self.present[at / 64] |= 1 << (at % 64);
        self.names[at] = name;
        self.places[at] = place;
    }

    /// Makes a hole of the page at `at`.
    pub fn remove(&mut self, at: usize) {
        self.present[at / 64] &= !(1 << (at % 64));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.present == [0; LEAF_PAGES / 64]
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.present.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The pages in order, as long runs as can be.
    #[must_use]
    pub fn runs(&self) -> Vec<LeafRun> {
        let mut runs: Vec<LeafRun> = Vec::new();
        for at in 0..LEAF_PAGES {
            let Some((_, place)) = self.get(at) else { continue };
            if let Some(run) = runs.last_mut()
                && run.first + run.pages == at
                && follows(run.place, run.pages, place)
            {
                run.pages += 1;
            } else {
                runs.push(LeafRun { first: at, pages: 1, place });
            }
        }
        runs
    }

    /// What the leaf is called: the hash of which pages it has and of their names.
    #[must_use]
    pub fn name(&self, names: &NodeNames) -> Hash {
        // In one piece: a hasher that is given parts hashes most of a leaf block by block.
        let mut bytes = Vec::with_capacity(1 + size_of_val(&self.present) + LEAF_PAGES * 32);
        bytes.push(TAG);
        for word in self.present {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for run in self.runs() {
            bytes.extend_from_slice(self.names[run.first..run.first + run.pages].as_flattened());
        }
        names.name(&bytes)
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let runs = self.runs();
        let mut bytes = Vec::with_capacity(4 + runs.len() * RUN + self.len() * 32);
        bytes.extend_from_slice(&[TAG, VERSION]);
        bytes.extend_from_slice(&(runs.len() as u16).to_le_bytes());
        for run in &runs {
            let kind = if run.place == Place::ZERO { kind::ZERO } else { kind::RAW };
            bytes.extend_from_slice(&[kind as u8, 0]);
            bytes.extend_from_slice(&(run.first as u16).to_le_bytes());
            bytes.extend_from_slice(&(run.pages as u16).to_le_bytes());
            bytes.extend_from_slice(&run.place.pack.to_le_bytes());
            bytes.extend_from_slice(&run.place.slot.to_le_bytes());
        }
        for run in runs.iter().filter(|run| run.place != Place::ZERO) {
            bytes.extend_from_slice(self.names[run.first..run.first + run.pages].as_flattened());
        }
        bytes
    }

    /// Reads a leaf back and checks that it is the one called `name`; `zero` is the name of a page of
    /// zeros.
    ///
    /// # Errors
    /// It is not.
    pub fn decode(bytes: &[u8], name: &Hash, names: &NodeNames, zero: &Hash) -> Result<Self, StoreError> {
        let leaf = Self::parse(bytes, zero).ok_or("cannot be read");
        match leaf {
            Ok(leaf) if leaf.name(names) == *name => Ok(leaf),
            Ok(_) => Err("does not have its hash"),
            Err(problem) => Err(problem),
        }
        .map_err(|problem| StoreError::Damaged(format!("the manifest leaf {} {problem}", hex(name))))
    }

    /// The packs that the bytes of a leaf refer to, unchecked; `None` when they are no leaf.
    #[must_use]
    pub fn packs_of(bytes: &[u8]) -> Option<impl Iterator<Item = u32>> {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        if head[..2] != [TAG, VERSION] {
            return None;
        }
        let runs = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let table = rest.as_chunks::<RUN>().0.iter().take(runs);
        Some(table.filter_map(|run| {
            let [raw, _, _, _, _, _, p0, p1, p2, p3, ..] = *run;
            (u32::from(raw) != kind::ZERO).then(|| u32::from_le_bytes([p0, p1, p2, p3]))
        }))
    }

    fn parse(bytes: &[u8], zero: &Hash) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        if head[..2] != [TAG, VERSION] {
            return None;
        }
        let runs = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let (table, page_names) = rest.split_at_checked(runs * RUN)?;
        let mut page_names = page_names.as_chunks::<32>().0.iter();
        let mut leaf = Self::default();
        for run in table.as_chunks::<RUN>().0 {
            let [raw, _, f0, f1, n0, n1, p0, p1, p2, p3, s0, s1, s2, s3] = *run;
            let first = usize::from(u16::from_le_bytes([f0, f1]));
            let pages = usize::from(u16::from_le_bytes([n0, n1]));
            let (pack, slot) = (u32::from_le_bytes([p0, p1, p2, p3]), u32::from_le_bytes([s0, s1, s2, s3]));
            let is_zero = u32::from(raw) == kind::ZERO;
            if first + pages > LEAF_PAGES || !is_zero && u32::from(raw) != kind::RAW {
                return None;
            }
            for at in 0..pages {
                if is_zero {
                    leaf.set(first + at, *zero, Place::ZERO);
                } else {
                    let place = Place { pack, slot: slot.checked_add(at as u32)? };
                    leaf.set(first + at, *page_names.next()?, place);
                }
            }
        }
        page_names.next().is_none().then_some(leaf)
    }

    /// The names of pages `first..first + pages`.
    #[must_use]
    pub fn names(&self, first: usize, pages: usize) -> &[Hash] {
        &self.names[first..first + pages]
    }
}

/// Whether `place` comes right behind `pages` pages from `start` on.
fn follows(start: Place, pages: usize, place: Place) -> bool {
    if start == Place::ZERO || place == Place::ZERO {
        start == place
    } else {
        start.pack == place.pack && u64::from(start.slot) + pages as u64 == u64::from(place.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_reads_back_and_its_name_ignores_places() {
        let names = NodeNames::new(&[1; 32]);
        let zero = [9; 32];
        let mut leaf = Leaf::default();
        for at in [0, 1, 2, 63, 64, 100, 511] {
            leaf.set(at, *blake3::hash(&[at as u8]).as_bytes(), Place { pack: 1, slot: 1 + at as u32 });
        }
        leaf.set(3, zero, Place::ZERO);
        leaf.set(4, zero, Place::ZERO);
        leaf.set(5, [5; 32], Place { pack: 2, slot: 1 });
        leaf.remove(5);
        let name = leaf.name(&names);
        let read = Leaf::decode(&leaf.encode(), &name, &names, &zero).unwrap();
        assert!(read == leaf || read.runs() == leaf.runs());
        assert_eq!(leaf.len(), 9);
        assert_eq!(leaf.runs().len(), 5, "{:?}", leaf.runs());

        let mut moved = leaf.clone();
        moved.set(0, *blake3::hash(&[0]).as_bytes(), Place { pack: 7, slot: 70 });
        assert_eq!(moved.name(&names), name);

        let mut other = leaf.clone();
        other.remove(0);
        assert_ne!(other.name(&names), name);
        let mut damaged = leaf.encode();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(Leaf::decode(&damaged, &name, &names, &zero).is_err());
    }
}
