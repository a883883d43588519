//! Clients that lie.

use std::{
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::MsgFlags,
};
use stasis_protocol::{
    VERSION,
    store::{Reply, Request, StagedRun},
    wire,
};
use stasis_store::{
    client::{Client, ClientError},
    location::socket_path,
    transport,
};

use crate::fixture::{Staging, Store, checkpoint, draft, memory, send};

fn raw(store: &Store) -> UnixStream {
    UnixStream::connect(socket_path(&store.directory).unwrap()).unwrap()
}

fn reply(stream: &UnixStream) -> Option<Reply> {
    transport::receive(stream).unwrap().map(|(reply, _)| reply)
}

fn refusal(stream: &UnixStream) -> String {
    match reply(stream) {
        Some(Reply::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// After whatever was done to it, the server still works.
fn still_serves(store: &Store) {
    let mut client = Client::connect(&store.directory).unwrap();
    checkpoint(&mut client, 77, &memory(0, 5, 0)).unwrap();
    assert!(client.verify(None).unwrap().damage.is_empty());
}

#[test]
fn garbage_and_huge_lengths_cost_only_their_own_connection() {
    let store = Store::new();
    let _server = store.serve();
    for bytes in [&[0xff; 64][..], &[0, 0, 0, 4, 1], &[5, 0, 0, 0, 9, 9, 9, 9, 9], &[0, 0, 0, 0]] {
        let mut stream = raw(&store);
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // A refusal or nothing at all, then the end.
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(said.len() < 200);
    }
    let mut stream = raw(&store);
    stream.write_all(&wire::frame(&Request::Hello { version: VERSION }).unwrap()).unwrap();
    assert!(matches!(reply(&stream), Some(Reply::Welcome { .. })));
    stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert!(refusal(&stream).contains("at most"));
    assert_eq!(reply(&stream), None, "the connection is closed");
    still_serves(&store);
}

#[test]
fn another_version_is_refused_by_name() {
    let store = Store::new();
    let _server = store.serve();
    let mut stream = raw(&store);
    stream.write_all(&wire::frame(&Request::Hello { version: VERSION + 1 }).unwrap()).unwrap();
    let why = refusal(&stream);
    assert!(
        why.contains(&format!("version {VERSION}")) && why.contains(&format!("{}", VERSION + 1)),
        "{why}"
    );
    let mut stream = raw(&store);
    stream.write_all(&wire::frame(&Request::List).unwrap()).unwrap();
    assert!(refusal(&stream).contains("Hello"));
}

#[test]
fn runs_outside_of_the_buffer_or_the_address_space_are_refused() {
    let store = Store::new();
    let server = store.serve();
    let staging = Staging::new(16);
    let good = StagedRun { space: 0, first_page: 1, pages: 4, staging_offset: 0 };
    for bad in [
        StagedRun { pages: 17, ..good },
        StagedRun { staging_offset: 4096 * 13, ..good },
        StagedRun { staging_offset: u64::MAX - 4095, ..good },
        StagedRun { staging_offset: 17, ..good },
        StagedRun { first_page: u64::MAX, ..good },
        StagedRun { first_page: 1 << 60, ..good },
        StagedRun { pages: u32::MAX, ..good },
    ] {
        let mut client = server.client();
        client.staging(staging.memfd.as_fd(), staging.len).unwrap();
        client.begin_dump(1, 1, None).unwrap();
        client.send_pages(vec![good, bad]).unwrap();
        let why = client.released().unwrap_err().to_string();
        assert!(why.contains("outside"), "{bad:?}: {why}");
        assert!(client.end_dump(Vec::new()).is_err(), "a dump with a hole is no dump");
    }
    still_serves(&store);
}

#[test]
fn a_staging_buffer_that_could_vanish_is_refused() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let unsealed = memfd_create("unsealed", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let sealed = Staging::new(4);
    let null = std::fs::File::open("/dev/null").unwrap();
    for (descriptor, len) in [
        (unsealed.as_fd(), 4096),
        (sealed.memfd.as_fd(), sealed.len + 4096),
        (sealed.memfd.as_fd(), u64::MAX - 4095),
        (sealed.memfd.as_fd(), 100),
        (sealed.memfd.as_fd(), 0),
        (null.as_fd(), 4096),
    ] {
        client.begin_dump(1, 1, None).unwrap();
        client.staging(descriptor, len).unwrap();
        let why = client.end_dump(Vec::new()).unwrap_err().to_string();
        assert!(why.contains("staging buffer cannot be used"), "{why}");
    }
    // No descriptor at all.
    let mut stream = raw(&store);
    stream.write_all(&wire::frame(&Request::Hello { version: VERSION }).unwrap()).unwrap();
    reply(&stream);
    stream.write_all(&wire::frame(&Request::Staging { len: 4096 }).unwrap()).unwrap();
    stream.write_all(&wire::frame(&Request::EndDump { record: Vec::new() }).unwrap()).unwrap();
    assert!(refusal(&stream).contains("no staging buffer"));
    still_serves(&store);
}

#[test]
fn requests_out_of_order_are_refused_and_the_connection_goes_on() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    assert!(client.end_dump(Vec::new()).is_err());
    client.send_pages(Vec::new()).unwrap();
    assert!(matches!(client.released(), Err(ClientError::Refused(_))));
    client.abort_dump().unwrap();
    assert!(client.commit(5, draft(&[])).is_err());
    assert!(client.read_process(&[1; 32], &[]).is_err());
    assert!(
        !client.begin_dump(1, 1, Some([2; 32])).unwrap(),
        "there is no such base, and that is told at once"
    );
    client.abort_dump().unwrap();
    checkpoint(&mut client, 2, &memory(0, 5, 0)).unwrap();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let store = Store::new();
    let server = store.serve();
    let count = || std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count();
    let mut settled = server.client();
    settled.list().unwrap();
    let before = count();
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = vec![null.as_fd(); 200];
    for _ in 0..10 {
        let stream = raw(&store);
        transport::send(&stream, &Request::Hello { version: VERSION }, &many, MsgFlags::empty()).unwrap();
        reply(&stream);
        transport::send(&stream, &Request::List, &many, MsgFlags::empty()).unwrap();
        reply(&stream);
        // Until the connection is known to be over.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(reply(&stream), None);
    }
    settled.list().unwrap();
    assert!(count() <= before + 2, "{before} descriptors became {}", count());
}

#[test]
fn a_client_that_reads_no_replies_does_not_stop_the_others() {
    let store = Store::new();
    let server = store.serve();
    let stream = raw(&store);
    let ask = |request: &Request| transport::send(&stream, request, &[], MsgFlags::MSG_DONTWAIT);
    ask(&Request::Hello { version: VERSION }).unwrap();
    ask(&Request::BeginDump { token: 1, pid: 1, base: None }).unwrap();
    // Until both socket buffers are full, or the server has cut it off.
    while ask(&Request::Pages { runs: Vec::new() }).is_ok() {}
    let mut client = server.client();
    send_and_commit(&mut client);
}

fn send_and_commit(client: &mut Client) {
    client.begin_dump(2, 1, None).unwrap();
    send(client, &memory(0, 600, 0)).unwrap();
    let dumped = client.end_dump(Vec::new()).unwrap();
    client.commit(2, draft(&[dumped])).unwrap();
}
