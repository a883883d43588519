//! Reading everything back: every page of every checkpoint against its name.
//!
//! Leaves shared by checkpoints are read once. What is damaged is reported with the pack, the offset
//! and the name, and with all checkpoints that need it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use stasis_protocol::store::{CheckpointRecord, Hash, kind};

use crate::{
    error::{StoreError, hex},
    hash::{PAGE_SIZE, Page},
    manifest::{Leaf, Manifest, Reader},
    pack::{
        self, Place,
        reader::{PackReader, Stretch},
    },
    reference,
    store::Store,
};

/// How many damaged things are reported one by one.
const MAX_LINES: usize = 1000;

/// What `verify` found.
#[derive(Default)]
pub struct Report {
    pub pages: u64,
    pub damage: Vec<String>,
}

/// Something damaged: a page or a node, by name.
type Damage = BTreeMap<Hash, String>;

/// What reading pages has shown.
#[derive(Default)]
struct Found {
    damage: Damage,
    damaged: Vec<Place>,
    /// What the disk does not give.
    unreadable: Vec<Place>,
    /// Known as damaged, and not any more: the disk has come back.
    whole: Vec<Place>,
}

/// Takes a leaf and its name, or why it cannot be read.
type Show<'a> = dyn FnMut(&Hash, Result<&Leaf, String>) + 'a;

/// Reads the checkpoint called `reference` (`None`: all).
///
/// # Errors
/// There is no such checkpoint; the index cannot be read at all.
pub fn verify(store: &Store, reference: Option<&str>) -> Result<Report, StoreError> {
    let _lease = store.leases().take();
    let checkpoints = match reference {
        Some(reference) => vec![reference::resolve(store.index(), reference)?],
        None => store.index().checkpoints()?,
    };
    let mut report = Report::default();
    let mut found = Found::default();
    let mut packs = PackReader::new(&store.directory().packs());
    let mut seen: HashSet<Hash> = HashSet::new();
    let mut buffer = Vec::new();
    each_leaf(store, &checkpoints, &mut |name| seen.insert(*name), &mut |name, leaf| match leaf {
        Ok(leaf) => {
            report.pages += leaf.len() as u64;
            check_leaf(store, &mut packs, leaf, &mut buffer, &mut found);
        }
        Err(problem) => {
            found.damage.insert(*name, problem);
        }
    });
    let Found { damage, damaged, unreadable, whole } = found;
    // So that later checkpoints do not refer to them.
    store.catalog().note_damage(&damaged, &unreadable, &whole)?;
    if !damage.is_empty() {
        // One that was deleted meanwhile is not damaged.
        let left: HashSet<String> =
            store.index().checkpoints()?.into_iter().map(|record| record.id).collect();
        let checkpoints: Vec<CheckpointRecord> =
            checkpoints.into_iter().filter(|record| left.contains(&record.id)).collect();
        report.damage = explain(store, &checkpoints, damage);
    }
    if reference.is_none() {
        report
            .damage
            .extend(store.index().check_pages().map(|problem| format!("{problem}; needed by no checkpoint")));
    }
    Ok(report)
}

fn check_leaf(store: &Store, packs: &mut PackReader, leaf: &Leaf, buffer: &mut Vec<u8>, found: &mut Found) {
    let Found { damage, damaged, unreadable, whole } = found;
    for run in leaf.runs() {
        if run.place == Place::ZERO {
            continue;
        }
        let names = leaf.names(run.first, run.pages);
        buffer.resize(run.pages * PAGE_SIZE, 0);
        let pack = run.place.pack;
        let place = |at: usize| Place { slot: run.place.slot + at as u32, ..run.place };
        let mut is_away = vec![false; run.pages];
        let is_read = packs.read_pages(store.catalog(), run.place, buffer).is_ok();
        if !is_read {
            // Page by page, to name those that cannot be read.
            for (at, name) in names.iter().enumerate() {
                let page = &mut buffer[at * PAGE_SIZE..(at + 1) * PAGE_SIZE];
                if let Err(error) = packs.read_pages(store.catalog(), place(at), page) {
                    page.fill(0);
                    is_away[at] = error.is_unreadable();
                    let lies = lies(store, packs, place(at));
                    damage.insert(*name, format!("page {}, {lies}: {error}", hex(name)));
                }
            }
        }
        let pages: Vec<&Page> = buffer.as_chunks::<PAGE_SIZE>().0.iter().collect();
        let mut read = vec![[0; 32]; pages.len()];
        store.hasher().name_pages(&pages, &mut read);
        for (at, (name, read)) in names.iter().zip(&read).enumerate() {
            let place = place(at);
            if name == read {
                whole.extend(Some(place).filter(|place| store.catalog().is_damaged(*place)));
            } else if is_away[at] {
                unreadable.push(place);
            } else {
                damaged.push(place);
                let path = pack::path(&store.directory().packs(), pack);
                damage.entry(*name).or_insert_with(|| {
                    let lies = lies(store, packs, place);
                    format!("page {}: {}, {lies}, holds something else", hex(name), path.display())
                });
            }
        }
    }
}

/// Where a page lies in its pack, for a message.
fn lies(store: &Store, packs: &mut PackReader, place: Place) -> String {
    match packs.stretch(store.catalog(), place, 1) {
        Ok(Stretch { kind: kind::LZ4, offset, skipped, stored, .. }) => {
            format!("offset {offset:#x} (page {} of a compressed block of {stored} bytes)", skipped + 1)
        }
        Ok(stretch) => format!("offset {:#x}", stretch.offset),
        Err(_) => format!("page {}", place.slot),
    }
}

/// One line for each damaged thing, with the checkpoints that need it.
fn explain(store: &Store, checkpoints: &[CheckpointRecord], damage: Damage) -> Vec<String> {
    let mut touched: BTreeMap<Hash, BTreeSet<&str>> = BTreeMap::new();
    for checkpoint in checkpoints {
        let one = std::slice::from_ref(checkpoint);
        each_leaf(store, one, &mut |_| true, &mut |name, leaf| {
            let mut note = |name: &Hash| {
                if damage.contains_key(name) {
                    touched.entry(*name).or_default().insert(&checkpoint.id);
                }
            };
            note(name);
            if let Ok(leaf) = leaf {
                for run in leaf.runs() {
                    leaf.names(run.first, run.pages).iter().for_each(&mut note);
                }
            }
        });
    }
    let total = touched.len();
    let mut lines: Vec<String> = damage
        .into_iter()
        .filter(|(name, _)| touched.contains_key(name))
        .take(MAX_LINES)
        .map(|(name, problem)| {
            let ids: Vec<&str> = touched.get(&name).into_iter().flatten().copied().collect();
            format!("{problem}; needed by {}", ids.join(", "))
        })
        .collect();
    if total > MAX_LINES {
        lines.push(format!("and {} more", total - MAX_LINES));
    }
    lines
}

/// Shows every leaf of some checkpoints, and every node that cannot be read, with its problem.
fn each_leaf(
    store: &Store,
    checkpoints: &[CheckpointRecord],
    want: &mut dyn FnMut(&Hash) -> bool,
    show: &mut Show<'_>,
) {
    for process in checkpoints.iter().flat_map(|checkpoint| &checkpoint.draft.processes) {
        let manifest = match Manifest::load(store.index(), store.node_names(), &process.manifest) {
            Ok(manifest) => manifest,
            Err(error) => {
                show(&process.manifest, Err(error.to_string()));
                continue;
            }
        };
        for root in &manifest.roots {
            let mut reader = Reader::new(store.index(), store.node_names(), store.hasher().zero());
            let walked = reader.each_leaf(root.name, want, &mut |first, name, leaf| {
                let leaf = leaf.and_then(|leaf| {
                    let mut leaf = leaf.into_leaf();
                    store.catalog().correct_to_read(&mut leaf)?;
                    Ok(leaf)
                });
                match leaf {
                    Ok(leaf) => show(name, Ok(&leaf)),
                    Err(error) => {
                        show(
                            name,
                            Err(format!("the pages of pid {} from {first:#x} on: {error}", process.pid)),
                        );
                    }
                }
                Ok(())
            });
            if let Err(error) = walked {
                show(&root.name, Err(error.to_string()));
            }
        }
    }
}
