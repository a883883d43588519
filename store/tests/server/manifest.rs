//! Manifests that are damaged in the index.

use rocksdb::{DB, IteratorMode, Options};
use stasis_store::client::ClientError;

use crate::{
    fixture::{Store, checkpoint, memory, read_back},
    history::next,
};

/// Flips a bit of the nodes that begin with `tag`; returns how many there are.
fn damage(store: &Store, tag: u8) -> usize {
    let path = store.directory.join("index");
    let db = DB::open_cf(&Options::default(), path, ["default", "pages", "nodes"]).unwrap();
    let nodes = db.cf_handle("nodes").unwrap();
    let found: Vec<_> = db
        .iterator_cf(nodes, IteratorMode::Start)
        .map(Result::unwrap)
        .filter(|(_, node)| node.first() == Some(&tag))
        .collect();
    for (name, node) in &found {
        let mut node = node.to_vec();
        *node.last_mut().unwrap() ^= 1;
        db.put_cf(nodes, name, node).unwrap();
    }
    found.len()
}

/// Ends the server and waits until the index is closed.
fn end(mut server: crate::fixture::Server) {
    server.client().shutdown().unwrap();
    server.child.wait().unwrap();
}

#[test]
fn a_damaged_manifest_stops_a_collection_by_name_and_a_full_dump_heals_it() {
    for tag in [b'L', b'D', b'N'] {
        let store = Store::new();
        let server = store.serve();
        let mut client = server.client();
        let mut pages = memory(0x1000, 512, 0);
        let first = checkpoint(&mut client, 1, &pages).unwrap();
        let changes = memory(0x1010, 3, 10_000);
        pages.extend(changes.clone());
        let second = next(&mut client, 2, &first, &changes);
        let gone = checkpoint(&mut client, 3, &memory(0x9_0000, 2000, 20_000)).unwrap();
        client.prune(vec![gone.id, first.id]).unwrap();
        drop(client);
        end(server);
        assert!(damage(&store, tag) > 0);

        let server = store.serve();
        let mut client = server.client();
        let before: Vec<_> = store.packs();
        let Err(ClientError::Refused(said)) = client.collect(true) else {
            panic!("a collection of what is damaged")
        };
        for part in [&second.id[..], "pid 1", "manifest", "Nothing was removed", "stasis prune --no-gc"] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert_eq!(store.packs(), before);
        let found = client.verify(None).unwrap().damage;
        assert!(!found.is_empty() && found.iter().all(|line| line.contains(&second.id)), "{found:?}");

        let again = checkpoint(&mut client, 4, &pages).unwrap();
        assert_eq!(again.draft.processes[0].stats.written, 0);
        for record in [&again, &second] {
            assert!(read_back(&mut client, &record.draft.processes[0].manifest) == pages, "{}", tag as char);
        }
        assert!(client.verify(None).unwrap().damage.is_empty());
        let collected = client.collect(true).unwrap();
        assert!(collected.freed > 0, "{collected:?}");
        assert!(read_back(&mut client, &second.draft.processes[0].manifest) == pages);
    }
}
