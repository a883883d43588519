//! Writing checkpoints to a stream, each page, leaf and process once.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

use stasis_protocol::store::{CheckpointRecord, Exported, Hash};

use crate::{
    error::{StoreError, hex},
    hash::{PAGE_SIZE, Page},
    manifest::{LEAF_PAGES, Leaf, Manifest, Reader},
    pack::{self, Place, reader::PackReader},
    reference,
    store::Store,
    stream::{CheckpointFrame, EndFrame, Frame, LeafFrame, PAGES_AT_ONCE, ProcessFrame, StreamRun, Writer},
};

struct Export<'a, W> {
    store: &'a Store,
    packs: PackReader,
    writer: Writer<W>,
    count: EndFrame,
    /// By pack and slot, one more than the page's number in the stream; 0: it is not in it yet.
    pages: BTreeMap<u32, Vec<u32>>,
    leaves: HashMap<Hash, u64>,
    processes: HashMap<Hash, u64>,
}

/// Writes the checkpoints that `references` name, oldest first.
///
/// # Errors
/// A reference names none; something of them is damaged; the stream cannot be written. What was written is then not
/// a whole stream.
pub fn export(store: &Store, references: &[String], out: impl Write) -> Result<Exported, StoreError> {
    let _lease = store.leases().take();
    let mut records: BTreeMap<u64, CheckpointRecord> = BTreeMap::new();
    for reference in references {
        let record = reference::resolve(store.index(), reference)?;
        records.insert(record.sequence, record);
    }
    let writer = Writer::new(out).map_err(unwritable)?;
    let packs = PackReader::new(&store.directory().packs());
    let mut export = Export {
        store,
        packs,
        writer,
        count: EndFrame::default(),
        pages: BTreeMap::new(),
        leaves: HashMap::new(),
        processes: HashMap::new(),
    };
    for record in records.into_values() {
        let id = record.id.clone();
        export.checkpoint(record).map_err(|error| match error {
            StoreError::Damaged(problem) => {
                StoreError::Damaged(format!("{problem}; the checkpoint {id} needs it, see `stasis verify`"))
            }
            other => other,
        })?;
    }
    export.put(&Frame::End(export.count))?;
    export.writer.flush().map_err(unwritable)?;
    Ok(Exported {
        checkpoints: export.count.checkpoints,
        pages: export.count.pages,
        bytes: export.writer.bytes,
    })
}

fn unwritable(error: io::Error) -> StoreError {
    StoreError::Refused(format!("the stream cannot be written: {error}"))
}

impl<W: Write> Export<'_, W> {
    fn put(&mut self, frame: &Frame) -> Result<(), StoreError> {
        self.writer.frame(frame).map_err(unwritable)
    }

    fn checkpoint(&mut self, record: CheckpointRecord) -> Result<(), StoreError> {
        let mut draft = record.draft;
        let mut processes = Vec::new();
        for process in &mut draft.processes {
            processes.push(self.process(&process.manifest)?);
            process.manifest = [0; 32];
        }
        self.count.checkpoints += 1;
        self.put(&Frame::Checkpoint(CheckpointFrame {
            id: record.id,
            taken_us: record.taken_us,
            draft,
            processes,
        }))
    }

    fn process(&mut self, name: &Hash) -> Result<u64, StoreError> {
        if let Some(number) = self.processes.get(name) {
            return Ok(*number);
        }
        let store = self.store;
        let manifest = Manifest::load(store.index(), store.node_names(), name)?;
        let mut spaces = Vec::new();
        for root in &manifest.roots {
            let mut leaves = Vec::new();
            let mut reader = Reader::new(store.index(), store.node_names(), store.hasher().zero());
            reader.each_leaf(root.name, &mut |_| true, &mut |first, name, leaf| {
                let number = match self.leaves.get(name) {
                    Some(number) => *number,
                    None => self.leaf(name, leaf?.into_leaf())?,
                };
                leaves.push((first / LEAF_PAGES as u64, number));
                Ok(())
            })?;
            spaces.push((root.space, leaves));
        }
        self.put(&Frame::Process(ProcessFrame { spaces, record: manifest.record }))?;
        self.processes.insert(*name, self.count.processes);
        self.count.processes += 1;
        Ok(self.count.processes - 1)
    }

    fn leaf(&mut self, name: &Hash, mut leaf: Leaf) -> Result<u64, StoreError> {
        self.store.catalog().correct_to_read(&mut leaf)?;
        let mut runs: Vec<StreamRun> = Vec::new();
        for run in leaf.runs() {
            for at in 0..run.pages {
                let start = match run.place {
                    Place::ZERO => None,
                    place => Some(self.page(
                        &leaf,
                        run.first + at,
                        Place { slot: place.slot + at as u32, ..place },
                    )?),
                };
                let first = (run.first + at) as u16;
                match runs.last_mut() {
                    Some(last)
                        if last.first + last.pages == first
                            && last.start.map(|start| start + u64::from(last.pages)) == start =>
                    {
                        last.pages += 1;
                    }
                    _ => runs.push(StreamRun { first, pages: 1, start }),
                }
            }
        }
        self.put(&Frame::Leaf(LeafFrame { runs }))?;
        self.leaves.insert(*name, self.count.leaves);
        self.count.leaves += 1;
        Ok(self.count.leaves - 1)
    }

    /// The number of the page at `at` of the leaf. Where it is new, it is written with the new ones behind it.
    fn page(&mut self, leaf: &Leaf, at: usize, place: Place) -> Result<u64, StoreError> {
        if let Some(number) = self.number(place) {
            return Ok(number);
        }
        let fresh: Vec<(Hash, Place)> = (at..LEAF_PAGES.min(at + PAGES_AT_ONCE))
            .zip(place.slot..)
            .map_while(|(at, slot)| {
                let expected = Place { pack: place.pack, slot };
                let (name, found) = leaf.get(at)?;
                (found == expected && self.number(expected).is_none()).then_some((*name, expected))
            })
            .collect();
        let mut bytes = vec![0; fresh.len() * PAGE_SIZE];
        self.packs.read_pages(self.store.catalog(), place, &mut bytes)?;
        let read: Vec<&Page> = bytes.as_chunks::<PAGE_SIZE>().0.iter().collect();
        let mut found = vec![[0; 32]; read.len()];
        self.store.hasher().name_pages(&read, &mut found);
        for ((name, place), found) in fresh.iter().zip(found) {
            if *name != found {
                let path = pack::path(&self.store.directory().packs(), place.pack);
                let offset = self.packs.stretch(self.store.catalog(), *place, 1)?.offset;
                return Err(StoreError::Damaged(format!(
                    "the page {} at offset {offset:#x} of {} holds something else",
                    hex(name),
                    path.display()
                )));
            }
        }
        self.put(&Frame::Pages(bytes))?;
        let first = self.count.pages;
        for (_, place) in fresh {
            let number = u32::try_from(self.count.pages + 1)
                .map_err(|_| StoreError::Refused("there are too many pages for one stream".into()))?;
            let numbers = self.pages.entry(place.pack).or_default();
            let slot = place.slot as usize;
            if numbers.len() <= slot {
                numbers.resize(slot + 1, 0);
            }
            numbers[slot] = number;
            self.count.pages += 1;
        }
        Ok(first)
    }

    fn number(&self, place: Place) -> Option<u64> {
        let number = self.pages.get(&place.pack)?.get(place.slot as usize)?;
        u64::from(*number).checked_sub(1)
    }
}
