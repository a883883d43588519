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

    let process = client.read_process(&first.draft.processes[0].manifest).unwrap();
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
    let record = checkpoint(&mut client, 1, &memory(0, 10, 0)).unwrap();
    let process = client.read_process(&record.draft.processes[0].manifest).unwrap();
    let pack = process.directory.join(format!("packs/{:08x}.pack", process.pages().unwrap().0[0].pack));
    server.crash();
    fs::remove_file(&pack).unwrap();
    let server = store.serve();
    let mut client = server.client();
    let damage = client.verify(None).unwrap().damage;
    assert_eq!(damage.len(), 10);
    assert!(damage[0].contains(&pack.display().to_string()), "{}", damage[0]);
    assert!(damage[0].contains(&record.id), "{}", damage[0]);
    let new = checkpoint(&mut client, 2, &memory(0, 10, 100)).unwrap();
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
    fs::set_permissions(&store.directory, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(store.directory.join("letter.txt"), "dear").unwrap();
    let output = store.command().arg(&store.directory).arg("--foreground").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("letter.txt"), "{said}");
    assert!(!store.directory.join("packs").exists());
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
