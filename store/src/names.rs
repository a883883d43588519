//! A table from names to places. Names are hashes already: hashing them again would be the most
//! expensive part of a look-up. They are keyed, so nobody can choose them to collide.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::{hash::Hash, pack::Place};

/// Places of pages by name.
pub type NameMap = HashMap<Hash, Place, BuildHasherDefault<NameHasher>>;

/// Takes the first eight bytes of a name for its hash.
#[derive(Default)]
pub struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _len: usize) {}
}
