//! Sets of places: a bit for each page of each pack, 32 KiB for each GiB.

use std::collections::BTreeMap;

use super::{Place, SLOTS};

#[derive(Clone, Debug, Default)]
pub struct PlaceSet {
    packs: BTreeMap<u32, Vec<u64>>,
}

impl PlaceSet {
    /// Adds `pages` places one after the other, from `first` on.
    pub fn insert(&mut self, first: Place, pages: usize) {
        if first == Place::ZERO {
            return;
        }
        // What claims to lie elsewhere is nowhere.
        let start = u64::from(first.slot).min(SLOTS) as usize;
        let end = (u64::from(first.slot) + pages as u64).min(SLOTS) as usize;
        let words = self.packs.entry(first.pack).or_default();
        if words.len() < end.div_ceil(64) {
            words.resize(end.div_ceil(64), 0);
        }
        for slot in start..end {
            words[slot / 64] |= 1 << (slot % 64);
        }
    }

    #[must_use]
    pub fn contains(&self, place: Place) -> bool {
        let word = self.packs.get(&place.pack).and_then(|words| words.get(place.slot as usize / 64));
        word.is_some_and(|word| word >> (place.slot % 64) & 1 == 1)
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        for (pack, theirs) in &other.packs {
            let ours = self.packs.entry(*pack).or_default();
            if ours.len() < theirs.len() {
                ours.resize(theirs.len(), 0);
            }
            for (ours, theirs) in ours.iter_mut().zip(theirs) {
                *ours |= theirs;
            }
        }
    }

    /// Adds what both `a` and `b` have.
    pub fn extend_common(&mut self, a: &Self, b: &Self) {
        for (pack, a) in &a.packs {
            let Some(b) = b.packs.get(pack) else { continue };
            let ours = self.packs.entry(*pack).or_default();
            if ours.len() < a.len().min(b.len()) {
                ours.resize(a.len().min(b.len()), 0);
            }
            for ((ours, a), b) in ours.iter_mut().zip(a).zip(b) {
                *ours |= a & b;
            }
        }
    }

    /// Removes a place.
    pub fn remove(&mut self, place: Place) {
        let words = self.packs.get_mut(&place.pack);
        if let Some(word) = words.and_then(|words| words.get_mut(place.slot as usize / 64)) {
            *word &= !(1 << (place.slot % 64));
        }
        if self.in_pack(place.pack) == 0 {
            self.remove_pack(place.pack);
        }
    }

    /// Removes the places of a pack.
    pub fn remove_pack(&mut self, pack: u32) {
        self.packs.remove(&pack);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// The places of a pack: first slots, and how many there are from each on.
    #[must_use]
    pub fn runs(&self, pack: u32) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let words = self.packs.get(&pack).map_or(0, Vec::len);
        for slot in (0..words as u32 * 64).filter(|slot| self.contains(Place { pack, slot: *slot })) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == slot => *count += 1,
                _ => runs.push((slot, 1)),
            }
        }
        runs
    }

    /// How many places there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.packs.values().map(|words| ones(words)).sum()
    }

    /// How many of them `other` does not have, by pack.
    pub fn counts_without(&self, other: &Self) -> impl Iterator<Item = (u32, u64)> {
        self.packs.iter().map(|(pack, ours)| {
            let common = other.packs.get(pack).into_iter().flat_map(|theirs| ours.iter().zip(theirs));
            let common = common.map(|(ours, theirs)| u64::from((ours & theirs).count_ones())).sum::<u64>();
            (*pack, ones(ours) - common)
        })
    }

    /// How many of them `other` does not have.
    #[must_use]
    pub fn count_without(&self, other: &Self) -> u64 {
        self.counts_without(other).map(|(_, count)| count).sum()
    }

    /// How many places of a pack there are.
    #[must_use]
    pub fn in_pack(&self, pack: u32) -> u64 {
        self.packs.get(&pack).map_or(0, |words| ones(words))
    }
}

fn ones(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let mut set = PlaceSet::default();
        set.insert(Place { pack: 3, slot: 60 }, 10);
        set.insert(Place { pack: 3, slot: 65 }, 1);
        set.insert(Place::ZERO, 7);
        set.insert(Place { pack: 4, slot: u32::MAX - 5 }, 10);
        set.insert(Place { pack: 4, slot: SLOTS as u32 - 1 }, 10);
        assert_eq!((set.in_pack(3), set.in_pack(4), set.in_pack(0)), (10, 1, 0));
        assert!(set.contains(Place { pack: 3, slot: 69 }) && !set.contains(Place { pack: 3, slot: 70 }));
        assert_eq!(set.runs(3), [(60, 10)]);
        let mut fewer = set.clone();
        fewer.remove(Place { pack: 3, slot: 64 });
        fewer.remove(Place { pack: 4, slot: SLOTS as u32 - 1 });
        assert_eq!((fewer.runs(3), fewer.runs(4)), (vec![(60, 4), (65, 5)], vec![]));
        fewer.remove_pack(3);
        assert!(fewer.is_empty());
        let mut other = PlaceSet::default();
        other.insert(Place { pack: 3, slot: 1000 }, 1);
        other.extend(&set);
        assert_eq!((other.in_pack(3), other.count(), other.count_without(&set)), (11, 12, 1));
        let mut common = PlaceSet::default();
        common.extend_common(&set, &other);
        assert_eq!(
            (common.count(), set.count_without(&common), common.contains(Place { pack: 3, slot: 69 })),
            (11, 0, true)
        );
    }
}
