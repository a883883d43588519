//! Checkpoints as another machine, or another version of Stasis, would have written them: a real one whose record was
//! changed, put into the store in the way of any process that dumps itself.

use stasis_protocol::{image::ProcessImage, wire};
use stasis_store::client::Client;

use crate::{Lab, lab::binary};

/// No coordinator's, as those are random.
const TOKEN: u64 = 1;

/// Makes a checkpoint that differs in its record from the checkpoint `id`, of one process; returns its id.
#[track_caller]
pub fn with_record(lab: &Lab, id: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    let server = lab.command(binary("stasis-store"));
    let mut store = Client::connect_or_start_with(lab.store(), server).expect("the lab's store");
    let mut draft = store.resolve(id).expect("the checkpoint").draft;
    let process = &mut draft.processes[0];
    let record = store.read_record(&process.manifest).expect("its record");
    // All pages are the base's.
    assert!(
        store.begin_dump(TOKEN, process.pid, Some(process.manifest)).expect("a dump"),
        "the base is there"
    );
    (process.manifest, process.stats) = store.end_dump(change(record)).expect("a dump");
    draft.parent = Some(id.to_owned());
    store.commit(TOKEN, draft).expect("a checkpoint").id
}

/// The record of the only process of a checkpoint.
#[track_caller]
pub fn read(lab: &Lab, id: &str) -> ProcessImage {
    let server = lab.command(binary("stasis-store"));
    let mut store = Client::connect_or_start_with(lab.store(), server).expect("the lab's store");
    let draft = store.resolve(id).expect("the checkpoint").draft;
    let record = store.read_record(&draft.processes[0].manifest).expect("its record");
    wire::decode(&record).expect("a record of this version")
}

/// As [`with_record`], for a record of this version.
#[track_caller]
pub fn changed(lab: &Lab, id: &str, change: impl FnOnce(&mut ProcessImage)) -> String {
    with_record(lab, id, |record| {
        let mut image: ProcessImage = wire::decode(&record).expect("a record of this version");
        change(&mut image);
        wire::encode(&image).expect("a record")
    })
}
