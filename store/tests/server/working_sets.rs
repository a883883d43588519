//! What processes touch first after a restart: kept with its checkpoint, for it and for those that come after it.

use stasis_protocol::store::{CheckpointRecord, WorkingSet};
use stasis_store::client::Client;

use crate::fixture::{Store, draft, dump, memory};

fn take(client: &mut Client, token: u64, parent: Option<&CheckpointRecord>) -> CheckpointRecord {
    let dumped = dump(client, token, &memory(0, 40, token * 20)).unwrap();
    let mut draft = draft(&[dumped]);
    draft.parent = parent.map(|record| record.id.clone());
    client.commit(token, draft).unwrap()
}

fn set(first: i64) -> WorkingSet {
    vec![(first, 16), (-7, 1)]
}

fn pid(record: &CheckpointRecord) -> u32 {
    record.draft.processes[0].pid
}

#[track_caller]
fn known(client: &mut Client, record: &CheckpointRecord) -> WorkingSet {
    client.working_set(&record.id, pid(record)).unwrap()
}

#[test]
fn a_checkpoint_has_its_own_or_that_of_the_nearest_before_it() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let first = take(&mut client, 1, None);
    let second = take(&mut client, 2, Some(&first));
    let third = take(&mut client, 3, Some(&second));
    let other = take(&mut client, 4, None);
    assert!(known(&mut client, &third).is_empty());
    client.keep_working_set(&first.id, pid(&first), set(100)).unwrap();
    client.keep_working_set(&"0".repeat(16), 1, set(1)).unwrap();
    server.crash();

    let server = store.serve();
    let mut client = server.client();
    assert_eq!(
        [&first, &second, &third].map(|record| known(&mut client, record)),
        [(); 3].map(|()| set(100))
    );
    assert!(known(&mut client, &other).is_empty(), "it does not come from there");
    assert!(client.working_set(&first.id, pid(&first) + 1).unwrap().is_empty(), "another process");
    client.keep_working_set(&second.id, pid(&second), set(200)).unwrap();
    client.keep_working_set(&second.id, pid(&second), set(300)).unwrap();
    assert_eq!(known(&mut client, &first), set(100));
    assert_eq!(known(&mut client, &third), set(300));
    client.collect(true).unwrap();
    assert_eq!(known(&mut client, &third), set(300));
}

#[test]
fn it_goes_with_its_checkpoint_and_to_those_that_have_it_from_there() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let first = take(&mut client, 1, None);
    let second = take(&mut client, 2, Some(&first));
    let third = take(&mut client, 3, Some(&second));
    let own = take(&mut client, 4, Some(&second));
    client.keep_working_set(&first.id, pid(&first), set(100)).unwrap();
    client.keep_working_set(&own.id, pid(&own), set(400)).unwrap();
    client.prune(vec![first.id.clone(), second.id.clone()]).unwrap();
    client.collect(true).unwrap();
    assert!(known(&mut client, &first).is_empty() && known(&mut client, &second).is_empty());
    assert_eq!((known(&mut client, &third), known(&mut client, &own)), (set(100), set(400)));
    client.prune(vec![third.id.clone(), own.id.clone()]).unwrap();
    // Nothing is left that a new checkpoint could be given.
    client.keep_working_set(&third.id, pid(&third), set(1)).unwrap();
    let last = take(&mut client, 5, Some(&third));
    assert!(known(&mut client, &last).is_empty());
}
