//! Dumping, committing, reading back.

use stasis_protocol::store::{DumpStats, Hash};
use stasis_store::client::ListedPages;

use crate::fixture::{Pages, Store, checkpoint, draft, dump, memory, page, read_back, send};

const ZEROS: [u8; 4096] = [0; 4096];

#[test]
fn a_committed_process_reads_back_as_it_was() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let mut pages = memory(0x5_5555_5555, 700, 0);
    pages.extend(memory(0x7_ffff_f000, 33, 10_000));
    pages.extend((0..5).map(|at| ((3, at * 2), page(20_000 + at))));
    pages.insert((0, 0x100), ZEROS);
    let record = checkpoint(&mut client, 1, &pages).unwrap();
    assert_eq!((record.sequence, record.id.len()), (1, 16));
    assert_eq!(client.list().unwrap(), std::slice::from_ref(&record));
    assert_eq!(client.resolve("latest").unwrap(), record);
    let manifest = record.draft.processes[0].manifest;
    assert!(read_back(&mut client, &manifest) == pages);
    assert_eq!(client.read_record(&manifest).unwrap(), b"the record");
    let verified = client.verify(None).unwrap();
    assert_eq!((verified.pages, verified.damage.len()), (739, 0));

    // And by another server that knows only what is on the disk.
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    assert_eq!(client.list().unwrap(), [record]);
    assert!(read_back(&mut client, &manifest) == pages);
}

#[test]
fn what_is_known_is_not_written_again() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let pages = memory(1 << 20, 2000, 0);
    let first = checkpoint(&mut client, 1, &pages).unwrap().draft.processes[0].stats;
    assert_eq!(first, DumpStats { pages: 2000, received: 2000, written: 2000, zero: 0, bytes: 2000 * 4096 });
    // At other addresses, one page new, one twice.
    let mut moved: Pages = pages.iter().map(|((space, at), page)| ((*space, at + 77), *page)).collect();
    moved.insert((0, 5), page(1_000_000));
    moved.insert((0, 9), page(1_000_000));
    let second = checkpoint(&mut client, 2, &moved).unwrap().draft.processes[0].clone();
    let second = (second.manifest, second.stats);
    assert_eq!((second.1.pages, second.1.written), (2002, 1));
    assert!(read_back(&mut client, &second.0) == moved);

    // The index survives a crash, whether its entries were written before it or not.
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    let mut tokens = 3..100;
    let found = tokens.any(|token| dump(&mut client, token, &pages).unwrap().1.written == 0);
    assert!(found, "entries are recovered from the footers");
}

#[test]
fn zero_pages_are_named_and_cost_nothing() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let pages: Pages = (0..5000).map(|at| ((0, at), ZEROS)).collect();
    let record = checkpoint(&mut client, 1, &pages).unwrap();
    let stats = record.draft.processes[0].stats;
    assert_eq!((stats.pages, stats.zero, stats.written, stats.bytes), (5000, 5000, 0, 0));
    assert!(read_back(&mut client, &record.draft.processes[0].manifest) == pages);
    let process = client.read_process(&record.draft.processes[0].manifest, &[]).unwrap();
    assert_eq!(process.list.extents, 1, "one extent says it all");
}

/// Where the pages of a list lie, each with its name.
fn places(list: &ListedPages) -> Vec<(u32, u64, u64, u64, Hash)> {
    let (extents, names) = list.pages().unwrap();
    let pages = extents.iter().flat_map(|extent| {
        let at = (0..extent.pages).map(|at| (extent.first_page + at, extent.offset + at * 4096));
        at.map(|(page, offset)| (extent.space, page, extent.pack, offset))
    });
    pages
        .zip(names.iter())
        .map(|((space, page, pack, offset), name)| (space, page, pack, offset, *name))
        .collect()
}

#[test]
fn memory_of_which_there_is_much_is_listed_later_and_piece_by_piece() {
    const LEAF: u64 = 512;
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    // Twenty leaves side by side, the last one with one page, another object, and memory beside it.
    let mut pages = memory(10 * LEAF + 100, 19 * LEAF, 0);
    pages.extend(memory(10, 5, 50_000));
    pages.extend((0..3).map(|at| ((3, at + 11 * LEAF), page(60_000 + at))));
    let record = checkpoint(&mut client, 1, &pages).unwrap();
    let manifest = record.draft.processes[0].manifest;
    let whole = places(&client.read_process(&manifest, &[]).unwrap().list);
    assert_eq!(whole.len(), pages.len());

    let range = 10 * LEAF + 100..29 * LEAF + 100;
    let few = client.read_process(&manifest, &[0..100, range.start..range.start + 10 * LEAF]).unwrap();
    assert!(few.later.is_empty() && few.later_pages == 0 && places(&few.list) == whole);
    let outline = client.read_process(&manifest, std::slice::from_ref(&range)).unwrap();
    // Whole leaves: what lies beside them in their first and last one may be others'.
    assert!(matches!(&outline.later[..], [only] if *only == (11 * LEAF..29 * LEAF)), "{:?}", outline.later);
    assert_eq!(outline.later_pages, 18 * LEAF);
    let is_later =
        |&(space, page, ..): &(u32, u64, u64, u64, Hash)| space == 0 && outline.later[0].contains(&page);
    let mut all = places(&outline.list);
    assert!(!all.iter().any(is_later));
    for part in [11 * LEAF..12 * LEAF + 7, 12 * LEAF + 7..12 * LEAF + 9, 12 * LEAF + 9..29 * LEAF] {
        all.extend(places(&client.read_pages(&manifest, part).unwrap()));
    }
    all.sort_unstable();
    let mut sorted = whole;
    sorted.sort_unstable();
    assert!(all == sorted);
    assert!(places(&client.read_pages(&manifest, 0..10).unwrap()).is_empty());
    assert!(client.read_pages(&[7; 32], 0..10).is_err());
}

#[test]
fn unchanged_pages_come_from_the_base_and_forgotten_ones_do_not() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let mut pages = memory(1000, 3000, 0);
    pages.extend(memory(1 << 30, 10, 50_000));
    let base = checkpoint(&mut client, 1, &pages).unwrap().draft.processes[0].manifest;

    let mut changes = memory(1500, 3, 90_000);
    changes.insert((0, 1600), pages[&(0, 1600)]);
    changes.insert((0, 1601), ZEROS);
    changes.insert((7, 0), page(91_000));
    client.begin_dump(2, 1, Some(base)).unwrap();
    send(&mut client, &changes).unwrap();
    client.forget(0, 2000, 1700).unwrap();
    client.forget(0, 1 << 30, 1 << 40).unwrap();
    client.forget(0, 1500, 1).unwrap();
    client.forget(9, 0, u64::MAX).unwrap();
    let dumped = client.end_dump(Vec::new()).unwrap();
    let record = client.commit(2, draft(&[dumped])).unwrap();

    let mut expected = pages.clone();
    expected.extend(changes);
    expected
        .retain(|(space, at), _| *space != 0 || !(2000..3700).contains(at) && *at < (1 << 30) && *at != 1500);
    let stats = record.draft.processes[0].stats;
    assert_eq!((stats.pages, stats.received, stats.written), (expected.len() as u64, 6, 4));
    let manifest = record.draft.processes[0].manifest;
    assert!(read_back(&mut client, &manifest) == expected);
    assert!(read_back(&mut client, &base) == pages, "the base is what it was");

    // The same pages dumped in full have the same tree: the manifests differ in nothing but the record.
    let full = dump(&mut client, 3, &expected).unwrap();
    let full = client.commit(3, draft(&[full])).unwrap().draft.processes[0].clone();
    assert_eq!(full.stats.written, 0);
    assert!(read_back(&mut client, &full.manifest) == expected);
}

#[test]
fn a_page_given_twice_is_what_it_was_the_second_time() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    client.begin_dump(1, 1, None).unwrap();
    send(&mut client, &memory(10, 5, 0)).unwrap();
    send(&mut client, &memory(12, 1, 100)).unwrap();
    let dumped = client.end_dump(Vec::new()).unwrap();
    let record = client.commit(1, draft(&[dumped])).unwrap();
    let read = read_back(&mut client, &record.draft.processes[0].manifest);
    assert!(read[&(0, 12)] == page(100) && read[&(0, 11)] == page(1) && read.len() == 5);
}

#[test]
fn several_processes_make_one_checkpoint_committed_by_another_connection() {
    let store = Store::new();
    let server = store.serve();
    let mut coordinator = server.client();
    let dumped: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|process| {
                let mut client = server.client();
                scope.spawn(move || {
                    let mut pages = memory(0, 1000, 0);
                    pages.extend(memory(5000, 300, 10_000 * (process + 1)));
                    (dump(&mut client, 9, &pages).unwrap(), pages)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(coordinator.list().unwrap(), []);
    let entries: Vec<_> = dumped.iter().map(|(dumped, _)| *dumped).collect();
    let record = coordinator.commit(9, draft(&entries)).unwrap();
    for (entry, (_, pages)) in record.draft.processes.iter().zip(&dumped) {
        assert!(read_back(&mut coordinator, &entry.manifest) == *pages);
    }
    let written: u64 = entries.iter().map(|(_, stats)| stats.written).sum();
    assert_eq!(written, 1000 + 4 * 300, "what they have in common is written once");
}

#[test]
fn pages_of_a_dump_that_misses_its_commit_are_not_taken_for_known() {
    let store = Store::new();
    let server = store.serve();
    let (mut coordinator, mut late) = (server.client(), server.client());
    let dumped = dump(&mut coordinator, 1, &memory(0, 300, 0)).unwrap();
    late.begin_dump(1, 2, None).unwrap();
    let pages = memory(0, 300, 5000);
    send(&mut late, &pages).unwrap();
    coordinator.commit(1, draft(&[dumped])).unwrap();
    let problem = late.end_dump(Vec::new()).unwrap_err().to_string();
    assert!(problem.contains("committed without this dump"), "{problem}");

    // Something else takes their room in the pack.
    checkpoint(&mut coordinator, 2, &memory(0, 300, 9000)).unwrap();
    let record = checkpoint(&mut late, 3, &pages).unwrap();
    assert_eq!(record.draft.processes[0].stats.written, 300);
    assert!(read_back(&mut late, &record.draft.processes[0].manifest) == pages);
    assert!(late.verify(None).unwrap().damage.is_empty());
}

#[test]
fn a_dump_larger_than_a_pack_goes_on_in_the_next() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let count = (280 << 20) / 4096;
    let pages = memory(7, count, 0);
    let record = checkpoint(&mut client, 1, &pages).unwrap();
    let stats = record.draft.processes[0].stats;
    assert_eq!((stats.pages, stats.written), (count, count));
    let verified = client.verify(None).unwrap();
    assert_eq!((verified.pages, verified.damage.len()), (count, 0));
    let process = client.read_process(&record.draft.processes[0].manifest, &[]).unwrap();
    let packs: Vec<u64> = process.pages().unwrap().0.iter().map(|extent| extent.pack).collect();
    assert_eq!(packs.len(), 2, "one extent in each of two packs: {packs:?}");
    let usage = client.usage().unwrap();
    assert_eq!((usage.checkpoints, usage.logical, usage.unique), (1, count * 4096, count * 4096));
    assert!(usage.on_disk < count * 4096 + (32 << 20), "{usage:?}: what was allocated ahead is given back");

    // And it is all found again, after a crash, from the footers.
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    let found = (2..100).any(|token| dump(&mut client, token, &pages).unwrap().1.written == 0);
    assert!(found);
}

#[test]
fn what_is_not_committed_is_not_there() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let kept = checkpoint(&mut client, 1, &memory(0, 10, 0)).unwrap();
    let size = |path: &std::path::PathBuf| path.metadata().unwrap().len();
    let before: Vec<u64> = store.packs().iter().map(size).collect();

    let discarded = dump(&mut client, 2, &memory(0, 500, 1000)).unwrap();
    client.discard(2).unwrap();
    let problem = client.commit(2, draft(&[discarded])).unwrap_err().to_string();
    assert!(problem.contains("nothing has been dumped"), "{problem}");
    assert!(client.read_process(&discarded.0, &[]).is_err());

    // A process that dies in the middle of its dump.
    let mut dying = server.client();
    dying.begin_dump(3, 1, None).unwrap();
    send(&mut dying, &memory(0, 500, 2000)).unwrap();
    drop(dying);
    assert_eq!(client.list().unwrap(), [kept]);
    client.shutdown().unwrap();
    drop(client);
    let mut server = server;
    server.child.wait().unwrap();
    let after: Vec<u64> = store.packs().iter().map(size).collect();
    assert_eq!(before, after, "its room is given back");
}
