//! The server is killed at any moment while it does all that it can do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    os::fd::OwnedFd,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use stasis_store::{
    client::Client,
    failpoint::{FailPoint, VARIABLE},
};

use crate::{
    fixture::{Pages, Store, checkpoint, draft, memory, page, read_back, send},
    history::history,
};

/// What must hold, by id: what was told to be there, and has not been told to go.
#[derive(Default)]
struct Told {
    made: BTreeMap<String, Pages>,
    /// Asked to go, and perhaps gone.
    doubtful: BTreeSet<String>,
}

/// Takes checkpoints, one from the other, until the server is gone.
fn take(client: &mut Client, told: &Mutex<Told>, tokens: &AtomicU64) -> Option<()> {
    let token = tokens.fetch_add(1, Ordering::Relaxed);
    let mut pages = memory(0x1000, 600, token << 20);
    let mut last = checkpoint(client, token, &pages).ok()?;
    told.lock().unwrap().made.insert(last.id.clone(), pages.clone());
    loop {
        let token = tokens.fetch_add(1, Ordering::Relaxed);
        let changes: Pages =
            (0..8).map(|at| ((0, 0x1000 + (token * 31 + at * 71) % 600), page(token << 20 | at))).collect();
        client.begin_dump(token, 1, Some(last.draft.processes[0].manifest)).ok()?;
        send(client, &changes).ok()?;
        pages.extend(changes);
        let dumped = client.end_dump(Vec::new()).ok()?;
        last = client.commit(token, draft(&[dumped])).ok()?;
        told.lock().unwrap().made.insert(last.id.clone(), pages.clone());
    }
}

/// Deletes all but some, and collects, until the server is gone.
fn give_back(client: &mut Client, told: &Mutex<Told>) -> Option<()> {
    loop {
        let listed = client.list().ok()?;
        let ids: Vec<String> = listed
            .iter()
            .rev()
            .skip(6)
            .filter(|record| record.sequence % 5 > 0)
            .map(|record| record.id.clone())
            .collect();
        {
            let mut told = told.lock().unwrap();
            told.doubtful.extend(ids.iter().cloned());
            ids.iter().for_each(|id| {
                told.made.remove(id);
            });
        }
        client.prune(ids).ok()?;
        client.collect(true).ok()?;
    }
}

/// Imports what another store has exported, and deletes it, until the server is gone.
fn import(client: &mut Client, stream: &[u8], ids: &BTreeSet<String>) -> Option<()> {
    loop {
        let (reader, mut writer) = std::io::pipe().ok()?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = writer.write_all(stream);
            });
            client.import(reader.into())
        })
        .ok()?;
        client.prune(ids.iter().cloned().collect()).ok()?;
    }
}

/// What another store exports, with its pages by id.
fn foreign() -> (Vec<u8>, BTreeMap<String, Pages>) {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let history = history(&mut client, 6);
    let path = store.directory.with_file_name("stream");
    let references = history.iter().map(|(record, _)| record.id.clone()).collect();
    client.export(references, OwnedFd::from(File::create(&path).unwrap())).unwrap();
    let stream = fs::read(&path).unwrap();
    (stream, history.into_iter().map(|(record, pages)| (record.id, pages)).collect())
}

#[test]
fn two_hundred_crashes_under_load_lose_nothing_committed() {
    let (stream, foreign) = foreign();
    let ids: BTreeSet<String> = foreign.keys().cloned().collect();
    let store = Store::new();
    let (told, tokens) = (Mutex::new(Told::default()), AtomicU64::new(1));
    for round in 0..200u64 {
        let server = store.serve();
        std::thread::scope(|scope| {
            let with_client = |work: &dyn Fn(&mut Client) -> Option<()>| {
                if let Ok(mut client) = Client::connect(&store.directory) {
                    assert!(work(&mut client).is_none(), "it goes on until the server is gone");
                }
            };
            let (told, tokens, stream, ids) = (&told, &tokens, &stream, &ids);
            scope.spawn(move || with_client(&|client| take(client, told, tokens)));
            scope.spawn(move || with_client(&|client| take(client, told, tokens)));
            scope.spawn(move || with_client(&|client| give_back(client, told)));
            scope.spawn(move || with_client(&|client| import(client, stream, ids)));
            // Not a wait for something: the moment of the crash.
            std::thread::sleep(Duration::from_millis(3 + (round * 37) % 90));
            server.crash();
        });
        // What is there is whole, and all that must be there is.
        let server = store.serve();
        let mut client = server.client();
        let listed = client.list().unwrap();
        let there: BTreeSet<&String> = listed.iter().map(|record| &record.id).collect();
        let told = told.lock().unwrap();
        for id in told.made.keys() {
            assert!(there.contains(id), "round {round}: {id} is missing");
        }
        for record in
            listed.iter().rev().take(3).chain(listed.iter().filter(|record| ids.contains(&record.id)))
        {
            let read = read_back(&mut client, &record.draft.processes[0].manifest);
            if let Some(pages) = told.made.get(&record.id).or_else(|| foreign.get(&record.id)) {
                assert!(read == *pages, "round {round}: {}", record.id);
            }
        }
        if round % 10 == 9 {
            let verified = client.verify(None).unwrap();
            assert!(verified.damage.is_empty(), "round {round}: {:?}", verified.damage);
        }
    }
    // Nothing of all that is left but what is needed.
    let server = store.serve();
    let mut client = server.client();
    let all = client.list().unwrap();
    assert!(all.len() > 10, "{} checkpoints were left", all.len());
    client.prune(all.into_iter().map(|record| record.id).collect()).unwrap();
    client.collect(true).unwrap();
    let usage = client.disk_usage().unwrap();
    assert_eq!((usage.stored, usage.distinct), (0, 0));
}

#[test]
fn a_crash_at_any_step_of_an_import_imports_all_or_nothing() {
    let (stream, foreign) = foreign();
    for point in [
        FailPoint::FooterWritten,
        FailPoint::PackSynced,
        FailPoint::BatchBuilt,
        FailPoint::BatchWritten,
        FailPoint::IndexPartial,
    ] {
        let store = Store::new();
        let armed = point.name();
        let mut server = store
            .serve_with(|command| {
                command.env(VARIABLE, armed);
            })
            .unwrap();
        let mut client = server.client();
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            let stream = &stream;
            scope.spawn(move || writer.write_all(stream));
            let _ = client.import(reader.into());
        });
        server.child.wait().unwrap();
        let server = store.serve();
        let mut client = server.client();
        let listed = client.list().unwrap();
        let is_made = [FailPoint::BatchWritten, FailPoint::IndexPartial].contains(&point);
        assert_eq!(listed.len(), if is_made { foreign.len() } else { 0 }, "{armed}");
        for record in &listed {
            assert!(
                read_back(&mut client, &record.draft.processes[0].manifest) == foreign[&record.id],
                "{armed}"
            );
        }
        assert!(client.verify(None).unwrap().damage.is_empty(), "{armed}");
    }
}
