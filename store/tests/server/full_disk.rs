//! A file system without room (a tmpfs of 48 MiB; needs root).

use std::{fs, os::unix::fs::FileExt, path::PathBuf};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::geteuid,
};
use tempfile::TempDir;

use crate::fixture::{Store, checkpoint, memory, read_back};

struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let directory = TempDir::new().unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), flags, Some("size=48m")).unwrap();
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_fails_one_checkpoint_and_the_next_works_when_there_is_room() {
    if !geteuid().is_root() {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let disk = SmallDisk::mount();
    let store = Store::below(&disk.path());
    let server = store.serve();
    let mut client = server.client();
    let kept = checkpoint(&mut client, 1, &memory(0, 500, 0)).unwrap();

    // More than the disk.
    for token in 2..5 {
        let problem = checkpoint(&mut client, token, &memory(0, 20_000, 100_000)).unwrap_err().to_string();
        assert!(problem.contains("is full") && problem.contains("MiB free"), "{problem}");
        assert!(problem.contains(&store.directory.display().to_string()), "{problem}");
        client.abort_dump().unwrap();
        client.discard(token).unwrap();
    }
    assert_eq!(client.list().unwrap(), std::slice::from_ref(&kept));
    let small = checkpoint(&mut client, 6, &memory(0, 500, 600_000)).unwrap();

    // Somebody else fills it to the last byte.
    let hog = disk.path().join("hog");
    let file = fs::File::create(&hog).unwrap();
    let mut at = 0;
    while file.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
    }
    for token in 7..10 {
        let problem = checkpoint(&mut client, token, &memory(0, 500, 700_000)).unwrap_err().to_string();
        assert!(problem.contains("is full"), "{problem}");
        // Known pages need no room, but their checkpoint does.
        client.discard(token).unwrap();
        let problem = checkpoint(&mut client, 20 + token, &memory(0, 500, 0)).unwrap_err().to_string();
        assert!(problem.contains("is full"), "{problem}");
        client.discard(20 + token).unwrap();
    }
    assert!(read_back(&mut client, &kept.draft.processes[0].manifest) == memory(0, 500, 0));
    drop(file);
    fs::remove_file(&hog).unwrap();

    let after = checkpoint(&mut client, 40, &memory(0, 500, 800_000)).unwrap();
    assert_eq!(client.list().unwrap(), [kept, small, after]);
    drop(client);
    server.crash();
    let server = store.serve();
    let verified = server.client().verify(None).unwrap();
    assert!(verified.damage.is_empty(), "{:?}", verified.damage);
    assert_eq!(server.client().list().unwrap().len(), 3);
}
