//! The names of pages anew, where their tables are damaged: all that is in them is in the packs, too.
//!
//! The family is dropped and made again, and packs' records say that none of their pages is in it, so that all are read
//! from the footers in the background. Checkpoints are restarted, listed and taken as before meanwhile.
//!
//! Not here: reading footers (`catalog`).

use std::path::Path;

use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use super::{NODES, PACK, PAGE, PAGES, PackRecord, Problem, REBUILD, decode_pack, family, options, put};

/// Opens what is not made of names of pages, for reading.
pub(super) fn open_the_rest(directory: &Path) -> Result<DB, Problem> {
    let (options, families) = options(false);
    let rest = families().into_iter().filter(|family| ["default", NODES].contains(&family.name()));
    Ok(DB::open_cf_descriptors_read_only(&options, directory, rest, false)?)
}

/// Whether names of pages are asked to be made anew ([`REBUILD`]).
pub(super) fn is_asked_for(db: &DB) -> Result<bool, Problem> {
    Ok(db.get([REBUILD])?.is_some())
}

/// Drops the names of pages; opening the database makes the family again.
pub(super) fn drop_all(directory: &Path) -> Result<(), Problem> {
    let (mut options, families) = options(false);
    // It would look at all tables first.
    options.set_paranoid_checks(false);
    let mut db = DB::open_cf_descriptors(&options, directory, families())?;
    let mut batch = WriteBatch::default();
    batch.delete([REBUILD]);
    for entry in db.iterator(IteratorMode::From(&[PACK], Direction::Forward)) {
        let (key, value) = entry?;
        if key.first() != Some(&PACK) {
            break;
        }
        let record = decode_pack(&value).map_err(|error| Problem(error.to_string()))?;
        put(&mut batch, &key, &PackRecord { indexed: PAGE, ..record });
    }
    let mut durable = WriteOptions::default();
    durable.set_sync(true);
    // First: names that are there twice do no harm.
    db.write_opt(batch, &durable)?;
    Ok(db.drop_cf(PAGES)?)
}

/// Reads all of them.
pub(super) fn check(db: &DB) -> Result<(), Problem> {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    for entry in db.iterator_cf_opt(family(db, PAGES)?, options, IteratorMode::Start) {
        entry?;
    }
    Ok(())
}
