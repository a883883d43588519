//! What a process of another user can do with the connection that was made for it: dump itself, once.

use std::{
    os::{fd::AsFd, fd::OwnedFd, unix::fs::FileExt, unix::net::UnixStream},
    time::Duration,
};

use nix::sys::socket::MsgFlags;
use stasis_protocol::{
    VERSION,
    store::{DumpStats, Hash, Reply, Request, StagedRun},
};
use stasis_store::{client::Client, transport};

use crate::fixture::{PAGE, Page, Server, Staging, Store, checkpoint, draft, memory, page, read_back};

const TOKEN: u64 = 0x70ce;

/// The process at the other end of a restricted connection.
struct Stranger(UnixStream);

impl Stranger {
    fn of(lender: &mut Client, token: u64) -> Self {
        let stream = UnixStream::from(lender.restrict(token).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    fn send(&self, request: &Request) {
        transport::send(&self.0, request, &[], MsgFlags::empty()).unwrap();
    }

    /// `None`: the connection has ended.
    fn receive(&self) -> Option<(Reply, Vec<OwnedFd>)> {
        transport::receive(&self.0).unwrap()
    }

    /// Hands over a staging buffer, and the pages in it from page number 100 on.
    fn dump(&self, token: u64, pages: &[Page]) {
        let staging = Staging::new(pages.len());
        for (at, page) in pages.iter().enumerate() {
            staging.file.write_all_at(page, (at * PAGE) as u64).unwrap();
        }
        self.send(&Request::BeginDump { token, pid: 1, base: None });
        let request = Request::Staging { len: staging.len };
        transport::send(&self.0, &request, &[staging.memfd.as_fd()], MsgFlags::empty()).unwrap();
        let run = StagedRun { space: 0, first_page: 100, pages: pages.len() as u32, staging_offset: 0 };
        self.send(&Request::Pages { runs: vec![run] });
        assert_eq!(self.receive().unwrap().0, Reply::Released);
    }

    fn end_dump(&self) -> (Hash, DumpStats) {
        self.send(&Request::EndDump { record: b"the record".to_vec() });
        match self.receive() {
            Some((Reply::Dumped { manifest, stats }, _)) => (manifest, stats),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn assert_ended(&self) {
        assert!(self.receive().is_none(), "the connection goes on");
    }

    #[track_caller]
    fn assert_refused(&self, words: &[&str]) {
        match self.receive() {
            Some((Reply::Refused(why), descriptors)) => {
                assert!(words.iter().all(|word| why.contains(word)), "{words:?}: {why}");
                assert!(descriptors.is_empty());
            }
            other => panic!("{words:?}: {other:?}"),
        }
    }
}

fn pages(count: u64) -> Vec<Page> {
    (0..count).map(page).collect()
}

/// After whatever was done to it, the server still works.
fn still_serves(server: &Server) {
    let mut client = server.client();
    checkpoint(&mut client, 77, &memory(0, 5, 900)).unwrap();
    assert!(client.verify(None).unwrap().damage.is_empty());
}

#[test]
fn it_dumps_one_process_and_ends() {
    let store = Store::new();
    let server = store.serve();
    let mut lender = server.client();
    let stranger = Stranger::of(&mut lender, TOKEN);
    stranger.dump(TOKEN, &pages(20));
    let dumped = stranger.end_dump();
    stranger.assert_ended();
    let record = lender.commit(TOKEN, draft(&[dumped])).unwrap();
    let read = read_back(&mut lender, &record.draft.processes[0].manifest);
    let written: Vec<Page> = read.values().copied().collect();
    assert_eq!(written, pages(20));
    assert_eq!(read.keys().next(), Some(&(0, 100)));
    still_serves(&server);
}

#[test]
fn it_is_not_told_what_else_the_store_holds() {
    let store = Store::new();
    let server = store.serve();
    let mut lender = server.client();
    checkpoint(&mut lender, 1, &memory(0, 10, 0)).unwrap();
    let dump_of = |lender: &mut Client, token, pages: &[Page]| {
        let stranger = Stranger::of(lender, token);
        stranger.dump(token, pages);
        stranger.end_dump()
    };
    let known = dump_of(&mut lender, 2, &pages(10));
    let unknown: Vec<Page> = (500..510).map(page).collect();
    let unknown = dump_of(&mut lender, 3, &unknown);
    assert_eq!(known.1, unknown.1, "pages that the store has look as those that it has not");
    // Whoever may read the store is told.
    let written = |lender: &mut Client, token, dumped| {
        lender.commit(token, draft(&[dumped])).unwrap().draft.processes[0].stats.written
    };
    assert_eq!(written(&mut lender, 2, known), 0);
    assert_eq!(written(&mut lender, 3, unknown), 10);
}

#[test]
fn every_other_request_is_refused_by_name_and_ends_it() {
    let store = Store::new();
    let server = store.serve();
    let mut lender = server.client();
    let secret = checkpoint(&mut lender, 1, &memory(0, 10, 0)).unwrap();
    let manifest = secret.draft.processes[0].manifest;
    let own = format!("{TOKEN:#x}");
    for (request, name) in [
        (Request::ReadProcess { manifest, may_wait: Vec::new() }, "ReadProcess"),
        (Request::ReadPages { manifest, first_page: 0, end_page: 10 }, "ReadPages"),
        (Request::List, "List"),
        (Request::Resolve { reference: "latest".into() }, "Resolve"),
        (Request::Verify { id: None }, "Verify"),
        (Request::Usage, "Usage"),
        (Request::Shutdown, "Shutdown"),
        (Request::Commit { token: TOKEN, draft: draft(&[]) }, "Commit"),
        (Request::Discard { token: 1 }, "Discard"),
        (Request::Restrict { token: TOKEN }, "Restrict"),
        (Request::AbortDump, "AbortDump"),
        (Request::Hello { version: VERSION }, "Hello"),
        (Request::BeginDump { token: TOKEN + 1, pid: 1, base: None }, "the checkpoint 0x70cf"),
        (Request::BeginDump { token: TOKEN, pid: 1, base: Some(manifest) }, "based on another"),
        (Request::Staging { len: 65 << 20 }, "staging buffer of"),
    ] {
        let stranger = Stranger::of(&mut lender, TOKEN);
        stranger.send(&request);
        stranger.assert_refused(&[name, &own]);
        stranger.assert_ended();
    }
    still_serves(&server);
}

#[test]
fn it_ends_with_its_checkpoint() {
    let store = Store::new();
    let server = store.serve();
    let mut lender = server.client();
    let (committed, other) = (Stranger::of(&mut lender, 5), Stranger::of(&mut lender, 6));
    checkpoint(&mut lender, 5, &memory(0, 5, 0)).unwrap();
    committed.assert_ended();
    other.dump(6, &pages(3));
    lender.discard(6).unwrap();
    other.assert_ended();
    assert!(lender.commit(6, draft(&[])).is_err());
    still_serves(&server);
}

#[test]
fn it_ends_with_the_connection_that_asked_for_it() {
    let store = Store::new();
    let server = store.serve();
    let mut lender = server.client();
    let stranger = Stranger::of(&mut lender, TOKEN);
    stranger.dump(TOKEN, &pages(3));
    drop(lender);
    stranger.assert_ended();
    let mut client = server.client();
    let refused = client.commit(TOKEN, draft(&[])).unwrap_err();
    assert!(refused.to_string().contains("names no process"), "{refused}");
    still_serves(&server);
}

#[test]
fn runs_outside_of_its_buffer_are_refused() {
    let store = Store::new();
    let server = store.serve();
    let mut lender = server.client();
    for (staging_offset, pages) in [(0, 5), (4096 * 4, 1), (u64::MAX - 4095, 1), (0, u32::MAX)] {
        let stranger = Stranger::of(&mut lender, TOKEN);
        let staging = Staging::new(4);
        stranger.send(&Request::BeginDump { token: TOKEN, pid: 1, base: None });
        let request = Request::Staging { len: staging.len };
        transport::send(&stranger.0, &request, &[staging.memfd.as_fd()], MsgFlags::empty()).unwrap();
        let runs = vec![StagedRun { space: 0, first_page: 1, pages, staging_offset }];
        stranger.send(&Request::Pages { runs });
        stranger.assert_refused(&["outside"]);
    }
    still_serves(&server);
}
