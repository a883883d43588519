//! Damaged pages are stored again.

use std::{fs::OpenOptions, os::unix::fs::FileExt};

use stasis_protocol::store::CheckpointRecord;

use crate::{
    fixture::{Store, checkpoint, draft, dump, memory, read_back, send},
    history::next,
};

fn manifest(record: &CheckpointRecord) -> &[u8; 32] {
    &record.draft.processes[0].manifest
}

/// Turns over bits of a page of a process, counted from its first; again, and it is as it was.
fn flip(store: &Store, client: &mut stasis_store::client::Client, record: &CheckpointRecord, page: u64) {
    let extent = client.read_process(manifest(record), &[]).unwrap().pages().unwrap().0[0];
    let path = store.directory.join(format!("packs/{:08x}.pack", extent.pack));
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    let at = extent.offset + page * 4096 + 100;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn a_page_that_verify_found_damaged_is_stored_again_and_heals_all_that_have_it() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let pages = memory(0x1000, 600, 0);
    let first = checkpoint(&mut client, 1, &pages).unwrap();
    flip(&store, &mut client, &first, 5);
    flip(&store, &mut client, &first, 300);
    // Nobody has looked: it is taken for what it was.
    assert_eq!(dump(&mut client, 2, &pages).unwrap().1.written, 0);
    client.discard(2).unwrap();
    assert_eq!(client.verify(None).unwrap().damage.len(), 2);
    // It is remembered.
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    // What has not been sent again could not be healed: the store asks for all.
    assert!(!client.begin_dump(3, 1, Some(*manifest(&first))).unwrap());
    client.abort_dump().unwrap();
    client.discard(3).unwrap();
    // Until the places of pages are read from the footers, more are written again.
    let mut tokens = (100..200).filter(|token| {
        let (_, stats) = dump(&mut client, *token, &pages).unwrap();
        client.discard(*token).unwrap();
        stats.written == 2
    });
    assert!(tokens.next().is_some(), "two pages are stored again, and no others");
    let second = checkpoint(&mut client, 4, &pages).unwrap();
    assert_eq!(second.draft.processes[0].stats.written, 2);
    for record in [&first, &second] {
        assert!(read_back(&mut client, manifest(record)) == pages);
    }
    assert!(client.verify(None).unwrap().damage.is_empty());
    let third = next(&mut client, 5, &second, &memory(0x1000, 1, 7000));
    // The damaged copies are garbage: their pack can be emptied, and the healed pages stay.
    let gone = checkpoint(&mut client, 6, &memory(0x9_0000, 3000, 90_000)).unwrap();
    client.prune(vec![gone.id]).unwrap();
    let collected = client.collect(true).unwrap();
    assert_eq!((collected.packs_compacted, collected.left), (1, vec![]));
    for record in [&first, &second] {
        assert!(read_back(&mut client, manifest(record)) == pages);
    }
    assert_eq!(read_back(&mut client, manifest(&third)).len(), 600);
    assert!(client.verify(None).unwrap().damage.is_empty());
}

#[test]
fn a_disk_that_comes_back_makes_pages_whole_again() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let pages = memory(0x1000, 100, 0);
    let record = checkpoint(&mut client, 1, &pages).unwrap();
    flip(&store, &mut client, &record, 7);
    assert_eq!(client.verify(None).unwrap().damage.len(), 1);
    flip(&store, &mut client, &record, 7);
    assert!(client.verify(None).unwrap().damage.is_empty());
    assert!(client.begin_dump(2, 1, Some(*manifest(&record))).unwrap(), "the base is whole");
    send(&mut client, &memory(0x1000, 1, 500)).unwrap();
    let dumped = client.end_dump(Vec::new()).unwrap();
    let next = client.commit(2, draft(&[dumped])).unwrap();
    assert_eq!(
        (next.draft.processes[0].stats.written, dump(&mut client, 3, &pages).unwrap().1.written),
        (1, 0)
    );
}

#[test]
fn a_pack_that_comes_back_is_not_damaged_for_the_next_server() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let pages = memory(0x1000, 100, 0);
    let record = checkpoint(&mut client, 1, &pages).unwrap();
    let extent = client.read_process(manifest(&record), &[]).unwrap().pages().unwrap().0[0];
    let pack = store.directory.join(format!("packs/{:08x}.pack", extent.pack));
    let aside = store.directory.with_extension("aside");
    std::fs::rename(&pack, &aside).unwrap();
    let verified = client.verify(None).unwrap();
    assert_eq!((verified.pages, verified.damage.len()), (100, 100));
    assert!(!client.begin_dump(2, 1, Some(*manifest(&record))).unwrap(), "nothing refers to it meanwhile");
    client.abort_dump().unwrap();
    std::fs::rename(&aside, &pack).unwrap();
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    assert!(client.begin_dump(3, 1, Some(*manifest(&record))).unwrap(), "the base is whole");
    client.abort_dump().unwrap();
    assert!(client.verify(None).unwrap().damage.is_empty());
    assert!(read_back(&mut client, manifest(&record)) == pages);
}

/// Takes away packs, or half of each.
fn harm_packs(store: &Store, is_cut: bool) -> String {
    for pack in store.packs() {
        if is_cut {
            let file = OpenOptions::new().write(true).open(&pack).unwrap();
            file.set_len(pack.metadata().unwrap().len() / 2).unwrap();
        } else {
            std::fs::remove_file(&pack).unwrap();
        }
    }
    store.directory.join("packs").display().to_string()
}

#[test]
fn what_was_in_a_pack_that_is_gone_or_cut_when_the_server_starts_is_stored_again() {
    for is_cut in [false, true] {
        let store = Store::new();
        let server = store.serve();
        let mut client = server.client();
        let pages = memory(0x1000, 600, 0);
        let first = checkpoint(&mut client, 1, &pages).unwrap();
        server.crash();
        harm_packs(&store, is_cut);
        let server = store.serve();
        let mut client = server.client();
        assert!(!client.begin_dump(2, 1, Some(*manifest(&first))).unwrap(), "its pages are not there");
        client.abort_dump().unwrap();
        let second = checkpoint(&mut client, 3, &pages).unwrap();
        let written = second.draft.processes[0].stats.written;
        // The footer is gone in either case, and the names that were in it.
        assert_eq!(written, 600);
        for record in [&first, &second] {
            assert!(read_back(&mut client, manifest(record)) == pages);
        }
        assert!(client.verify(None).unwrap().damage.is_empty());
    }
}

#[test]
fn a_pack_that_is_removed_under_the_server_takes_no_checkpoint_with_it() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let mut pages = memory(0x1000, 600, 0);
    checkpoint(&mut client, 1, &pages).unwrap();
    let packs = harm_packs(&store, false);
    pages.extend(memory(0x8000, 10, 9000));
    let problem = checkpoint(&mut client, 2, &pages).unwrap_err().to_string();
    assert!(problem.contains(&packs) && problem.contains("take it again"), "{problem}");
    let record = checkpoint(&mut client, 3, &pages).unwrap();
    assert!(read_back(&mut client, manifest(&record)) == pages);
    assert!(client.verify(Some(&record.id)).unwrap().damage.is_empty());
}
