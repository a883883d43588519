//! Giving room back.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use stasis_protocol::store::{CheckpointRecord, kind};
use stasis_store::{
    client::Client,
    failpoint::{FailPoint, VARIABLE},
};

use crate::fixture::{
    PAGE, Pages, Server, Store, checkpoint, draft, dump, manifest, memory, read_back, send,
};

fn prune(client: &mut Client, records: &[&CheckpointRecord]) {
    let ids: Vec<String> = records.iter().map(|record| record.id.clone()).collect();
    assert_eq!(client.prune(ids).unwrap().len(), records.len());
}

/// 1000 pages common to all, and 1000 of its own.
fn pages(token: u64) -> Pages {
    let mut pages = memory(0x1000, 1000, 0);
    pages.extend(memory(0x9_0000, 1000, 10_000 * token));
    pages
}

/// All that is listed is whole: it reads back as `expected` says, by token, and `verify` finds nothing.
fn check(client: &mut Client, expected: &BTreeMap<String, u64>) {
    let listed = client.list().unwrap();
    assert_eq!(listed.len(), expected.len());
    for record in &listed {
        assert!(read_back(client, manifest(record)) == pages(expected[&record.id]), "{}", record.id);
    }
    let verified = client.verify(None).unwrap();
    assert!(verified.damage.is_empty(), "{:?}", verified.damage);
}

#[test]
fn what_nothing_refers_to_is_given_back_and_the_rest_is_whole() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let records: Vec<_> =
        (1..9).map(|token| checkpoint(&mut client, token, &pages(token)).unwrap()).collect();
    let before = store.packs_size();
    let nothing = client.collect(true).unwrap();
    assert_eq!((nothing.packs_removed, nothing.pages_moved, nothing.nodes_removed), (0, 0, 0));
    assert_eq!(store.packs_size(), before);

    prune(&mut client, &records[1..].iter().collect::<Vec<_>>());
    let collected = client.collect(true).unwrap();
    assert_eq!((collected.packs_compacted, collected.pages_moved), (1, 2000), "{collected:?}");
    assert!(collected.nodes_removed > 7 && collected.left.is_empty() && !collected.waiting);
    // Headers, footers and the rest of a page beside 2000 pages.
    let after = store.packs_size();
    assert!(after < 2100 * 4096, "{before} became {after}");
    assert_eq!(collected.freed, before - 2000 * 4096);
    let expected = BTreeMap::from([(records[0].id.clone(), 1)]);
    check(&mut client, &expected);
    let again = client.collect(true).unwrap();
    assert_eq!((again.packs_compacted, again.pages_moved, again.nodes_removed, again.freed), (0, 0, 0, 0));

    // What moved is known where it is, and by the next server as well.
    let same = dump(&mut client, 20, &pages(1)).unwrap();
    assert_eq!(same.1.written, 0);
    client.discard(20).unwrap();
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    check(&mut client, &expected);
    let last = checkpoint(&mut client, 30, &pages(30)).unwrap();
    assert_eq!(last.draft.processes[0].stats.written, 1000);
    prune(&mut client, &[&records[0], &last]);
    let collected = client.collect(true).unwrap();
    assert!(collected.packs_removed > 0 && collected.pages_moved == 0, "{collected:?}");
    assert!(store.packs_size() <= 4096, "{}", store.packs_size());

    // Numbers of packs are not given again, in this server or the next.
    let old = store.packs();
    client.shutdown().unwrap();
    drop(server);
    let server = store.serve();
    checkpoint(&mut server.client(), 40, &pages(40)).unwrap();
    assert!(store.packs().last().unwrap() >= old.last().unwrap_or(&PathBuf::new()));
    assert!(!store.packs().contains(&store.directory.join("packs/00000001.pack")), "{:?}", store.packs());
}

#[test]
fn a_reader_keeps_what_it_was_told_of() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let first = checkpoint(&mut client, 1, &pages(1)).unwrap();
    let second = checkpoint(&mut client, 2, &pages(2)).unwrap();
    let third = checkpoint(&mut client, 3, &pages(3)).unwrap();

    // A restart that has been told where its pages are, and has not opened the packs.
    let mut restart = server.client();
    let process = restart.read_process(manifest(&second), &[]).unwrap();
    let (extents, names) = process.pages().unwrap();
    prune(&mut client, &[&first, &second, &third]);
    let kept = checkpoint(&mut client, 4, &memory(0x1000, 500, 0)).unwrap();
    let collected = client.collect(true).unwrap();
    assert!(collected.waiting && collected.packs_compacted == 1, "{collected:?}");
    let mut names = names.iter();
    for extent in extents.iter().filter(|extent| extent.kind == kind::RAW) {
        let pack = File::open(store.directory.join(format!("packs/{:08x}.pack", extent.pack))).unwrap();
        for at in 0..extent.pages {
            let mut page = [0; PAGE];
            pack.read_exact_at(&mut page, extent.offset + at * PAGE as u64).unwrap();
            assert_eq!(blake3::keyed_hash(&process.key, &page).as_bytes(), names.next().unwrap());
        }
    }
    let path = store.directory.join(format!("packs/{:08x}.pack", extents[0].pack));
    assert!(path.exists());
    drop(restart);
    // The server sees the end of the connection when it sees it.
    while path.exists() {
        std::thread::yield_now();
    }
    assert!(read_back(&mut client, manifest(&kept)) == memory(0x1000, 500, 0));
}

#[test]
fn a_dump_under_way_keeps_what_it_found() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let base = checkpoint(&mut client, 1, &pages(1)).unwrap();
    let other = checkpoint(&mut client, 2, &pages(2)).unwrap();
    let garbage = checkpoint(&mut client, 3, &pages(3)).unwrap();

    // One takes unchanged pages from its base, the other finds them by name.
    let mut incremental = server.client();
    incremental.begin_dump(11, 1, Some(*manifest(&base))).unwrap();
    send(&mut incremental, &memory(0x1000, 10, 90_000)).unwrap();
    let mut full = server.client();
    full.begin_dump(12, 1, None).unwrap();
    send(&mut full, &pages(2)).unwrap();

    prune(&mut client, &[&base, &other, &garbage]);
    let collected = client.collect(true).unwrap();
    assert_eq!(collected.packs_removed, 0, "{collected:?}");

    // What goes on after the collection finds nothing of what is gone.
    send(&mut full, &memory(0x7_0000_0000, 500, 30_000)).unwrap();
    let full_dumped = full.end_dump(Vec::new()).unwrap();
    let incremental_dumped = incremental.end_dump(Vec::new()).unwrap();
    let full_record = full.commit(12, draft(&[full_dumped])).unwrap();
    let record = incremental.commit(11, draft(&[incremental_dumped])).unwrap();
    for round in 0..3 {
        let mut expected = pages(1);
        expected.extend(memory(0x1000, 10, 90_000));
        assert!(read_back(&mut client, manifest(&record)) == expected, "round {round}");
        let mut expected = pages(2);
        expected.extend(memory(0x7_0000_0000, 500, 30_000));
        assert!(read_back(&mut client, manifest(&full_record)) == expected, "round {round}");
        let damage = client.verify(None).unwrap().damage;
        assert!(damage.is_empty(), "{damage:?}");
        client.collect(true).unwrap();
    }
    // A base that is gone is told at once, so that the dump can be made whole.
    assert!(!client.begin_dump(13, 1, Some(*manifest(&garbage))).unwrap());
    client.abort_dump().unwrap();
    checkpoint(&mut client, 14, &pages(1)).unwrap();
}

#[test]
fn checkpoints_restarts_and_collections_at_the_same_time() {
    let store = Store::new();
    let server = store.serve();
    let stop = AtomicBool::new(false);
    let taken: Vec<(CheckpointRecord, Pages)> = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut client = server.client();
            let mut moved = 0;
            while !stop.load(Ordering::Relaxed) {
                moved += client.collect(true).unwrap().pages_moved;
            }
            moved
        });
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut client = server.client();
                let listed = client.list().unwrap();
                // The last three are never pruned while they are the last three.
                if let Some(record) = listed.last() {
                    read_back(&mut client, manifest(record));
                }
                let damage = client.verify(None).unwrap().damage;
                assert!(damage.is_empty(), "{damage:?}");
            }
        });
        let takers: Vec<_> = (0..2u64)
            .map(|taker| {
                let server = &server;
                scope.spawn(move || {
                    let mut client = server.client();
                    let mut kept: Vec<(CheckpointRecord, Pages)> = Vec::new();
                    for round in 1..40u64 {
                        let token = taker << 32 | round;
                        // Pages come back that were garbage for a while.
                        let seed = 1 + taker * 50 + round % 9;
                        let (record, pages) = match kept.last() {
                            Some((last, pages)) if round % 3 == 0 => {
                                let mut pages = pages.clone();
                                let changed = memory(0x1000, 50, 700_000 + seed * 100);
                                client.begin_dump(token, 1, Some(*manifest(last))).unwrap();
                                send(&mut client, &changed).unwrap();
                                pages.extend(changed);
                                let dumped = client.end_dump(Vec::new()).unwrap();
                                (client.commit(token, draft(&[dumped])).unwrap(), pages)
                            }
                            _ => (checkpoint(&mut client, token, &pages(seed)).unwrap(), pages(seed)),
                        };
                        kept.push((record, pages));
                        if kept.len() > 3 {
                            let (gone, _) = kept.remove(0);
                            prune(&mut client, &[&gone]);
                        }
                        for (record, pages) in &kept {
                            assert!(read_back(&mut client, manifest(record)) == *pages, "round {round}");
                        }
                    }
                    kept
                })
            })
            .collect();
        let taken = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        assert!(collector.join().unwrap() > 0, "pages were moved while this went on");
        taken
    });
    let mut client = server.client();
    client.collect(true).unwrap();
    assert_eq!(client.list().unwrap().len(), 6);
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    for (record, pages) in &taken {
        assert!(read_back(&mut client, manifest(record)) == *pages);
    }
    assert!(client.verify(None).unwrap().damage.is_empty());
}

/// A store of which a collection removes one pack, compacts another and leaves a third; what must be left.
fn prepare(server: &Server) -> BTreeMap<String, u64> {
    let mut client = server.client();
    let mut expected = BTreeMap::new();
    let mut gone = Vec::new();
    for token in 1..9 {
        let record = checkpoint(&mut client, token, &pages(token)).unwrap();
        if token < 3 {
            expected.insert(record.id.clone(), token);
        } else {
            gone.push(record);
        }
    }
    // A pack of its own, which is garbage: the other one is lent while it is written.
    let mut lender = server.client();
    lender.begin_dump(100, 1, None).unwrap();
    send(&mut lender, &memory(0, 1, 5_000_000)).unwrap();
    gone.push(checkpoint(&mut client, 50, &memory(0x1000, 700, 6_000_000)).unwrap());
    lender.abort_dump().unwrap();
    client.discard(100).unwrap();
    let ids: Vec<String> = gone.iter().map(|record| record.id.clone()).collect();
    // Where this is what it dies of, the records are gone.
    let _ = client.prune(ids);
    expected
}

#[test]
fn a_crash_at_any_step_of_a_collection_loses_nothing() {
    for point in FailPoint::COLLECT {
        let store = Store::new();
        let armed = format!("{}:1", point.name());
        let mut server = store
            .serve_with(|command| {
                command.env(VARIABLE, &armed);
            })
            .unwrap();
        let expected = prepare(&server);
        if let Ok(mut client) = Client::connect(&store.directory) {
            assert!(client.collect(true).is_err(), "{armed} was never reached");
        }
        server.child.wait().unwrap();
        for round in 0..2 {
            let server = store.serve();
            let mut client = server.client();
            check(&mut client, &expected);
            if round == 1 {
                let collected = client.collect(true).unwrap();
                assert!(collected.left.is_empty(), "{armed}: {collected:?}");
                assert!(store.packs_size() < 3300 * 4096, "{armed}: {} bytes", store.packs_size());
                let same = dump(&mut client, 20, &pages(1)).unwrap();
                assert_eq!(same.1.written, 0, "{armed}");
                client.discard(20).unwrap();
                check(&mut client, &expected);
            }
            // The first one ends before the index is written, too.
            server.crash();
        }
        let server = store.serve();
        check(&mut server.client(), &expected);
    }
}

#[test]
fn a_damaged_page_keeps_its_pack() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let kept = checkpoint(&mut client, 1, &memory(0x1000, 100, 0)).unwrap();
    let gone = checkpoint(&mut client, 2, &pages(2)).unwrap();
    let extent = client.read_process(manifest(&kept), &[]).unwrap().pages().unwrap().0[0];
    let path = store.directory.join(format!("packs/{:08x}.pack", extent.pack));
    flip(&path, extent.offset + 7 * 4096);
    prune(&mut client, &[&gone]);
    let collected = client.collect(true).unwrap();
    assert_eq!((collected.packs_compacted, collected.left.len()), (0, 1), "{collected:?}");
    assert!(
        collected.left[0].contains(&path.display().to_string()) && collected.left[0].contains("0x"),
        "{collected:?}"
    );
    let damage = client.verify(None).unwrap().damage;
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert!(damage[0].contains(&kept.id), "{damage:?}");
    // Checkpoints of other pages go on.
    let new = checkpoint(&mut client, 3, &memory(0x1000, 100, 50_000)).unwrap();
    assert!(read_back(&mut client, manifest(&new)) == memory(0x1000, 100, 50_000));
    assert_eq!(client.verify(None).unwrap().damage, damage);
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_pack_that_is_missing_or_cut_short_is_left_and_named() {
    for cut in [true, false] {
        let store = Store::new();
        let server = store.serve();
        let mut client = server.client();
        let kept = checkpoint(&mut client, 1, &memory(0x1000, 100, 0)).unwrap();
        let gone = checkpoint(&mut client, 2, &pages(2)).unwrap();
        client.shutdown().unwrap();
        drop((client, server));
        let path = store.packs().remove(0);
        if cut {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(1000 * 4096).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        let server = store.serve();
        let mut client = server.client();
        prune(&mut client, &[&gone]);
        let collected = client.collect(true).unwrap();
        assert_eq!((collected.packs_compacted, collected.packs_removed), (0, 0), "{collected:?}");
        assert!(collected.left[0].contains(&path.display().to_string()), "{collected:?}");
        let damaged = client.verify(Some(&kept.id)).unwrap().damage;
        assert_eq!(damaged.len(), if cut { 0 } else { 100 }, "{damaged:?}");
        let new = checkpoint(&mut client, 3, &pages(3)).unwrap();
        assert!(read_back(&mut client, manifest(&new)) == pages(3));
        // When nothing needs it any more it goes.
        prune(&mut client, &[&kept]);
        client.collect(true).unwrap();
        assert!(!store.packs().contains(&path), "{:?}", store.packs());
        assert!(client.verify(None).unwrap().damage.is_empty());
    }
}
