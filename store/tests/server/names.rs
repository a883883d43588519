//! What checkpoints are called.

use stasis_protocol::store::CheckpointRecord;
use stasis_store::client::Client;

use crate::fixture::{Store, draft, dump, memory};

fn take(client: &mut Client, parent: Option<&CheckpointRecord>, label: Option<&str>) -> CheckpointRecord {
    let dumped = dump(client, 1, &memory(0, 3, 0)).unwrap();
    let mut draft = draft(&[dumped]);
    draft.parent = parent.map(|record| record.id.clone());
    draft.label = label.map(str::to_owned);
    client.commit(1, draft).unwrap()
}

#[test]
fn a_reference_names_what_the_readme_says() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    let problem = client.resolve("latest").unwrap_err().to_string();
    assert!(problem.contains("no checkpoint"), "{problem}");

    let first = take(&mut client, None, Some("before"));
    let second = take(&mut client, Some(&first), None);
    let side = take(&mut client, Some(&first), Some("side"));
    let last = take(&mut client, Some(&second), Some("before"));
    let mut id = |reference: &str| client.resolve(reference).map(|record| record.id);
    assert_eq!(id("latest").unwrap(), last.id);
    assert_eq!(id("latest~0").unwrap(), last.id);
    assert_eq!(id("latest~1").unwrap(), side.id, "latest counts along the sequence");
    assert_eq!(id("before").unwrap(), last.id, "a label means its last checkpoint");
    assert_eq!(id("before~1").unwrap(), second.id, "a label counts along the parents");
    assert_eq!(id("before~2").unwrap(), first.id);
    assert_eq!(id("side~1").unwrap(), first.id);
    assert_eq!(id(&last.id).unwrap(), last.id);
    assert_eq!(id(&format!("{}~2", last.id)).unwrap(), first.id);
    assert_eq!(id(&second.id[..12]).unwrap(), second.id);
    for (reference, reason) in [
        ("latest~4", "only 4 checkpoints"),
        ("latest~18446744073709551615", "only 4 checkpoints"),
        ("before~3", "only 2 checkpoints before it"),
        ("before~x", "followed by a number"),
        ("", "names no checkpoint"),
        ("~1", "names no checkpoint"),
        ("nothing", "no checkpoint has the id or label"),
        ("latest~99999999999999999999", "followed by a number"),
    ] {
        let problem = id(reference).unwrap_err().to_string();
        assert!(problem.contains(reason), "{reference}: {problem}");
    }
}

#[test]
fn an_ambiguous_prefix_is_refused_with_its_candidates() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    // Of 17 ids, two begin with the same of 16 digits.
    let ids: Vec<String> = (0..17).map(|_| take(&mut client, None, None).id).collect();
    let twice = ids.iter().find(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1).unwrap();
    let problem = client.resolve(&twice[..1]).unwrap_err().to_string();
    assert!(problem.contains("is the beginning of") && problem.contains("give more digits"), "{problem}");
}

#[test]
fn labels_that_could_mean_something_else_are_refused() {
    let store = Store::new();
    let server = store.serve();
    let mut client = server.client();
    for label in
        ["", "latest", "a~1", "a b", "a\n", "0123456789abcdef", "a\u{200b}", "\u{202e}a", &"x".repeat(300)]
    {
        let dumped = dump(&mut client, 1, &memory(0, 3, 0)).unwrap();
        let mut draft = draft(&[dumped]);
        draft.label = Some(label.to_owned());
        let problem = client.commit(1, draft).unwrap_err().to_string();
        assert!(problem.contains("choose another"), "{problem}");
    }
    assert!(client.list().unwrap().is_empty());
}
