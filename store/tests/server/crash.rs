//! The server is killed at every durable step, and at any moment.

use std::{
    os::unix::process::ExitStatusExt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use stasis_protocol::store::CheckpointRecord;
use stasis_store::{
    client::Client,
    failpoint::{FailPoint, VARIABLE},
};

use crate::fixture::{Pages, Store, checkpoint, memory, page, read_back};

/// The pages of the checkpoint with this token.
fn pages(token: u64) -> Pages {
    let mut pages = memory(100, 300, 0);
    pages.extend(memory(1 << 20, 700, token * 10_000));
    pages
}

/// All committed checkpoints are whole, and the store takes new ones. `told` are those whose commit
/// was answered.
fn check(store: &Store, told: &[(u64, CheckpointRecord)]) {
    let server = store.serve();
    let mut client = server.client();
    let listed = client.list().unwrap();
    for (token, record) in told {
        assert!(listed.contains(record), "a checkpoint that was reported is missing");
        assert!(read_back(&mut client, &record.draft.processes[0].manifest) == pages(*token));
    }
    let sequence: Vec<u64> = listed.iter().map(|record| record.sequence).collect();
    assert_eq!(sequence, (1..=listed.len() as u64).collect::<Vec<_>>());
    assert!(listed.len() <= told.len() + 1, "at most the last one was made and not reported");
    let verified = client.verify(None).unwrap();
    assert!(verified.damage.is_empty(), "{:?}", verified.damage);
    let record = checkpoint(&mut client, 999, &pages(999)).unwrap();
    assert!(read_back(&mut client, &record.draft.processes[0].manifest) == pages(999));
    client.shutdown().unwrap();
}

#[test]
fn a_crash_at_any_durable_step_loses_nothing_committed() {
    // One of them only a large checkpoint comes to: it has a test of its own.
    for point in FailPoint::DUMP.into_iter().filter(|point| *point != FailPoint::NodesAnnounced) {
        for count in [1, 2] {
            let store = Store::new();
            let armed = format!("{}:{count}", point.name());
            let server = store.serve_with(|command| {
                command.env(VARIABLE, &armed);
            });
            let mut told = Vec::new();
            let Some(mut server) = server else {
                assert!([FailPoint::KeyWritten, FailPoint::PackCreated].contains(&point), "{armed}");
                check(&store, &told);
                continue;
            };
            if let Ok(mut client) = Client::connect(&store.directory) {
                for token in 1..4 {
                    match checkpoint(&mut client, token, &pages(token)) {
                        Ok(record) => told.push((token, record)),
                        Err(_) => break,
                    }
                }
                // The last failpoints lie behind the commits, when the server ends.
                let _ = client.shutdown();
            }
            let status = server.child.wait().unwrap();
            // A store is made once, and one pack is enough.
            let once =
                [FailPoint::KeyWritten, FailPoint::PackCreated, FailPoint::IndexWritten].contains(&point);
            if count == 1 || !once {
                assert_eq!(status.signal(), Some(9), "{armed} was never reached");
            }
            check(&store, &told);
        }
    }
}

/// A process with more nodes than one write takes: 100 MiB, of few different pages.
fn with_many_nodes(seed: u64) -> Pages {
    let (common, mut pages) = (page(seed), Pages::new());
    for leaf in 0..50u64 {
        pages.extend((0..512).map(|at| ((0, leaf * 512 + at), common)));
        pages.insert((0, leaf * 512), page(seed + 1 + leaf));
    }
    pages
}

#[test]
fn nodes_of_a_checkpoint_that_was_never_made_are_not_believed() {
    let store = Store::new();
    let server = store.serve_with(|command| {
        command.env(VARIABLE, FailPoint::NodesAnnounced.name());
    });
    let mut server = server.unwrap();
    let mut client = server.client();
    let first = checkpoint(&mut client, 1, &pages(1)).unwrap();
    assert!(checkpoint(&mut client, 2, &with_many_nodes(0)).is_err());
    assert_eq!(server.child.wait().unwrap().signal(), Some(9), "the failpoint was never reached");
    // What it wrote to its pack is written over, and then the same comes again.
    let server = store.serve();
    let mut client = server.client();
    assert_eq!(client.list().unwrap(), [first]);
    checkpoint(&mut client, 3, &memory(0, 200, 1 << 30)).unwrap();
    let again = with_many_nodes(0);
    let record = checkpoint(&mut client, 4, &again).unwrap();
    assert!(read_back(&mut client, &record.draft.processes[0].manifest) == again);
    let verified = client.verify(None).unwrap();
    assert!(verified.damage.is_empty(), "{:?}", verified.damage);
}

#[test]
fn a_crash_at_any_moment_loses_nothing_committed() {
    let store = Store::new();
    let mut told = Vec::new();
    let mut token = 0;
    for round in 0..12u64 {
        let server = store.serve();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                let mut taken = Vec::new();
                let Ok(mut client) = Client::connect(&store.directory) else { return taken };
                while !stop.load(Ordering::Relaxed) {
                    token += 1;
                    match checkpoint(&mut client, token, &pages(token)) {
                        Ok(record) => taken.push((token, record)),
                        Err(_) => break,
                    }
                }
                taken
            });
            // Not a wait for something: the moment of the crash, spread over several checkpoints.
            std::thread::sleep(Duration::from_millis(5 + 13 * round));
            server.crash();
            stop.store(true, Ordering::Relaxed);
            told.extend(taker.join().unwrap());
        });
        // A commit may have happened without its answer.
        let server = store.serve();
        let mut client = server.client();
        let listed = client.list().unwrap();
        assert!(told.iter().all(|(_, record)| listed.contains(record)));
        assert!(listed.len() <= told.len() + 1 + round as usize);
        let verified = client.verify(None).unwrap();
        assert!(verified.damage.is_empty(), "round {round}: {:?}", verified.damage);
        for (token, record) in told.iter().rev().take(2) {
            assert!(read_back(&mut client, &record.draft.processes[0].manifest) == pages(*token));
        }
    }
    assert!(!told.is_empty());
}
