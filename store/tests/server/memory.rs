//! How much memory the server takes.

use std::{fs, os::fd::AsFd, os::unix::fs::FileExt};

use stasis_protocol::store::StagedRun;

use crate::fixture::{Server, Staging, Store, draft, memory, page, send};

/// What the server may take, in KiB: 200 MiB, without what it shares with a process (64).
const MOST: u64 = 136 << 10;

/// A line of the server's /proc/PID/status, in KiB.
fn memory_of(server: &Server, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

#[test]
fn full_dumps_one_after_the_other_take_no_more_than_they_may() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    for token in 1..=3u64 {
        client.begin_dump(token, 1, None).unwrap();
        for part in 0..32 {
            let first = part * 8192;
            send(&mut client, &memory(first, 8192, token << 32 | first)).unwrap();
        }
        let dumped = client.end_dump(Vec::new()).unwrap();
        client.commit(token, draft(&[dumped])).unwrap();
    }
    let most = memory_of(&server, "VmHWM:");
    assert!(most <= MOST, "{most} KiB");
}

#[test]
fn what_a_process_shares_with_the_server_is_its_own_again_when_it_is_dumped() {
    let pages = 2048;
    let store = Store::new();
    let server = store.serve();
    let mut clients = Vec::new();
    for token in 1..=4u64 {
        let mut client = server.client();
        let staging = Staging::new(pages);
        for at in 0..pages as u64 {
            staging.file.write_all_at(&page(token << 32 | at), at * 4096).unwrap();
        }
        client.staging(staging.memfd.as_fd(), staging.len).unwrap();
        for round in 0..2 {
            let token = token + 100 * round;
            client.begin_dump(token, 1, None).unwrap();
            let run = StagedRun { space: 0, first_page: 0, pages: pages as u32, staging_offset: 0 };
            client.send_pages(vec![run]).unwrap();
            client.released().unwrap();
            let dumped = client.end_dump(Vec::new()).unwrap();
            client.commit(token, draft(&[dumped])).unwrap();
            let shared = memory_of(&server, "RssShmem:");
            assert!(shared < 1024, "{shared} KiB are shared after the dump");
        }
        clients.push((client, staging));
    }
}
