//! Some of the pages of a leaf.

use std::ops::{BitOr, Range};

use super::LEAF_PAGES;

/// A set of pages of a leaf, counted from its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots([u64; LEAF_PAGES / 64]);

impl Slots {
    pub const ALL: Self = Self([u64::MAX; LEAF_PAGES / 64]);

    #[must_use]
    pub fn contains(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    pub fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    pub fn remove(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; LEAF_PAGES / 64]
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(at, mut word)| {
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros() as usize;
                word &= word.checked_sub(1)?;
                Some(at * 64 + bit)
            })
        })
    }

    /// Pages one after the other, as long ranges as can be.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for at in self.iter() {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end += 1,
                _ => ranges.push(at..at + 1),
            }
        }
        ranges
    }

    /// As bytes that say the same on every machine.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEAF_PAGES / 8] {
        let mut bytes = [0; LEAF_PAGES / 8];
        for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *bytes = word.to_le_bytes();
        }
        bytes
    }
}

impl BitOr for Slots {
    type Output = Self;

    fn bitor(mut self, other: Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let mut slots = Slots::default();
        for at in [0, 1, 63, 64, 65, 300, 511] {
            slots.insert(at);
        }
        slots.remove(300);
        assert_eq!(slots.iter().collect::<Vec<_>>(), [0, 1, 63, 64, 65, 511]);
        assert_eq!(slots.ranges(), [0..2, 63..66, 511..512]);
        assert_eq!((slots.len(), Slots::ALL.len(), Slots::ALL.ranges().len()), (6, 512, 1));
        assert!(slots.contains(64) && !slots.contains(300) && !slots.is_empty());
        assert_eq!((slots | Slots::ALL, slots | Slots::default()), (Slots::ALL, slots));
    }
}
