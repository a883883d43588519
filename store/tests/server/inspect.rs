//! Questions about checkpoints: how much room they take, what differs.

use stasis_protocol::store::{Change, Difference};

use crate::fixture::{PAGE, Store, checkpoint, draft, dump, memory, send};

const PAGE_BYTES: u64 = PAGE as u64;

#[test]
fn a_checkpoint_owns_what_no_other_needs() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let mut first = memory(0, 100, 0);
    first.extend(memory(0x10_0000, 30, 1000));
    // Twice the same page, and zeros.
    first.insert((0, 0x20_0000), crate::fixture::page(1000));
    first.insert((0, 0x20_0001), [0; PAGE]);
    let mut second = memory(0x5000, 100, 0);
    second.extend(memory(0x10_0000, 50, 2000));
    let first = checkpoint(&mut client, 1, &first).unwrap();
    let second = checkpoint(&mut client, 2, &second).unwrap();
    let usage = client.disk_usage().unwrap();
    let pages = |bytes: u64| (bytes / PAGE_BYTES, bytes % PAGE_BYTES);
    assert_eq!(pages(usage.logical), (282, 0));
    assert_eq!((pages(usage.distinct), pages(usage.stored)), ((180, 0), (180, 0)));
    assert!(usage.packs >= usage.stored && usage.index > 0);
    let of = |at: usize| {
        let one = &usage.checkpoints[at];
        (one.id.clone(), one.logical / PAGE_BYTES, one.distinct / PAGE_BYTES, one.own / PAGE_BYTES)
    };
    assert_eq!((of(0), of(1)), ((first.id.clone(), 132, 130, 30), (second.id, 150, 150, 50)));
    client.prune(vec![first.id]).unwrap();
    let usage = client.disk_usage().unwrap();
    assert_eq!((usage.distinct / PAGE_BYTES, usage.stored / PAGE_BYTES), (150, 180), "30 pages are garbage");
    assert_eq!(usage.checkpoints[0].own / PAGE_BYTES, 150);
}

#[test]
fn a_difference_is_told_to_the_page() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let mut pages = memory(1000, 3000, 0);
    pages.extend(memory(1 << 30, 10, 50_000));
    let base = checkpoint(&mut client, 1, &pages).unwrap().draft.processes[0].manifest;
    client.begin_dump(2, 1, Some(base)).unwrap();
    let mut changes = memory(1500, 30, 90_000);
    changes.insert((7, 3), [1; PAGE]);
    changes.extend(memory(1 << 33, 2, 80_000));
    send(&mut client, &changes).unwrap();
    client.forget(0, 3990, 10).unwrap();
    client.forget(0, 1 << 30, 600).unwrap();
    let dumped = client.end_dump(Vec::new()).unwrap();
    client.commit(2, draft(&[dumped])).unwrap();

    let range = |space, first_page, pages, change| Difference { space, first_page, pages, change };
    let expected = [
        range(0, 1500, 30, Change::Changed),
        range(0, 3990, 10, Change::Removed),
        range(0, 1 << 30, 10, Change::Removed),
        range(0, 1 << 33, 2, Change::Added),
        range(7, 3, 1, Change::Added),
    ];
    assert_eq!(client.diff(&base, &dumped.0).unwrap(), expected);
    let back = client.diff(&dumped.0, &base).unwrap();
    assert_eq!((back.len(), back[3].change, back[0].change), (5, Change::Removed, Change::Changed));
    assert!(client.diff(&base, &base).unwrap().is_empty());
    assert!(client.diff(&base, &[1; 32]).unwrap_err().to_string().contains("missing"));
    assert_eq!(client.read_record(&base).unwrap(), b"the record");
    let other = dump(&mut client, 3, &memory(0, 1, 0)).unwrap();
    assert!(client.read_record(&other.0).is_err(), "it was not committed");
}
