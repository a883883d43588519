//! Reading everything back: every page of every checkpoint against its name.
//!
//! Leaves shared by checkpoints are read once. What is damaged is reported with the pack, the offset
//! and the name, and with all checkpoints that need it; for people, what of a pack the same ones need in one line.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

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

/// How much is reported one by one, in bytes: a message has room for some 90000 pages, which is five packs.
const MOST: usize = 16 << 20;

/// What `verify` found.
#[derive(Default)]
pub struct Report {
    pub pages: u64,
    /// How many things are damaged.
    pub damaged: u64,
    /// A line for each.
    pub damage: Vec<String>,
    /// The same in short.
    pub summary: Vec<String>,
}

/// Something damaged: a page or a node, by name.
type Damage = BTreeMap<Hash, Problem>;

/// What is wrong with it.
enum Problem {
    Node(String),
    Page(Lies),
}

struct Lies {
    place: Place,
    /// For a message.
    shown: String,
    /// Why it cannot be read; `None`: it holds something else.
    error: Option<String>,
}

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
            found.damage.insert(*name, Problem::Node(problem));
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
        explain(store, &checkpoints, damage, &mut report);
    }
    if reference.is_none()
        && let Some(problem) = store.index().check_pages()
    {
        let line = format!("{problem}; needed by no checkpoint");
        report.damaged += 1;
        report.summary.push(line.clone());
        report.damage.push(line);
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
                    let shown = lies(store, packs, place(at));
                    let error = Some(error.to_string());
                    damage.insert(*name, Problem::Page(Lies { place: place(at), shown, error }));
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
                damage.entry(*name).or_insert_with(|| {
                    Problem::Page(Lies { place, shown: lies(store, packs, place), error: None })
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

/// Reports each damaged thing, with the checkpoints that need it.
fn explain(store: &Store, checkpoints: &[CheckpointRecord], damage: Damage, report: &mut Report) {
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
    report.damaged = touched.len() as u64;
    let path = |pack| pack::path(&store.directory().packs(), pack);
    let mut room = MOST;
    let mut pages: BTreeMap<(u32, bool, String), Vec<(Lies, Hash)>> = BTreeMap::new();
    for (name, problem) in damage {
        let Some(ids) = touched.get(&name) else { continue };
        let ids = ids.iter().copied().collect::<Vec<_>>().join(", ");
        let line = match &problem {
            Problem::Node(problem) => format!("{problem}; needed by {ids}"),
            Problem::Page(lies) => one(&name, lies, &path(lies.place.pack), &ids),
        };
        match problem {
            Problem::Node(_) => report.summary.push(line.clone()),
            Problem::Page(lies) => {
                let alike = (lies.place.pack, lies.error.is_some(), ids);
                pages.entry(alike).or_default().push((lies, name));
            }
        }
        if let Some(left) = room.checked_sub(line.len()) {
            room = left;
            report.damage.push(line);
        }
    }
    if report.damage.len() < touched.len() {
        report.damage.push(format!("and {} more", touched.len() - report.damage.len()));
    }
    for ((pack, _, ids), mut pages) in pages {
        pages.sort_by_key(|(lies, _)| lies.place.slot);
        let path = path(pack);
        report.summary.push(match &pages[..] {
            [(first, _), .., (last, _)] => {
                let problem = match &first.error {
                    Some(error) => format!(": {error}"),
                    None => ", hold something else".into(),
                };
                let (count, shown) = (pages.len(), path.display());
                format!(
                    "{count} pages of {shown}, {} to {}{problem}; needed by {ids}",
                    first.shown, last.shown
                )
            }
            alone => alone.iter().map(|(lies, name)| one(name, lies, &path, &ids)).collect(),
        });
    }
}

/// What is wrong with a page.
fn one(name: &Hash, Lies { shown, error, .. }: &Lies, pack: &Path, ids: &str) -> String {
    let name = hex(name);
    match error {
        Some(error) => format!("page {name}, {shown}: {error}; needed by {ids}"),
        None => format!("page {name}: {}, {shown}, holds something else; needed by {ids}", pack.display()),
    }
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
