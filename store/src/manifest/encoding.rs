//! The bytes of leaves: whole, or what differs from another one.
//!
//! Whole: `L`, version u8, pages. A difference: `D`, version u8, generation u16, name of its base 32, ranges u16, that many
//! ranges (first u16, pages u16) of pages that the base has and the leaf has not, pages. What generations are: `version`.
//!
//! Pages: groups u16; for each group (kind u8, zero u8, ranges u16, pack u32, slot u32); the ranges of all groups (first u16,
//! pages u16); the names of the pages of all groups but those of zeros. The pages of a group lie one after the other in
//! their pack: what one checkpoint has written in a leaf is one group. Version 1 of whole leaves has a group for each range:
//! runs u16, then for each run of pages (kind u8, zero u8, first u16, pages u16, pack u32, slot u32), then the names.
//!
//! All numbers are little-endian.

use stasis_protocol::store::kind;

use super::{LEAF_PAGES, Leaf, Slots, leaf::follows};
use crate::{hash::Hash, pack::Place};

const WHOLE: u8 = b'L';
const WHOLE_VERSION: u8 = 2;
const DIFFERENCE: u8 = b'D';
const DIFFERENCE_VERSION: u8 = 1;

const RUN: usize = 14;
const GROUP: usize = 12;
const RANGE: usize = 4;
const DIFFERENCE_HEAD: usize = 38;

/// A leaf as it is stored.
#[derive(Clone)]
pub enum Stored {
    Whole(Leaf),
    Difference(Difference),
}

/// What differs from another leaf.
#[derive(Clone)]
pub struct Difference {
    pub generation: u16,
    /// The name of the other one.
    pub base: Hash,
    /// Pages that it has not, or others.
    pub set: Leaf,
    /// Pages that it alone has.
    pub removed: Slots,
}

impl Stored {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Whole(leaf) => {
                let mut bytes = Vec::with_capacity(64 + leaf.len() * 34);
                bytes.extend_from_slice(&[WHOLE, WHOLE_VERSION]);
                put_pages(&mut bytes, leaf);
                bytes
            }
            Self::Difference(difference) => {
                let mut bytes = Vec::with_capacity(DIFFERENCE_HEAD + 64 + difference.set.len() * 36);
                bytes.extend_from_slice(&[DIFFERENCE, DIFFERENCE_VERSION]);
                bytes.extend_from_slice(&difference.generation.to_le_bytes());
                bytes.extend_from_slice(&difference.base);
                let removed = difference.removed.ranges();
                bytes.extend_from_slice(&(removed.len() as u16).to_le_bytes());
                removed.iter().for_each(|range| put_range(&mut bytes, range.start, range.len()));
                put_pages(&mut bytes, &difference.set);
                bytes
            }
        }
    }

    /// Reads what was stored, but for its name; `zero` is the name of a page of zeros.
    #[must_use]
    pub fn parse(bytes: &[u8], zero: &Hash) -> Option<Self> {
        match bytes {
            [WHOLE, 1, rest @ ..] => parse_runs(rest, zero).map(Self::Whole),
            [WHOLE, WHOLE_VERSION, rest @ ..] => parse_pages(rest, zero).map(Self::Whole),
            [DIFFERENCE, DIFFERENCE_VERSION, rest @ ..] => {
                let (generation, rest) = rest.split_first_chunk::<2>()?;
                let (base, rest) = rest.split_first_chunk::<32>()?;
                let (ranges, rest) = rest.split_first_chunk::<2>()?;
                let ranges = usize::from(u16::from_le_bytes(*ranges));
                let (ranges, rest) = rest.split_at_checked(ranges * RANGE)?;
                let mut removed = Slots::default();
                for range in ranges.as_chunks::<RANGE>().0 {
                    let (first, pages) = get_range(range)?;
                    (first..first + pages).for_each(|at| removed.insert(at));
                }
                Some(Self::Difference(Difference {
                    generation: u16::from_le_bytes(*generation),
                    base: *base,
                    set: parse_pages(rest, zero)?,
                    removed,
                }))
            }
            _ => None,
        }
    }

    /// The pages whose places these bytes say.
    pub fn own(&mut self) -> &mut Leaf {
        match self {
            Self::Whole(leaf) => leaf,
            Self::Difference(difference) => &mut difference.set,
        }
    }

    /// What the bytes of a leaf are a difference of, unchecked; `None`: of nothing, or they are no leaf.
    #[must_use]
    pub fn base_of(bytes: &[u8]) -> Option<Hash> {
        match bytes {
            [DIFFERENCE, DIFFERENCE_VERSION, _, _, rest @ ..] => rest.first_chunk().copied(),
            _ => None,
        }
    }

    /// The packs that the bytes of a leaf refer to, unchecked; `None` when they are no leaf.
    #[must_use]
    pub fn packs_of(bytes: &[u8]) -> Option<impl Iterator<Item = u32>> {
        // In a run and in a group, the pack is what comes before the slot.
        let (entries, size) = match bytes {
            [WHOLE, 1, rest @ ..] => (rest, RUN),
            [WHOLE, WHOLE_VERSION, rest @ ..] => (rest, GROUP),
            [DIFFERENCE, DIFFERENCE_VERSION, rest @ ..] => {
                let count = rest.get(34..36)?.first_chunk()?;
                (rest.get(36 + usize::from(u16::from_le_bytes(*count)) * RANGE..)?, GROUP)
            }
            _ => return None,
        };
        let (count, entries) = entries.split_first_chunk::<2>()?;
        let entries = entries.chunks_exact(size).take(usize::from(u16::from_le_bytes(*count)));
        Some(entries.filter_map(move |entry| {
            let pack = entry.get(size - 8..)?.first_chunk()?;
            (u32::from(*entry.first()?) != kind::ZERO).then(|| u32::from_le_bytes(*pack))
        }))
    }
}

fn put_range(bytes: &mut Vec<u8>, first: usize, pages: usize) {
    bytes.extend_from_slice(&(first as u16).to_le_bytes());
    bytes.extend_from_slice(&(pages as u16).to_le_bytes());
}

/// The first page of a range, and how many it has; all in the leaf.
fn get_range(bytes: &[u8; RANGE]) -> Option<(usize, usize)> {
    let [f0, f1, n0, n1] = *bytes;
    let first = usize::from(u16::from_le_bytes([f0, f1]));
    let pages = usize::from(u16::from_le_bytes([n0, n1]));
    (first + pages <= LEAF_PAGES).then_some((first, pages))
}

fn put_pages(bytes: &mut Vec<u8>, leaf: &Leaf) {
    struct Group {
        start: Place,
        pages: usize,
        ranges: Vec<(usize, usize)>,
    }
    let mut order: Vec<(Place, usize)> =
        leaf.present().iter().filter_map(|at| Some((leaf.get(at)?.1, at))).collect();
    order.sort_unstable();
    let mut groups: Vec<Group> = Vec::new();
    for (place, at) in &order {
        match groups.last_mut() {
            Some(group) if follows(group.start, group.pages, *place) => {
                group.pages += 1;
                match group.ranges.last_mut() {
                    Some((first, pages)) if *first + *pages == *at => *pages += 1,
                    _ => group.ranges.push((*at, 1)),
                }
            }
            _ => groups.push(Group { start: *place, pages: 1, ranges: vec![(*at, 1)] }),
        }
    }
    bytes.extend_from_slice(&(groups.len() as u16).to_le_bytes());
    for group in &groups {
        let kind = if group.start == Place::ZERO { kind::ZERO } else { kind::RAW };
        bytes.extend_from_slice(&[kind as u8, 0]);
        bytes.extend_from_slice(&(group.ranges.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&group.start.pack.to_le_bytes());
        bytes.extend_from_slice(&group.start.slot.to_le_bytes());
    }
    for (first, pages) in groups.iter().flat_map(|group| &group.ranges) {
        put_range(bytes, *first, *pages);
    }
    for (_, at) in order.iter().filter(|(place, _)| *place != Place::ZERO) {
        bytes.extend_from_slice(leaf.names(*at, 1).as_flattened());
    }
}

fn parse_pages(bytes: &[u8], zero: &Hash) -> Option<Leaf> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let (groups, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*count)) * GROUP)?;
    let groups = groups.as_chunks::<GROUP>().0;
    let ranges_of = |group: &[u8; GROUP]| usize::from(u16::from_le_bytes([group[2], group[3]]));
    let (ranges, names) = rest.split_at_checked(groups.iter().map(ranges_of).sum::<usize>() * RANGE)?;
    let mut ranges = ranges.as_chunks::<RANGE>().0.iter();
    let mut reader = Pages { leaf: Leaf::default(), names: names.as_chunks::<32>().0.iter(), zero };
    for group in groups {
        let [kind, _, _, _, p0, p1, p2, p3, s0, s1, s2, s3] = *group;
        let mut place =
            Place { pack: u32::from_le_bytes([p0, p1, p2, p3]), slot: u32::from_le_bytes([s0, s1, s2, s3]) };
        for range in ranges.by_ref().take(ranges_of(group)) {
            let (first, pages) = get_range(range)?;
            reader.take(kind, first, pages, place)?;
            place.slot = place.slot.checked_add(pages as u32)?;
        }
    }
    reader.end()
}

/// Version 1 of whole leaves.
fn parse_runs(bytes: &[u8], zero: &Hash) -> Option<Leaf> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let (runs, names) = rest.split_at_checked(usize::from(u16::from_le_bytes(*count)) * RUN)?;
    let mut reader = Pages { leaf: Leaf::default(), names: names.as_chunks::<32>().0.iter(), zero };
    for run in runs.as_chunks::<RUN>().0 {
        let [kind, _, f0, f1, n0, n1, p0, p1, p2, p3, s0, s1, s2, s3] = *run;
        let (first, pages) = get_range(&[f0, f1, n0, n1])?;
        let place =
            Place { pack: u32::from_le_bytes([p0, p1, p2, p3]), slot: u32::from_le_bytes([s0, s1, s2, s3]) };
        reader.take(kind, first, pages, place)?;
    }
    reader.end()
}

/// A leaf in the making.
struct Pages<'a> {
    leaf: Leaf,
    names: std::slice::Iter<'a, Hash>,
    zero: &'a Hash,
}

impl Pages<'_> {
    fn take(&mut self, kind: u8, first: usize, pages: usize, place: Place) -> Option<()> {
        for at in 0..pages {
            match u32::from(kind) {
                kind::ZERO => self.leaf.set(first + at, *self.zero, Place::ZERO),
                kind::RAW => {
                    let place = Place { slot: place.slot.checked_add(at as u32)?, ..place };
                    self.leaf.set(first + at, *self.names.next()?, place);
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn end(mut self) -> Option<Leaf> {
        self.names.next().is_none().then_some(self.leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Hash = [9; 32];

    fn scattered() -> Leaf {
        let mut leaf = Leaf::default();
        for at in 0..400 {
            leaf.set(at, [at as u8; 32], Place { pack: 1, slot: 10 + at as u32 });
        }
        // What a later checkpoint wrote lies together, wherever it belongs.
        for (at, slot) in [3, 50, 51, 200].into_iter().zip(700..) {
            leaf.set(at, [100; 32], Place { pack: 4, slot });
        }
        for at in [1, 2, 300, 500] {
            leaf.set(at, ZERO, Place::ZERO);
        }
        leaf.remove(100);
        leaf
    }

    #[test]
    fn leaves_and_differences_read_back() {
        let leaf = scattered();
        let bytes = Stored::Whole(leaf.clone()).encode();
        let Some(Stored::Whole(read)) = Stored::parse(&bytes, &ZERO) else { panic!("not a leaf") };
        assert_eq!(read.runs(), leaf.runs());
        assert!((0..LEAF_PAGES).all(|at| read.get(at) == leaf.get(at)));
        assert_eq!(Stored::base_of(&bytes), None);
        let packs =
            |bytes: &[u8]| Stored::packs_of(bytes).map(Iterator::collect::<std::collections::BTreeSet<_>>);
        assert_eq!(packs(&bytes), Some([1, 4].into()));

        let mut removed = Slots::default();
        [7, 8, 9, 511].into_iter().for_each(|at| removed.insert(at));
        let difference = Difference { generation: 5, base: [8; 32], set: leaf, removed };
        let bytes = Stored::Difference(difference.clone()).encode();
        assert_eq!((Stored::base_of(&bytes), packs(&bytes)), (Some([8; 32]), Some([1, 4].into())));
        let Some(Stored::Difference(read)) = Stored::parse(&bytes, &ZERO) else { panic!("not a difference") };
        assert_eq!((read.generation, read.base, read.removed), (5, [8; 32], removed));
        assert!((0..LEAF_PAGES).all(|at| read.set.get(at) == difference.set.get(at)));
    }

    #[test]
    fn few_new_pages_are_few_bytes() {
        let mut set = Leaf::default();
        for (at, slot) in [3, 90, 170, 300, 480].into_iter().zip(50..) {
            set.set(at, [at as u8; 32], Place { pack: 4, slot });
        }
        let difference = Difference { generation: 1, base: [8; 32], set, removed: Slots::default() };
        assert_eq!(
            Stored::Difference(difference).encode().len(),
            DIFFERENCE_HEAD + 2 + GROUP + 5 * (RANGE + 32)
        );
    }

    #[test]
    fn leaves_of_the_first_version_are_read() {
        let mut bytes = vec![WHOLE, 1, 3, 0];
        for (kind, first, pages, slot) in [(0u8, 5u16, 2u16, 40u32), (1, 7, 3, 0), (0, 100, 1, 90)] {
            bytes.extend_from_slice(&[kind, 0]);
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&pages.to_le_bytes());
            bytes.extend_from_slice(&u32::from(kind == 0).to_le_bytes());
            bytes.extend_from_slice(&slot.to_le_bytes());
        }
        [[1; 32], [2; 32], [3; 32]].iter().for_each(|name| bytes.extend_from_slice(name));
        assert_eq!(Stored::packs_of(&bytes).map(Iterator::collect::<Vec<_>>), Some(vec![1, 1]));
        let Some(Stored::Whole(leaf)) = Stored::parse(&bytes, &ZERO) else { panic!("not a leaf") };
        assert_eq!(leaf.len(), 6);
        assert_eq!(leaf.get(6), Some((&[2; 32], Place { pack: 1, slot: 41 })));
        assert_eq!(leaf.get(9), Some((&ZERO, Place::ZERO)));
        assert_eq!(leaf.get(100), Some((&[3; 32], Place { pack: 1, slot: 90 })));
    }
}
