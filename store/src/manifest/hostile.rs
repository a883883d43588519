//! Nodes of any bytes: an error or a value, and a value that is what its name says.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{Draft, LEAF_PAGES, Manifest, NodeNames, NodeSource, Reader, Stored, Version};
use crate::{error::StoreError, hash::Hash, pack::Place};

/// Every name is that of the same bytes.
struct Always(Vec<u8>);

impl NodeSource for Always {
    fn node(&self, _name: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(Some(self.0.clone()))
    }

    fn nodes(&self, names: &[Hash]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        names.iter().map(|name| self.node(name)).collect()
    }
}

fn any_node() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..2000);
    (prop_oneof![Just(b'L'), Just(b'D'), Just(b'N'), any::<u8>()], 0..3u8, 0..40u16, body).prop_map(
        |(tag, version, count, body)| [&[tag, version], &count.to_le_bytes()[..], &body[..]].concat(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_a_node_or_an_error(bytes in any_node()) {
        let names = NodeNames::new(&[1; 32]);
        let zero = [9; 32];
        // Its name is right, so that what is in it is looked at.
        let name = names.name(&bytes);
        let alone = HashMap::from([([2; 32], bytes.clone())]);
        prop_assert!(Version::assemble(&[2; 32], &alone, &names, &zero).is_err());
        if let Some(mut stored) = Stored::parse(&bytes, &zero) {
            let _ = Stored::parse(&stored.encode(), &zero).map(|mut again| again.own().len() == stored.own().len());
        }
        let _ = (Stored::packs_of(&bytes).map(Iterator::count), Stored::base_of(&bytes));
        let source = Always(bytes);
        let _ = Manifest::load(&source, &names, &name);
        // A node below itself would be one that names its own hash.
        let mut reader = Reader::new(&source, &names, &zero);
        let _ = reader.leaf(name, 5);
        let _ = reader.leaves_in(name, 0..1 << 40);
        reader.each_leaf(name, &mut |_| true, &mut |_, _, _| Ok(())).unwrap();
        let _ = reader.differences(Some(name), None, &mut |_, _| ());
    }

    #[test]
    fn a_leaf_reads_back(
        pages in prop::collection::btree_map(0..LEAF_PAGES, (any::<u8>(), 1..5u32, any::<u32>()), 0..100),
        at in any::<prop::sample::Index>(),
    ) {
        let names = NodeNames::new(&[1; 32]);
        let zero = [0xee; 32];
        let mut leaf = Draft::default();
        for (at, (content, pack, slot)) in &pages {
            match content {
                0..40 => leaf.set(*at, zero, Place::ZERO),
                _ => leaf.set(*at, [*content; 32], Place { pack: *pack, slot: *slot }),
            }
        }
        let Some(settled) = leaf.settle(&names) else { return Ok(()) };
        let (leaf, (name, mut bytes)) = (settled.version.leaf(), settled.node.unwrap());
        let read = |bytes: &[u8]| Version::assemble(&name, &HashMap::from([(name, bytes.to_vec())]), &names, &zero);
        prop_assert_eq!(read(&bytes).unwrap().leaf().runs(), leaf.runs());
        let again = read(&bytes).unwrap();
        prop_assert!((0..LEAF_PAGES).all(|at| again.leaf().get(at) == leaf.get(at)));
        // A flipped bit is an error, or changes where pages lie and nothing else.
        let at = at.index(bytes.len());
        bytes[at] ^= 1;
        if let Ok(read) = read(&bytes) {
            let names = |leaf: &super::Leaf, at| leaf.get(at).map(|page| *page.0);
            prop_assert!((0..LEAF_PAGES).all(|at| names(read.leaf(), at) == names(leaf, at)));
        }
    }
}
