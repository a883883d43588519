//! Long histories of small changes: leaves rest on earlier ones.

use std::collections::BTreeMap;

use stasis_protocol::store::CheckpointRecord;
use stasis_store::client::Client;

use crate::fixture::{Pages, Store, checkpoint, dump, manifest, memory, page, read_back, send};

/// A checkpoint of what `changes` makes of `base`.
pub fn next(client: &mut Client, token: u64, base: &CheckpointRecord, changes: &Pages) -> CheckpointRecord {
    assert!(client.begin_dump(token, 1, Some(*manifest(base))).unwrap());
    send(client, changes).unwrap();
    let dumped = client.end_dump(Vec::new()).unwrap();
    client.commit(token, crate::fixture::draft(&[dumped])).unwrap()
}

/// Checkpoints of 4 leaves, each with a few changes anywhere; with what is in them.
pub fn history(client: &mut Client, count: u64) -> Vec<(CheckpointRecord, Pages)> {
    let mut pages = memory(0x1000, 2048, 0);
    let mut history = vec![(checkpoint(client, 1, &pages).unwrap(), pages.clone())];
    for token in 2..=count {
        let mut changes = Pages::new();
        for turn in 0..12 {
            let number = (token * 7919 + turn * 499) % 2048;
            changes.insert((0, 0x1000 + number), page(token * 1000 + turn));
        }
        pages.extend(changes.clone());
        let (last, _) = &history[history.len() - 1];
        let record = next(client, token, last, &changes);
        history.push((record, pages.clone()));
    }
    history
}

fn check(client: &mut Client, history: &[&(CheckpointRecord, Pages)]) {
    for (record, pages) in history {
        assert!(read_back(client, manifest(record)) == *pages, "{}", record.sequence);
    }
    let verified = client.verify(None).unwrap();
    assert!(verified.damage.is_empty(), "{:?}", verified.damage);
}

#[test]
fn any_of_a_hundred_versions_stays_when_others_go() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let history = history(&mut client, 100);
    check(&mut client, &history.iter().collect::<Vec<_>>());
    // Of all generations some, and none of those that they rest on.
    let (kept, gone): (Vec<_>, Vec<_>) =
        history.iter().partition(|(record, _)| [7, 40, 64, 65, 77, 99].contains(&record.sequence));
    client.prune(gone.iter().map(|(record, _)| record.id.clone()).collect()).unwrap();
    for _ in 0..2 {
        let collected = client.collect(true).unwrap();
        assert!(collected.left.is_empty(), "{collected:?}");
        check(&mut client, &kept);
    }
    assert!(client.collect(true).unwrap().nodes_removed == 0, "what is left is needed");
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    check(&mut client, &kept);
    // The history goes on from any of them, and what was there before comes again, whole and in part.
    let (record, pages) = kept[4];
    let again = next(&mut client, 200, record, &memory(0x1000, 600, 0));
    let mut expected = pages.clone();
    expected.extend(memory(0x1000, 600, 0));
    assert!(read_back(&mut client, manifest(&again)) == expected);
    let full = checkpoint(&mut client, 201, &history[49].1).unwrap();
    check(&mut client, &[&(full, history[49].1.clone()), &(again, expected), kept[0]]);
}

#[test]
fn the_same_page_in_two_histories_is_the_same_leaf() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    // One goes there by steps, the other at once, and both go on; then the first is deleted.
    let history = history(&mut client, 20);
    let (last, pages) = &history[19];
    let other = checkpoint(&mut client, 50, pages).unwrap();
    assert!(manifest(last) != manifest(&other), "their records differ");
    let mut expected = BTreeMap::new();
    for (token, base) in [(51, last), (52, &other)] {
        let changes = memory(0x1100, 5, 900_000);
        let mut pages = pages.clone();
        pages.extend(changes.clone());
        expected.insert(token, (next(&mut client, token, base, &changes), pages));
    }
    client.prune(history.iter().map(|(record, _)| record.id.clone()).collect()).unwrap();
    client.collect(true).unwrap();
    check(&mut client, &expected.values().collect::<Vec<_>>());
    client.prune(vec![expected[&51].0.id.clone(), other.id]).unwrap();
    client.collect(true).unwrap();
    check(&mut client, &[&expected[&52]]);
    assert_eq!(dump(&mut client, 60, &expected[&52].1).unwrap().1.written, 0);
}
