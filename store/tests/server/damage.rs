//! Packs and directories that are not what they were.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
};

use crate::fixture::{Store, checkpoint, memory};

#[test]
fn a_flipped_bit_is_found_and_named_with_the_checkpoints_it_touches() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let shared = memory(0, 600, 0);
    let first = checkpoint(&mut client, 1, &shared).unwrap();
    let second = checkpoint(&mut client, 2, &shared).unwrap();
    let mut other = memory(0, 600, 5000);
    other.extend(memory(1 << 20, 600, 10_000));
    let third = checkpoint(&mut client, 3, &other).unwrap();
    assert!(client.verify(None).unwrap().damage.is_empty());

    let process = client.read_process(&first.draft.processes[0].manifest, &[]).unwrap();
    let (extents, names) = process.pages().unwrap();
    let offset = extents[0].offset + 5 * 4096 + 17;
    let path = store.directory.join(format!("packs/{:08x}.pack", extents[0].pack));
    let pack = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    pack.read_exact_at(&mut byte, offset).unwrap();
    pack.write_all_at(&[byte[0] ^ 4], offset).unwrap();

    let damage = client.verify(None).unwrap().damage;
    assert_eq!(damage.len(), 1, "{damage:?}");
    let name: String = names[5].iter().map(|byte| format!("{byte:02x}")).collect();
    let pack = format!("{:08x}.pack", extents[0].pack);
    let at = format!("offset {:#x}", extents[0].offset + 5 * 4096);
    for part in [&name, &pack, &at, &first.id, &second.id] {
        assert!(damage[0].contains(part), "{part} in {}", damage[0]);
    }
    assert!(!damage[0].contains(&third.id), "{}", damage[0]);
    assert!(client.verify(Some(&third.id)).unwrap().damage.is_empty());
    assert_eq!(client.verify(Some(&second.id)).unwrap().damage.len(), 1);
}

#[test]
fn a_missing_pack_is_named_and_the_rest_goes_on() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let record = checkpoint(&mut client, 1, &memory(0, 1100, 0)).unwrap();
    let process = client.read_process(&record.draft.processes[0].manifest, &[]).unwrap();
    let pack = process.directory.join(format!("packs/{:08x}.pack", process.pages().unwrap().0[0].pack));
    server.crash();
    fs::remove_file(&pack).unwrap();
    let server = store.serve();
    let mut client = server.client();
    let found = client.verify(None).unwrap();
    assert_eq!(
        (found.damaged, found.damage.len(), found.summary.len()),
        (1100, 1100, 1),
        "{:?}",
        found.summary
    );
    for line in [&found.damage[0], &found.damage[1099], &found.summary[0]] {
        assert!(line.contains(&pack.display().to_string()) && line.contains(&record.id), "{line}");
    }
    assert!(found.summary[0].starts_with("1100 pages of "), "{}", found.summary[0]);
    let new = checkpoint(&mut client, 2, &memory(0, 10, 2000)).unwrap();
    assert!(client.verify(Some(&new.id)).unwrap().damage.is_empty());
}

#[test]
fn a_store_of_a_newer_format_is_refused_by_name() {
    let store = Store::new();
    store.serve().crash();
    fs::write(store.directory.join("FORMAT"), "stasis store 7\n").unwrap();
    let output = store.command().arg(&store.directory).arg("--foreground").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("format 7"), "{said}");
}

#[test]
fn a_directory_that_is_no_store_is_refused_and_left_alone() {
    let store = Store::new();
    fs::create_dir(&store.directory).unwrap();
    fs::write(store.directory.join("letter.txt"), "dear").unwrap();
    for mode in [0o700, 0o755] {
        fs::set_permissions(&store.directory, fs::Permissions::from_mode(mode)).unwrap();
        let said = refusal(&store);
        assert!(said.contains("letter.txt") && !said.contains("chmod"), "{said}");
        assert_eq!(fs::read_dir(&store.directory).unwrap().count(), 1);
    }
}

#[test]
fn a_store_open_to_others_is_refused() {
    let store = Store::new();
    store.serve().crash();
    assert_eq!(fs::metadata(&store.directory).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(store.directory.join("key")).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::set_permissions(&store.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let output = store.command().arg(&store.directory).arg("--foreground").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("chmod 700"), "{said}");
}

/// Why the server does not start.
fn refusal(store: &Store) -> String {
    let output = store.command().arg(&store.directory).arg("--foreground").output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_lost_index_is_refused_and_the_packs_stay() {
    for lost in ["index/CURRENT", "index"] {
        let store = Store::new();
        let server = store.serve();
        let record = checkpoint(&mut server.client(), 1, &memory(0, 10, 0)).unwrap();
        server.crash();
        let (there, aside) = (store.directory.join(lost), store.directory.with_extension("aside"));
        fs::rename(&there, &aside).unwrap();
        let packs = store.packs();
        for _ in 0..2 {
            let said = refusal(&store);
            assert!(said.contains("index/CURRENT is missing"), "{said}");
            assert_eq!(store.packs(), packs);
        }
        // Without FORMAT, a store would be made here.
        let format = fs::read(store.directory.join("FORMAT")).unwrap();
        fs::remove_file(store.directory.join("FORMAT")).unwrap();
        let said = refusal(&store);
        assert!(said.contains("index/CURRENT is missing"), "{said}");
        fs::write(store.directory.join("FORMAT"), format).unwrap();
        let _ = fs::remove_dir(&there);
        fs::rename(&aside, &there).unwrap();
        let server = store.serve();
        assert_eq!(server.client().list().unwrap(), [record]);
        assert!(server.client().verify(None).unwrap().damage.is_empty());
    }
}

#[test]
fn a_lost_secret_is_not_made_anew() {
    let store = Store::new();
    let server = store.serve();
    checkpoint(&mut server.client(), 1, &memory(0, 10, 0)).unwrap();
    server.crash();
    for name in ["key", "FORMAT"] {
        fs::remove_file(store.directory.join(name)).unwrap();
        let said = refusal(&store);
        assert!(said.contains("the store's secret"), "{said}");
    }
    assert!(!store.directory.join("key").exists());
}

#[test]
fn a_damaged_format_is_not_taken_for_a_newer_one() {
    let store = Store::new();
    store.serve().crash();
    for content in ["", "garbage", "stasis store 0\n", "stasis store\n", "\u{0}\u{0}", "3\n"] {
        fs::write(store.directory.join("FORMAT"), content).unwrap();
        let said = refusal(&store);
        assert!(said.contains("is damaged") && said.contains("stasis store 3"), "{content:?}: {said}");
    }
    fs::write(store.directory.join("FORMAT"), b"\xff\xfe").unwrap();
    assert!(refusal(&store).contains("is damaged"));
    fs::write(store.directory.join("FORMAT"), "stasis store 3\n").unwrap();
    store.serve().crash();
}
