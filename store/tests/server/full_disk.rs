//! A file system without room (a small tmpfs; needs root).

use std::{fs, os::unix::fs::FileExt, path::PathBuf, process::Command};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::geteuid,
};
use stasis_store::client::Client;
use tempfile::TempDir;

use crate::fixture::{Store, checkpoint, memory, read_back, send};

struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), flags, Some(options)).unwrap();
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
    let disk = SmallDisk::mount("size=48m");
    let store = Store::below(&disk.path());
    // Its log is on the same disk, where nothing can be written either.
    let log = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let server = store
        .serve_with(|command| {
            command.stderr(log());
        })
        .expect("the server starts");
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

/// Fills a file system but for `left` bytes.
fn fill(disk: &SmallDisk, left: u64) -> PathBuf {
    let hog = disk.path().join("hog");
    let file = fs::File::create(&hog).unwrap();
    let mut at = 0;
    while file.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
    }
    file.set_len(at.saturating_sub(left)).unwrap();
    hog
}

#[test]
fn a_collection_without_room_gives_back_what_it_can_and_names_the_rest() {
    if !geteuid().is_root() {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let disk = SmallDisk::mount("size=96m");
    let store = Store::below(&disk.path());
    let server = store.serve();
    let mut client = server.client();
    let kept = checkpoint(&mut client, 1, &memory(0, 5000, 0)).unwrap();
    let gone = checkpoint(&mut client, 2, &memory(0, 6000, 100_000)).unwrap();
    // In another pack, and all of it garbage.
    let mut lender = server.client();
    lender.begin_dump(100, 1, None).unwrap();
    send(&mut lender, &memory(0, 1, 5_000_000)).unwrap();
    let dead = checkpoint(&mut client, 3, &memory(0, 500, 200_000)).unwrap();
    lender.abort_dump().unwrap();
    client.discard(100).unwrap();
    let whole = |client: &mut Client| {
        assert_eq!(client.list().unwrap(), std::slice::from_ref(&kept));
        assert!(read_back(client, &kept.draft.processes[0].manifest) == memory(0, 5000, 0));
        let damage = client.verify(None).unwrap().damage;
        assert!(damage.is_empty(), "{damage:?}");
    };

    let hog = fill(&disk, 5 << 20);
    assert_eq!(client.prune(vec![gone.id, dead.id]).unwrap().len(), 2);
    let collected = client.collect(true).unwrap();
    assert_eq!((collected.packs_removed, collected.packs_compacted), (1, 0), "{collected:?}");
    assert!(collected.freed >= 500 * 4096 && collected.left.len() == 1, "{collected:?}");
    let left = &collected.left[0];
    for part in ["is full", "MiB free", "20 MiB would have to be copied", "stasis gc"] {
        assert!(left.contains(part), "{left}");
    }
    whole(&mut client);

    // Not a byte left: whatever it says, nothing is lost.
    fs::remove_file(hog).unwrap();
    let hog = fill(&disk, 0);
    match client.collect(true) {
        Ok(collected) => assert!(collected.left[0].contains("is full"), "{collected:?}"),
        Err(problem) => assert!(problem.to_string().contains("is full"), "{problem}"),
    }
    whole(&mut client);

    fs::remove_file(hog).unwrap();
    let collected = client.collect(true).unwrap();
    assert_eq!((collected.packs_compacted, collected.left.len()), (1, 0), "{collected:?}");
    whole(&mut client);
    server.crash();
    let server = store.serve();
    whole(&mut server.client());
}

#[test]
fn a_store_whose_disk_is_full_is_opened_and_read() {
    if !geteuid().is_root() {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let disk = SmallDisk::mount("size=64m");
    let store = Store::below(&disk.path());
    let server = store.serve();
    let kept = checkpoint(&mut server.client(), 1, &memory(0, 500, 0)).unwrap();
    // What it has committed is in the log of its index.
    server.crash();
    let hog = fill(&disk, 16 << 10);
    let server = store.serve();
    let mut client = server.client();
    assert_eq!(client.list().unwrap(), std::slice::from_ref(&kept));
    assert!(read_back(&mut client, &kept.draft.processes[0].manifest) == memory(0, 500, 0));
    assert!(client.verify(None).unwrap().damage.is_empty());
    let problem = checkpoint(&mut client, 2, &memory(0, 500, 1000)).unwrap_err().to_string();
    assert!(problem.contains("is full"), "{problem}");
    client.discard(2).unwrap();
    fs::remove_file(hog).unwrap();
    // The first write that fails opens the index for writing.
    let made = (3..6).find_map(|token| {
        let made = checkpoint(&mut client, token, &memory(0, 500, 1000));
        made.inspect_err(|_| client.discard(token).unwrap()).ok()
    });
    assert_eq!(client.list().unwrap(), [kept, made.unwrap()]);
}

#[test]
fn a_server_that_may_not_make_large_files_says_so_and_lives() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let kept = checkpoint(&mut client, 1, &memory(0, 100, 0)).unwrap();
    let limit = |bytes: &str| {
        let pid = server.child.id().to_string();
        let done =
            Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]).status();
        assert!(done.unwrap().success());
    };
    limit("2097152");
    for token in 2..5 {
        let problem = checkpoint(&mut client, token, &memory(0, 5000, 10_000)).unwrap_err().to_string();
        assert!(problem.contains("RLIMIT_FSIZE") && problem.contains("2097152"), "{problem}");
        assert!(problem.contains(".pack") && problem.contains("store --stop"), "{problem}");
        client.abort_dump().unwrap();
        client.discard(token).unwrap();
    }
    assert!(read_back(&mut client, &kept.draft.processes[0].manifest) == memory(0, 100, 0));
    limit("unlimited");
    let after = checkpoint(&mut client, 6, &memory(0, 5000, 10_000)).unwrap();
    assert_eq!(client.list().unwrap(), [kept, after]);
    assert!(client.verify(None).unwrap().damage.is_empty());
}
