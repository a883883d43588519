//! An index that is not what it was when the last checkpoint was committed.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use stasis_protocol::store::CheckpointRecord;

use crate::fixture::{Pages, Store, checkpoint, manifest, memory, read_back};

/// A store that was killed after some checkpoints, and a copy of its directory.
struct Killed {
    store: Store,
    kept: PathBuf,
    all: Vec<(CheckpointRecord, Pages)>,
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// A change of a file's bytes.
type Harm = Box<dyn Fn(&mut Vec<u8>)>;

fn cut(part: usize, of: usize) -> Harm {
    Box::new(move |bytes| bytes.truncate(bytes.len() * part / of))
}

fn flip(part: usize, of: usize) -> Harm {
    Box::new(move |bytes| {
        let at = bytes.len() * part / of;
        bytes[at] ^= 4;
    })
}

fn zeros() -> Harm {
    Box::new(|bytes| bytes.fill(0))
}

impl Killed {
    /// Of what is committed, the first part is in tables, and the last in the log.
    fn new() -> Self {
        let store = Store::new();
        let mut all = Vec::new();
        for round in 0..2u64 {
            let server = store.serve();
            let mut client = server.client();
            for token in 0..4 {
                let pages = memory(0, 100, (round * 4 + token) * 1000);
                all.push((checkpoint(&mut client, token + 1, &pages).unwrap(), pages));
            }
            if round == 0 {
                // So that names of pages are in a table.
                client.shutdown().unwrap();
                let mut server = server;
                server.child.wait().unwrap();
            } else {
                server.crash();
            }
        }
        let kept = store.directory.with_extension("kept");
        copy(&store.directory, &kept);
        Self { store, kept, all }
    }

    fn back(&self) {
        copy(&self.kept, &self.store.directory);
    }

    /// The file in `index` whose name begins or ends so.
    fn file(&self, part: &str) -> PathBuf {
        let mut found: Vec<PathBuf> =
            fs::read_dir(self.kept.join("index")).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(part) || name.ends_with(part)
        });
        found.sort();
        self.store.directory.join("index").join(found.last().unwrap().file_name().unwrap())
    }

    fn harm(&self, path: &Path, harm: &Harm) {
        self.back();
        let mut bytes = fs::read(path).unwrap();
        harm(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// The server refuses twice, names `path`, and changes nothing that the way back needs.
    fn is_refused(&self, path: &Path, what: &str) {
        let before = self.packs();
        for _ in 0..2 {
            let output =
                self.store.command().arg(&self.store.directory).arg("--foreground").output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success(), "{what}");
            assert!(
                said.contains(path.to_str().unwrap()) && said.contains("back as it was"),
                "{what}: {said}"
            );
            assert_eq!(self.packs(), before, "{what}");
        }
    }

    fn is_refused_for_its_secret(&self, key: &Path) {
        let before = self.packs();
        let output = self.store.command().arg(&self.store.directory).arg("--foreground").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(key.to_str().unwrap()), "{said}");
        assert_eq!(self.packs(), before);
    }

    fn packs(&self) -> Vec<(PathBuf, u64)> {
        self.store.packs().into_iter().map(|path| (path.clone(), path.metadata().unwrap().len())).collect()
    }

    fn is_whole(&self) {
        let server = self.store.serve();
        let mut client = server.client();
        let records: Vec<CheckpointRecord> = self.all.iter().map(|(record, _)| record.clone()).collect();
        assert_eq!(client.list().unwrap(), records);
        for (record, pages) in &self.all {
            assert!(read_back(&mut client, manifest(record)) == *pages, "{}", record.id);
        }
    }
}

#[test]
fn an_index_that_has_lost_committed_changes_is_refused_by_name_and_nothing_is_removed() {
    let killed = Killed::new();
    let log = killed.file(".log");
    for part in 0..8 {
        killed.harm(&log, &cut(part, 8));
        killed.is_refused(&log, &format!("log cut at {part}/8"));
        killed.harm(&log, &flip(part, 8));
        killed.is_refused(&log, &format!("log flipped at {part}/8"));
    }
    killed.harm(&log, &zeros());
    killed.is_refused(&log, "log of zeros");
    killed.back();
    fs::remove_file(&log).unwrap();
    killed.is_refused(log.parent().unwrap(), "no log");
    let tables = killed.file("MANIFEST-");
    for part in 0..16 {
        killed.harm(&tables, &cut(part, 16));
        killed.is_refused(&tables, &format!("MANIFEST cut at {part}/16"));
        killed.harm(&tables, &flip(part, 16));
        killed.is_refused(&tables, &format!("MANIFEST flipped at {part}/16"));
    }
    killed.back();
    killed.is_whole();
}

#[test]
fn an_older_index_that_is_put_back_is_refused_and_the_newer_one_goes_on() {
    let killed = Killed::new();
    let (index, older) =
        (killed.store.directory.join("index"), killed.store.directory.with_extension("older"));
    for is_open in [false, true] {
        killed.back();
        if is_open {
            // The server of the newer one has come to another MANIFEST.
            killed.store.serve().crash();
        }
        let server = killed.store.serve();
        copy(&killed.kept.join("index"), &older);
        let record = checkpoint(&mut server.client(), 9, &memory(0, 100, 90_000)).unwrap();
        server.crash();
        let newer = killed.store.directory.with_extension("newer");
        copy(&index, &newer);
        copy(&older, &index);
        killed.is_refused(&index, "an older copy");
        copy(&newer, &index);
        let server = killed.store.serve();
        let mut client = server.client();
        assert_eq!(client.list().unwrap().last(), Some(&record));
        assert!(read_back(&mut client, manifest(&record)) == memory(0, 100, 90_000));
    }
}

#[test]
fn what_is_left_of_an_index_goes_on_where_that_is_wanted() {
    let killed = Killed::new();
    let log = killed.file(".log");
    killed.harm(&log, &cut(7, 8));
    killed.is_refused(&log, "cut");
    fs::remove_file(killed.store.directory.join("COUNT")).unwrap();
    let server = killed.store.serve();
    let mut client = server.client();
    let left = client.list().unwrap();
    assert_eq!(left.len(), killed.all.len() - 1);
    for (record, pages) in &killed.all[..left.len()] {
        assert!(read_back(&mut client, manifest(record)) == *pages, "{}", record.id);
    }
    assert!(client.verify(None).unwrap().damage.is_empty());
    checkpoint(&mut client, 20, &memory(0, 100, 0)).unwrap();
    server.crash();
    assert_eq!(killed.store.serve().client().list().unwrap().len(), left.len() + 1);
}

/// As after a loss of power, which leaves of what was not synced whatever it likes.
#[test]
fn what_was_never_synced_may_be_anything() {
    let killed = Killed::new();
    let (log, count) = (killed.file(".log"), killed.store.directory.join("COUNT"));
    let garbage: Vec<u8> = (0..5000u32).map(|at| (at * 2_654_435_761) as u8).collect();
    for tail in [&garbage[..], &garbage[..3], &[0; 5000]] {
        killed.back();
        fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(tail).unwrap();
        killed.is_whole();
    }
    for content in [None, Some(&b""[..]), Some(&[0; 64]), Some(&garbage[..64]), Some(&garbage)] {
        killed.back();
        fs::remove_file(&count).unwrap();
        if let Some(content) = content {
            fs::write(&count, content).unwrap();
        }
        killed.is_whole();
    }
}

#[test]
fn another_secret_than_the_stores_is_refused() {
    let killed = Killed::new();
    let key = killed.store.directory.join("key");
    for harm in [flip(0, 32), flip(31, 32), zeros(), cut(1, 2)] {
        killed.harm(&key, &harm);
        killed.is_refused_for_its_secret(&key);
    }
    killed.back();
    killed.is_whole();
}

/// The table that holds names of pages: its family's name is in it.
fn names(killed: &Killed) -> PathBuf {
    let mut tables: Vec<PathBuf> =
        fs::read_dir(killed.kept.join("index")).unwrap().map(|entry| entry.unwrap().path()).collect();
    tables.retain(|path| path.extension().is_some_and(|extension| extension == "sst"));
    let holds_names = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes.windows(5).any(|part| part == b"pages")
    };
    tables.retain(holds_names);
    assert_eq!(tables.len(), 1, "{tables:?}");
    killed.store.directory.join("index").join(tables[0].file_name().unwrap())
}

#[test]
fn damaged_names_of_pages_are_made_anew_and_no_checkpoint_misses_them() {
    let killed = Killed::new();
    let table = names(&killed);
    let harms = [Some(cut(0, 1)), Some(cut(1, 2)), Some(zeros()), None, Some(flip(0, 8)), Some(flip(1, 8))];
    for (case, harm) in harms.into_iter().enumerate() {
        killed.back();
        match &harm {
            Some(harm) => killed.harm(&table, harm),
            None => fs::remove_file(&table).unwrap(),
        }
        killed.is_whole();
        let all: Vec<(u64, &Pages)> = (30..).zip(killed.all.iter().map(|(_, pages)| pages)).collect();
        let take = |client: &mut stasis_store::client::Client, token: u64, pages: &Pages| {
            let record = checkpoint(client, token, pages).unwrap();
            assert!(read_back(client, manifest(&record)) == *pages, "case {case}");
            record.draft.processes[0].stats.written
        };
        let server = killed.store.serve();
        let mut client = server.client();
        // Opened without them, or where they are met: pages may be written twice.
        for (token, pages) in &all {
            take(&mut client, *token, pages);
        }
        client.collect(false).unwrap();
        client.shutdown().unwrap();
        drop(client);
        drop(server);
        let server = killed.store.serve();
        let mut client = server.client();
        assert!(client.verify(None).unwrap().damage.is_empty(), "case {case}");
        // What is read from the packs is known again when a collection has settled it.
        client.collect(false).unwrap();
        for (token, pages) in &all {
            assert_eq!(take(&mut client, token + 100, pages), 0, "case {case}");
        }
    }
}

#[test]
fn verify_names_damaged_names_of_pages() {
    let killed = Killed::new();
    let table = names(&killed);
    killed.harm(&table, &flip(1, 8));
    let server = killed.store.serve();
    let damage = server.client().verify(None).unwrap().damage;
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert!(damage[0].contains(table.to_str().unwrap()) && damage[0].contains("no checkpoint"), "{damage:?}");
}
