//! From one store to another.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use stasis_protocol::store::{CheckpointRecord, Imported};
use stasis_store::client::{Client, ClientError};

use crate::fixture::{Pages, Store, checkpoint, draft, dump, memory, page, read_back};

fn pages(token: u64) -> Pages {
    let mut pages = memory(0x1000, 700, 0);
    pages.extend(memory(0x9_0000, 300, 10_000 * token));
    pages.insert((0, 0x20_0000), [0; 4096]);
    pages.insert((3, 7), page(10_000 * token));
    pages
}

/// Three checkpoints, each the parent of the next; the second has a label and two processes.
fn three(client: &mut Client) -> Vec<CheckpointRecord> {
    let mut records: Vec<CheckpointRecord> = Vec::new();
    for token in 1..4 {
        let dumped = dump(client, token, &pages(token)).unwrap();
        let mut draft = draft(&[dumped]);
        draft.parent = records.last().map(|record| record.id.clone());
        if token == 2 {
            let other = dump(client, token, &pages(9)).unwrap();
            let mut second = draft.processes[0].clone();
            (second.pid, second.manifest, second.stats) = (2, other.0, other.1);
            draft.processes.push(second);
            draft.label = Some("both".into());
        }
        records.push(client.commit(token, draft).unwrap());
    }
    records
}

fn export(client: &mut Client, references: &[&str], path: &Path) -> Vec<u8> {
    let references = references.iter().map(ToString::to_string).collect();
    let exported = client.export(references, OwnedFd::from(File::create(path).unwrap())).unwrap();
    let bytes = fs::read(path).unwrap();
    assert_eq!(exported.bytes, bytes.len() as u64);
    bytes
}

fn import(client: &mut Client, bytes: &[u8]) -> Result<Imported, ClientError> {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Whoever reads may have seen enough.
            let _ = writer.write_all(bytes);
        });
        client.import(reader.into())
    })
}

fn stream_path(store: &Store) -> PathBuf {
    store.directory.with_file_name("stream")
}

#[test]
fn checkpoints_are_in_another_store_what_they_were() {
    let (here, there) = (Store::new(), Store::new());
    let (server, other) = (here.serve(), there.serve());
    let (mut client, mut target) = (server.client(), other.client());
    let records = three(&mut client);
    let bytes = export(&mut client, &["latest", "both", "latest~2", "both"], &stream_path(&here));
    // Every page once: 700 common ones, 300 of each of four processes.
    assert!(bytes.len() < 2000 * 4096, "{} bytes", bytes.len());

    // Some of the pages are there.
    checkpoint(&mut target, 1, &memory(0, 700, 0)).unwrap();
    let imported = import(&mut target, &bytes).unwrap();
    assert_eq!((imported.known, imported.pages, imported.written), (0, 1900, 1200));
    // They are older than the one that was taken here.
    let listed = target.list().unwrap();
    assert_eq!(listed[..3], imported.checkpoints);
    for (record, original) in listed[..3].iter().zip(&records) {
        let same = |record: &CheckpointRecord| {
            let draft = &record.draft;
            (record.id.clone(), record.taken_us, draft.parent.clone(), draft.label.clone())
        };
        assert_eq!(same(record), same(original));
        for (process, original) in record.draft.processes.iter().zip(&original.draft.processes) {
            assert_ne!(process.manifest, original.manifest, "names are keyed");
            assert_eq!(process.stats, original.stats);
            let expected = read_back(&mut client, &original.manifest);
            assert!(read_back(&mut target, &process.manifest) == expected);
            assert_eq!(target.read_record(&process.manifest).unwrap(), b"the record");
        }
    }
    assert_eq!(target.resolve("both").unwrap().id, records[1].id);
    assert_eq!(target.resolve("latest~2").unwrap().id, records[1].id);
    assert!(target.verify(None).unwrap().damage.is_empty());

    // Again: nothing happens. And with one of them gone, that one comes back.
    let again = import(&mut target, &bytes).unwrap();
    assert_eq!((again.known, again.checkpoints.len(), again.written), (3, 0, 0));
    target.prune(vec![records[2].id.clone()]).unwrap();
    target.collect(true).unwrap();
    let again = import(&mut target, &bytes).unwrap();
    assert_eq!((again.known, &again.checkpoints[0].id), (2, &records[2].id));
    assert!(read_back(&mut target, &again.checkpoints[0].draft.processes[0].manifest) == pages(3));

    // It is durable.
    other.crash();
    let other = there.serve();
    let mut target = other.client();
    assert_eq!(target.list().unwrap().len(), 4);
    assert!(target.verify(None).unwrap().damage.is_empty());
    // And exported from there, the same.
    let back = export(&mut target, &["both"], &stream_path(&there));
    assert_eq!(back, export(&mut client, &["both"], &stream_path(&here)));
}

#[test]
fn a_stream_that_is_cut_or_damaged_imports_nothing() {
    let (here, there) = (Store::new(), Store::new());
    let (server, other) = (here.serve(), there.serve());
    three(&mut server.client());
    let bytes = export(&mut server.client(), &["latest", "both"], &stream_path(&here));
    let mut target = other.client();
    let kept = checkpoint(&mut target, 1, &memory(0, 10, 77_000)).unwrap();
    let sizes = || -> u64 { there.packs().iter().map(|path| path.metadata().unwrap().len()).sum() };
    let before = sizes();
    let end = bytes.len();
    for cut in [0, 7, 15, 16, 20, 4000, end / 2, end - 33, end - 1] {
        let problem = import(&mut target, &bytes[..cut]).unwrap_err().to_string();
        let reason = if cut < 16 { "not a stream" } else { "ends in the middle" };
        assert!(problem.contains("nothing was imported") && problem.contains(reason), "{cut}: {problem}");
    }
    for at in [17, 20, 23, 30, 1000, end / 3, end / 2, end - 100, end - 40, end - 10] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let problem = import(&mut target, &damaged).unwrap_err().to_string();
        let reason = ["damaged before byte", "ends in the middle"];
        assert!(reason.iter().any(|reason| problem.contains(reason)), "{at}: {problem}");
    }
    let mut newer = bytes.clone();
    newer[8] = 9;
    assert!(import(&mut target, &newer).unwrap_err().to_string().contains("format 9"));
    let longer = [&bytes[..], b"x"].concat();
    assert!(import(&mut target, &longer).unwrap_err().to_string().contains("something follows"));
    assert_eq!(target.list().unwrap(), std::slice::from_ref(&kept));
    assert_eq!(sizes(), before, "what was written is cut off");
    import(&mut target, &bytes).unwrap();
    assert_eq!(target.list().unwrap().len(), 3);
    assert!(target.verify(None).unwrap().damage.is_empty());
}

#[test]
fn a_damaged_page_is_not_exported() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let record = checkpoint(&mut client, 1, &memory(0, 600, 0)).unwrap();
    let process = client.read_process(&record.draft.processes[0].manifest, &[]).unwrap();
    let extent = process.pages().unwrap().0[0];
    let path = store.directory.join(format!("packs/{:08x}.pack", extent.pack));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 64], extent.offset + 4096 * 300).unwrap();
    let out = File::create(stream_path(&store)).unwrap();
    let problem = client.export(vec!["latest".into()], out.into()).unwrap_err().to_string();
    for part in [&record.id, &path.display().to_string(), "holds something else"] {
        assert!(problem.contains(part), "{problem}");
    }
    // And nobody takes what was written before that for the whole.
    let bytes = fs::read(stream_path(&store)).unwrap();
    assert!(import(&mut client, &bytes).unwrap_err().to_string().contains("ends in the middle"));
}

#[test]
fn what_is_imported_again_is_as_old_as_it_was() {
    let (store, other) = (Store::new(), Store::new());
    let (server, elsewhere) = (store.serve(), other.serve());
    let (mut client, mut target) = (server.client(), elsewhere.client());
    let mut take = |token: u64| {
        let dumped = dump(&mut client, token, &pages(token)).unwrap();
        let mut draft = draft(&[dumped]);
        draft.label = Some(if token == 3 { "third" } else { "one" }.into());
        client.commit(token, draft).unwrap()
    };
    let records: Vec<CheckpointRecord> = (1..4).map(&mut take).collect();
    let ids = |client: &mut Client| -> Vec<(String, Option<String>)> {
        client.list().unwrap().into_iter().map(|record| (record.id, record.draft.label)).collect()
    };
    let expected: Vec<(String, Option<String>)> = [None, Some("one"), Some("third")]
        .into_iter()
        .zip(&records)
        .map(|(label, record)| (record.id.clone(), label.map(Into::into)))
        .collect();
    assert_eq!(ids(&mut client), expected, "a label is shown where it is");
    // In whatever order they come, they lie where their time puts them.
    for reference in ["third", &records[0].id, "one"] {
        let bytes = export(&mut client, &[reference], &stream_path(&store));
        import(&mut target, &bytes).unwrap();
    }
    assert_eq!(ids(&mut target), expected);
    assert_eq!(target.resolve("latest").unwrap().id, records[2].id);
    // Nor does one that comes back pass those that stayed, or take their labels.
    let bytes = export(&mut client, &[&records[1].id], &stream_path(&store));
    client.prune(vec![records[1].id.clone()]).unwrap();
    assert_eq!(client.resolve("one").unwrap().id, records[0].id);
    import(&mut client, &bytes).unwrap();
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    assert_eq!(ids(&mut client), expected);
    assert_eq!(client.resolve("latest").unwrap().id, records[2].id);
    assert_eq!(client.resolve("one").unwrap().id, records[1].id);
    let fourth = checkpoint(&mut client, 4, &pages(4)).unwrap();
    assert_eq!(client.resolve("latest").unwrap().id, fourth.id);
}
