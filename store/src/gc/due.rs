//! Which packs are to be compressed: those that nobody writes to, that have not been looked at since they grew, and of
//! which enough would be saved.

use std::collections::BTreeSet;

use stasis_protocol::store::BLOCK;

use crate::{
    error::StoreError,
    index::PackRecord,
    pack::{FULL, Form, PAGE, block::Compressor, reader::PackReader},
    store::Store,
};

/// Blocks of a pack that are tried: 2 MiB of 256.
const SAMPLES: u64 = 32;

/// Packs that would shrink by less than a part of so many are left as they are: what is moved for that is most of them.
const LEAST: usize = 8;

/// Packs that hold less than this, in bytes, are not worth the walk through all manifests.
const LITTLE: u64 = 64 << 10;

/// Whether a pack is to be looked at.
#[must_use]
pub fn is_open(record: &PackRecord) -> bool {
    record.form == Form::Plain && record.committed > record.not_worth.max(PAGE + LITTLE)
}

/// At most `most` packs that are worth compressing, of those that are full or of all. Of others it is noted that they are not.
///
/// # Errors
/// That could not be noted.
pub fn find(store: &Store, most: usize, only_full: bool) -> Result<BTreeSet<u32>, StoreError> {
    let (mut worth, mut not_worth) = (BTreeSet::new(), BTreeSet::new());
    let mut reader = PackReader::new(&store.directory().packs());
    let mut compressor = Compressor::default();
    for (number, record) in store.catalog().packs() {
        if worth.len() == most {
            break;
        }
        if !is_open(&record) || only_full && record.committed < FULL || store.pool().is_lent(number) {
            continue;
        }
        match is_worth_it(&mut reader, &mut compressor, number, &record) {
            Ok(true) => worth.insert(number),
            Ok(false) => not_worth.insert(number),
            // `verify` says so.
            Err(_) => continue,
        };
    }
    store.catalog().note_not_worth(&not_worth)?;
    Ok(worth)
}

fn is_worth_it(
    reader: &mut PackReader,
    compressor: &mut Compressor,
    number: u32,
    record: &PackRecord,
) -> Result<bool, StoreError> {
    let len = BLOCK as u64;
    let blocks = (record.committed - PAGE) / len;
    let mut block = vec![0; BLOCK];
    let (mut tried, mut saved) = (0, 0);
    for sample in 0..SAMPLES.min(blocks) {
        let at = PAGE + sample * blocks / SAMPLES.min(blocks) * len;
        reader.read(number, at, &mut block)?;
        tried += BLOCK;
        saved += compressor.compress(&block).map_or(0, |bytes| BLOCK - bytes.len());
    }
    Ok(saved * LEAST >= tried)
}
