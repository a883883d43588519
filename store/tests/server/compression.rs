//! Compressing what was written.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Seek,
    os::unix::{fs::FileExt, process::ExitStatusExt},
    sync::atomic::{AtomicBool, Ordering},
};

use stasis_protocol::store::{CheckpointRecord, Extent, kind};
use stasis_store::{
    client::Client,
    failpoint::{FailPoint, VARIABLE},
};

use crate::fixture::{
    PAGE, Pages, Store, checkpoint, draft, dump, manifest, memory, read_back, send, soft_memory,
};

fn extents(client: &mut Client, record: &CheckpointRecord) -> Vec<Extent> {
    client.read_process(manifest(record), &[]).unwrap().pages().unwrap().0
}

/// 1000 pages that compress, common to all, 300 of its own, and 200 that do not.
fn pages(token: u64) -> Pages {
    let mut pages = soft_memory(0x1000, 1000, 0);
    pages.extend(soft_memory(0x9_0000, 300, 10_000 * token));
    pages.extend(memory(0x9_0000 + 300, 200, 10_000 * token));
    pages
}

fn check(client: &mut Client, expected: &[(CheckpointRecord, Pages)]) {
    for (record, pages) in expected {
        assert!(read_back(client, manifest(record)) == *pages, "{}", record.id);
    }
    let damage = client.verify(None).unwrap().damage;
    assert!(damage.is_empty(), "{damage:?}");
}

/// Checkpoints of [`pages`] by this server; what must be read.
fn take(client: &mut Client, tokens: std::ops::Range<u64>) -> Vec<(CheckpointRecord, Pages)> {
    tokens.map(|token| (checkpoint(client, token, &pages(token)).unwrap(), pages(token))).collect()
}

#[test]
fn what_compresses_is_compressed_once_and_everything_reads_it() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let mut expected = take(&mut client, 1..4);
    let before = store.packs_size();
    assert_eq!(client.collect(false).unwrap().packs_compressed, 0);
    assert_eq!(store.packs_size(), before);
    let collected = client.collect(true).unwrap();
    assert_eq!((collected.packs_compressed, collected.pages_moved), (1, 2500), "{collected:?}");
    // Blocks reach over the border between what compresses and what does not.
    assert!(
        collected.compressed_from > 1850 * 4096 && collected.compressed_to * 4 < collected.compressed_from
    );
    let after = store.packs_size();
    assert!(after < before / 2 && collected.freed > before - after - (200 << 10), "{before} became {after}");
    check(&mut client, &expected);
    let listed = extents(&mut client, &expected[0].0);
    let of = |wanted: u32| {
        listed.iter().filter(|extent| extent.kind == wanted).map(|extent| extent.pages).sum::<u64>()
    };
    assert!(of(kind::LZ4) > 1250 && of(kind::RAW) > 150);
    let usage = client.disk_usage().unwrap();
    assert_eq!(usage.compressed, 2500 * 4096);
    assert!(
        usage.compressed_packs < usage.compressed / 2
            && usage.checkpoints[0].own_on_disk < usage.checkpoints[0].own
    );

    // Once.
    let again = client.collect(true).unwrap();
    assert_eq!((again.packs_compressed, again.packs_compacted, again.pages_moved), (0, 0, 0), "{again:?}");
    // What moved is found, and what comes is compressed beside it.
    assert_eq!(dump(&mut client, 20, &pages(1)).unwrap().1.written, 0);
    client.discard(20).unwrap();
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    check(&mut client, &expected);
    expected.extend(take(&mut client, 4..6));
    assert_eq!(expected.last().unwrap().0.draft.processes[0].stats.written, 500);
    let packs = store.packs().len();
    assert_eq!(client.collect(true).unwrap().packs_compressed, 1);
    check(&mut client, &expected);
    assert!(store.packs().len() <= packs, "{:?}", store.packs());

    // To another store, and back into an empty one.
    let other = Store::new();
    let other_server = other.serve();
    let mut target = other_server.client();
    let mut stream = tempfile::tempfile().unwrap();
    let references = expected.iter().map(|(record, _)| record.id.clone()).collect();
    client.export(references, stream.try_clone().unwrap().into()).unwrap();
    stream.rewind().unwrap();
    let imported = target.import(stream.into()).unwrap();
    for (record, (_, pages)) in imported.checkpoints.iter().zip(&expected) {
        assert!(read_back(&mut target, manifest(record)) == *pages);
    }

    // What is mostly garbage is emptied, as another pack is.
    let gone: Vec<String> = expected.drain(1..).map(|(record, _)| record.id).collect();
    client.prune(gone).unwrap();
    let collected = client.collect(false).unwrap();
    assert_eq!((collected.packs_compacted, collected.pages_moved), (1, 1500), "{collected:?}");
    assert!(store.packs_size() < after, "{}", store.packs_size());
    check(&mut client, &expected);
    server.crash();
    check(&mut store.serve().client(), &expected);
}

#[test]
fn what_does_not_pay_stays_where_it_is() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let record = checkpoint(&mut client, 1, &memory(0x1000, 1000, 0)).unwrap();
    let before = extents(&mut client, &record);
    let collected = client.collect(true).unwrap();
    assert_eq!((collected.packs_compressed, collected.pages_moved), (0, 0));
    assert_eq!(extents(&mut client, &record), before);
    // The same pack takes more, and is looked at again.
    let next = checkpoint(&mut client, 2, &soft_memory(0x1000, 3000, 0)).unwrap();
    assert_eq!(extents(&mut client, &next)[0].pack, before[0].pack);
    assert_eq!(client.collect(true).unwrap().packs_compressed, 1);
    check(&mut client, &[(record, memory(0x1000, 1000, 0)), (next, soft_memory(0x1000, 3000, 0))]);
}

#[test]
fn compression_can_be_turned_off_and_what_is_compressed_stays_readable() {
    let store = Store::new();
    let off = || {
        store
            .serve_with(|command| {
                command.env("STASIS_DISABLE", "lazy,compression");
            })
            .unwrap()
    };
    let server = off();
    let mut client = server.client();
    let expected = take(&mut client, 1..2);
    let gone = checkpoint(&mut client, 2, &memory(0x1000, 3000, 70_000)).unwrap();
    assert_eq!(client.collect(true).unwrap().packs_compressed, 0);
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    assert_eq!(client.collect(true).unwrap().packs_compressed, 1);
    server.crash();
    let server = off();
    let mut client = server.client();
    check(&mut client, &expected);
    client.prune(vec![gone.id]).unwrap();
    let collected = client.collect(true).unwrap();
    assert_eq!((collected.packs_compacted, collected.compressed_from), (1, 0), "{collected:?}");
    assert!(extents(&mut client, &expected[0].0).iter().all(|extent| extent.kind == kind::RAW));
    check(&mut client, &expected);
}

#[test]
fn a_crash_at_any_step_of_compressing_loses_nothing() {
    let steps = [FailPoint::PackCreated, FailPoint::FooterWritten, FailPoint::PackSynced];
    let points = FailPoint::COLLECT.into_iter().filter(|point| *point != FailPoint::Pruned).chain(steps);
    for point in points {
        let store = Store::new();
        let server = store.serve();
        let expected = take(&mut server.client(), 1..3);
        server.client().shutdown().unwrap();
        drop(server);
        let before = store.packs_size();
        let server = store.serve_with(|command| {
            command.env(VARIABLE, point.name());
        });
        let Some(mut server) = server else { panic!("{} does not belong to opening a store", point.name()) };
        assert!(server.client().collect(true).is_err(), "{} was never reached", point.name());
        assert_eq!(server.child.wait().unwrap().signal(), Some(9), "{}", point.name());
        for round in 0..2 {
            let server = store.serve();
            let mut client = server.client();
            check(&mut client, &expected);
            if round == 1 {
                let collected = client.collect(true).unwrap();
                assert!(collected.left.is_empty(), "{}: {collected:?}", point.name());
                assert!(
                    store.packs_size() < before / 2,
                    "{}: {before} became {}",
                    point.name(),
                    store.packs_size()
                );
                assert_eq!(dump(&mut client, 20, &pages(1)).unwrap().1.written, 0, "{}", point.name());
                client.discard(20).unwrap();
                check(&mut client, &expected);
            }
            server.crash();
        }
        check(&mut store.serve().client(), &expected);
    }
}

fn flip(store: &Store, pack: u64, offset: u64) {
    let path = store.directory.join(format!("packs/{pack:08x}.pack"));
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[test]
fn a_flipped_bit_in_a_block_is_named_with_its_pages_and_healed() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let expected = soft_memory(0x1000, 600, 0);
    let first = checkpoint(&mut client, 1, &expected).unwrap();
    let other = checkpoint(&mut client, 2, &soft_memory(0x1000, 100, 9000)).unwrap();
    assert_eq!(client.collect(true).unwrap().packs_compressed, 1);
    let block = extents(&mut client, &first)[3];
    assert_eq!((block.kind, block.pages, block.skipped), (kind::LZ4, 16, 0));
    for at in [0, 7, u64::from(block.stored) / 2, u64::from(block.stored) - 1] {
        flip(&store, block.pack, block.offset + at);
        let damage = client.verify(None).unwrap().damage;
        assert!((1..=16).contains(&damage.len()), "byte {at}: {damage:?}");
        for part in [&format!("{:08x}.pack", block.pack), &format!("offset {:#x}", block.offset), &first.id] {
            assert!(damage.iter().all(|line| line.contains(part)), "{part} in {damage:?}");
        }
        assert!(!damage[0].contains(&other.id), "{damage:?}");
        flip(&store, block.pack, block.offset + at);
        assert!(client.verify(None).unwrap().damage.is_empty());
    }
    flip(&store, block.pack, block.offset + u64::from(block.stored) / 2);
    let damaged = client.verify(None).unwrap().damage.len() as u64;
    assert!(!client.begin_dump(3, 1, Some(*manifest(&first))).unwrap(), "what is damaged is no base");
    client.abort_dump().unwrap();
    client.discard(3).unwrap();
    let second = checkpoint(&mut client, 4, &expected).unwrap();
    assert_eq!(second.draft.processes[0].stats.written, damaged);
    check(&mut client, &[(first, expected.clone()), (second, expected)]);
}

#[test]
fn a_flipped_bit_in_what_a_footer_says_of_blocks_costs_the_pages_of_one() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let expected = soft_memory(0x1000, 1600, 0);
    let record = checkpoint(&mut client, 1, &expected).unwrap();
    assert_eq!(client.collect(true).unwrap().packs_compressed, 1);
    let blocks = extents(&mut client, &record);
    assert_eq!(blocks.len(), 100);
    // The footer begins on the page behind the last block; runs of 24 bytes follow 32 of its own.
    let end = blocks.iter().map(|block| block.offset + u64::from(block.stored)).max().unwrap();
    let run = end.next_multiple_of(PAGE as u64) + 32 + 10 * 24;
    for byte in 0..24 {
        flip(&store, blocks[0].pack, run + byte);
        let damage = client.verify(None).unwrap().damage;
        assert!(
            (1..=32).contains(&damage.len()),
            "byte {byte}: {} pages: {:?}",
            damage.len(),
            damage.first()
        );
        flip(&store, blocks[0].pack, run + byte);
    }
    // Names are there for the index alone.
    flip(&store, blocks[0].pack, run + 100 * 24 + 1000);
    assert!(client.verify(None).unwrap().damage.is_empty());
    check(&mut client, &[(record, expected)]);
}

#[test]
fn a_dump_under_way_keeps_what_it_found_while_that_moves_twice() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let first = checkpoint(&mut client, 1, &pages(1)).unwrap();
    let garbage = checkpoint(&mut client, 2, &memory(0x7_0000, 2000, 500_000)).unwrap();
    let mut other = server.client();
    other.begin_dump(11, 1, None).unwrap();
    send(&mut other, &pages(1)).unwrap();
    assert_eq!(client.collect(true).unwrap().packs_compressed, 1);
    // Nobody but the dump needs them now, and they move again.
    client.prune(vec![first.id, garbage.id]).unwrap();
    assert_eq!(client.collect(true).unwrap().packs_compacted, 1);
    assert_eq!(client.collect(true).unwrap().pages_moved, 0);
    let dumped = other.end_dump(Vec::new()).unwrap();
    assert_eq!(dumped.1.written, 0);
    let record = other.commit(11, draft(&[dumped])).unwrap();
    check(&mut client, &[(record, pages(1))]);
}

#[test]
fn checkpoints_and_restarts_while_packs_are_compressed() {
    let store = Store::new();
    let server = store.serve();
    let stop = AtomicBool::new(false);
    let kept = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut client = server.client();
            let mut compressed = 0;
            while !stop.load(Ordering::Relaxed) {
                compressed += client.collect(true).unwrap().packs_compressed;
            }
            compressed
        });
        let takers: Vec<_> = (0..2u64)
            .map(|taker| {
                let server = &server;
                scope.spawn(move || {
                    let mut client = server.client();
                    let mut kept: BTreeMap<u64, (CheckpointRecord, Pages)> = BTreeMap::new();
                    for round in 1..25u64 {
                        let token = taker << 32 | round;
                        let taken = match kept.last_key_value() {
                            Some((_, (last, pages))) if round % 3 == 0 => {
                                let changed = soft_memory(0x1000, 50, 700_000 + token % 1000 * 100);
                                client.begin_dump(token, 1, Some(*manifest(last))).unwrap();
                                send(&mut client, &changed).unwrap();
                                let mut pages = pages.clone();
                                pages.extend(changed);
                                let dumped = client.end_dump(Vec::new()).unwrap();
                                (client.commit(token, draft(&[dumped])).unwrap(), pages)
                            }
                            _ => {
                                // Pages come back that were garbage for a while.
                                let pages = pages(1 + taker * 50 + round % 7);
                                (checkpoint(&mut client, token, &pages).unwrap(), pages)
                            }
                        };
                        kept.insert(round, taken);
                        if kept.len() > 3 {
                            let (_, (gone, _)) = kept.pop_first().unwrap();
                            client.prune(vec![gone.id]).unwrap();
                        }
                        for (record, pages) in kept.values() {
                            assert!(read_back(&mut client, manifest(record)) == *pages, "round {round}");
                        }
                    }
                    kept
                })
            })
            .collect();
        let kept: Vec<_> = takers.into_iter().flat_map(|taker| taker.join().unwrap().into_values()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(collector.join().unwrap() > 0, "packs were compressed while this went on");
        kept
    });
    check(&mut server.client(), &kept);
    server.crash();
    check(&mut store.serve().client(), &kept);
}

#[test]
fn a_server_that_nobody_needs_compresses_before_it_leaves() {
    let store = Store::new();
    let serve = || {
        store
            .serve_with(|command| {
                command.args(["--idle-seconds", "0.1"]);
            })
            .unwrap()
    };
    let mut server = serve();
    let expected = take(&mut server.client(), 1..3);
    let before = store.packs_size();
    assert!(server.child.wait().unwrap().success());
    let after = store.packs_size();
    assert!(after < before / 2, "{before} became {after}");
    // And no more than once.
    let packs =
        |store: &Store| store.packs().into_iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    let written: Vec<Vec<u8>> = packs(&store);
    let mut server = serve();
    check(&mut server.client(), &expected);
    assert!(server.child.wait().unwrap().success());
    assert!(
        packs(&store)
            .iter()
            .filter(|pack| pack.len() > PAGE)
            .eq(written.iter().filter(|pack| pack.len() > PAGE))
    );
}

#[test]
fn a_server_that_is_told_to_end_does_not_compress() {
    let store = Store::new();
    let mut server = store.serve();
    let expected = take(&mut server.client(), 1..3);
    let before = store.packs_size();
    server.client().shutdown().unwrap();
    assert!(server.child.wait().unwrap().success());
    assert_eq!(store.packs_size(), before);
    check(&mut store.serve().client(), &expected);
}

#[test]
fn a_store_of_an_earlier_format_opens_and_is_of_this_one_then() {
    let store = Store::new();
    let server = store.serve();
    let expected = take(&mut server.client(), 1..2);
    server.crash();
    let format = store.directory.join("FORMAT");
    fs::write(&format, "stasis store 2\n").unwrap();
    let server = store.serve();
    check(&mut server.client(), &expected);
    assert_eq!(fs::read_to_string(&format).unwrap(), "stasis store 3\n");
    assert!(File::open(&format).is_ok());
}
