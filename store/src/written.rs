//! Names and places of pages that a checkpoint has written: the last ones.
//!
//! A table of all of them would be as large as its process is. What it has forgotten may be written twice, which costs
//! room and nothing else; the index learns it from the footers.

use std::sync::Arc;

use crate::{hash::Hash, names::NameMap, pack::Place};

/// Names in a table: what fits one of 2^17 entries, 5 MiB.
pub const AT_ONCE: usize = (1 << 17) / 8 * 7;

#[derive(Default)]
pub struct Written {
    young: NameMap,
    old: NameMap,
    has_forgotten: bool,
}

/// What was written in the end.
pub struct WrittenPages {
    pub tables: Vec<Arc<NameMap>>,
    /// Whether that is all.
    pub is_whole: bool,
}

impl Written {
    #[must_use]
    pub fn get(&self, name: &Hash) -> Option<Place> {
        self.young.get(name).or_else(|| self.old.get(name)).copied()
    }

    pub fn insert(&mut self, name: Hash, place: Place) {
        if self.young.len() == AT_ONCE {
            let forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.has_forgotten |= !forgotten.is_empty();
            // As large, which it will be: growing takes half as much again.
            self.young = forgotten;
            self.young.clear();
        }
        self.young.insert(name, place);
    }

    pub fn retain(&mut self, keep: impl Fn(Place) -> bool) {
        self.young.retain(|_, place| keep(*place));
        self.old.retain(|_, place| keep(*place));
    }

    #[must_use]
    pub fn finish(self) -> WrittenPages {
        let tables = [self.old, self.young].into_iter().filter(|table| !table.is_empty());
        WrittenPages { tables: tables.map(Arc::new).collect(), is_whole: !self.has_forgotten }
    }
}

impl WrittenPages {
    /// How many the tables have.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tables.iter().map(|table| table.len()).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Hash, Place)> {
        self.tables.iter().flat_map(|table| table.iter().map(|(name, place)| (*name, *place)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_known_and_it_says_when_others_are_not() {
        let mut written = Written::default();
        let page = |number: usize| {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&number.to_le_bytes());
            (name, Place { pack: 1, slot: number as u32 })
        };
        let add = |written: &mut Written, numbers: std::ops::Range<usize>| {
            numbers.map(page).for_each(|(name, place)| written.insert(name, place));
        };
        add(&mut written, 0..2 * AT_ONCE);
        assert_eq!((written.get(&page(0).0), written.has_forgotten), (Some(page(0).1), false));
        add(&mut written, 2 * AT_ONCE..2 * AT_ONCE + 1);
        assert_eq!((written.get(&page(0).0), written.has_forgotten), (None, true));
        assert_eq!(written.get(&page(AT_ONCE).0), Some(page(AT_ONCE).1));
        written.retain(|place| place.slot != AT_ONCE as u32);
        let all = written.finish();
        assert_eq!((all.len(), all.iter().count(), all.is_whole), (AT_ONCE, AT_ONCE, false));
    }
}
