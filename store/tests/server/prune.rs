//! Deleting checkpoints.

use stasis_protocol::store::CheckpointRecord;
use stasis_store::{
    client::{Client, ClientError},
    failpoint::{FailPoint, VARIABLE},
};

use crate::fixture::{Store, draft, dump, memory, read_back};

fn take(client: &mut Client, token: u64, parent: Option<&CheckpointRecord>, label: &str) -> CheckpointRecord {
    let dumped = dump(client, token, &memory(0, 40, token * 20)).unwrap();
    let mut draft = draft(&[dumped]);
    draft.parent = parent.map(|record| record.id.clone());
    draft.label = Some(label.to_owned()).filter(|label| !label.is_empty());
    client.commit(token, draft).unwrap()
}

fn ids(records: &[&CheckpointRecord]) -> Vec<String> {
    records.iter().map(|record| record.id.clone()).collect()
}

#[test]
fn the_others_are_whole_and_labels_go_back() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let first = take(&mut client, 1, None, "good");
    let second = take(&mut client, 2, Some(&first), "good");
    let third = take(&mut client, 3, Some(&second), "only");
    let fourth = take(&mut client, 4, Some(&third), "");

    let unknown = "0123456789abcdef".to_owned();
    let gone = [ids(&[&fourth, &second, &third]), vec![unknown]].concat();
    let removed = client.prune(gone.clone()).unwrap();
    assert_eq!(removed, [second.clone(), third.clone(), fourth.clone()]);
    assert!(client.prune(gone).unwrap().is_empty(), "they are gone");
    assert_eq!(client.list().unwrap(), std::slice::from_ref(&first));
    assert_eq!(client.resolve("latest").unwrap(), first);
    assert_eq!(client.resolve("good").unwrap(), first, "the label goes back to who had it before");
    assert!(client.resolve("only").is_err());
    assert!(client.resolve(&second.id).is_err());
    assert!(read_back(&mut client, &first.draft.processes[0].manifest) == memory(0, 40, 20));

    // A child of one that is gone; its number is a new one, whatever happened in between.
    server.crash();
    let server = store.serve();
    let mut client = server.client();
    let fifth = take(&mut client, 5, Some(&fourth), "");
    assert_eq!((fifth.sequence, fifth.draft.parent.as_ref()), (5, Some(&fourth.id)));
    let problem = client.resolve(&format!("{}~1", fifth.id)).unwrap_err().to_string();
    assert!(problem.contains("not in the store any more"), "{problem}");
    assert!(read_back(&mut client, &fifth.draft.processes[0].manifest) == memory(0, 40, 100));
    assert!(client.verify(None).unwrap().damage.is_empty());
}

#[test]
fn all_are_gone_or_none() {
    let store = Store::new();
    let armed = format!("{}:1", FailPoint::Pruned.name());
    let server = store
        .serve_with(|command| {
            command.env(VARIABLE, &armed);
        })
        .unwrap();
    let mut client = server.client();
    let records: Vec<_> = (1..6).map(|token| take(&mut client, token, None, "")).collect();
    let answer = client.prune(ids(&records[1..4].iter().collect::<Vec<_>>()));
    assert!(matches!(answer, Err(ClientError::Lost(_))), "it died after the write");
    drop(server);
    let server = store.serve();
    let mut client = server.client();
    assert_eq!(client.list().unwrap(), [records[0].clone(), records[4].clone()]);
    assert!(client.verify(None).unwrap().damage.is_empty());
}
