//! All processes of a checkpoint: read, and checked before anything is made.

use anyhow::bail;
use stasis_protocol::{
    coordinator::Refusal,
    image::{Machine, ProcessImage},
    store::CheckpointRecord,
};
use stasis_store::{client::StoredProcess, pager::order::Order};

use super::{
    credentials, descriptors, layout, lazy, machine, refusal, settings, terminal,
    tree::{Member, Tree},
    vdso::Vdso,
};
use crate::{context::Context, failure::Failure, image, store::Store};

/// A process of a checkpoint, as it came from the store.
pub struct Saved {
    pub image: ProcessImage,
    pub pages: layout::Pages,
    pub key: [u8; 32],
    pub manifest: [u8; 32],
    /// What it touched first after earlier restarts.
    pub working_set: Order,
}

/// A checkpoint.
pub struct Computation {
    pub record: CheckpointRecord,
    /// At least one.
    pub processes: Vec<Saved>,
    /// While it is open the packs stay where they are.
    pub store: Store,
    /// This kernel's.
    pub vdso: Vdso,
}

impl Computation {
    /// Reads the checkpoint that a reference names. `outline`: not where pages lie that a pager can look for later.
    ///
    /// # Errors
    /// [`Failure::Store`]; a refusal of an image that another Stasis wrote.
    pub fn read(context: &Context, reference: &str, outline: bool) -> anyhow::Result<Self> {
        let directory = context.store()?;
        let mut store = Store::open(&directory)?;
        let failed = |message: String| Failure::Store { directory: directory.clone(), message };
        let record = store.resolve(reference)?;
        let mut processes = Vec::with_capacity(record.draft.processes.len());
        // All of these before the first process: what is asked after that ends the lease of its packs.
        let mut before = Vec::new();
        for entry in &record.draft.processes {
            let whose = format!("pid {} in checkpoint {}", entry.pid, record.id);
            let image = image::decode(&store.read_record(&entry.manifest)?)
                .map_err(|error| error.failure(&whose, |error| failed(error.to_string())))?;
            before.push((image, store.working_set(&record.id, entry.pid)?));
        }
        for (entry, (image, working_set)) in record.draft.processes.iter().zip(before) {
            let may_wait = if outline { lazy::may_wait(&image) } else { Vec::new() };
            let process = store.read_process(&entry.manifest, &may_wait)?;
            let key = process.key;
            let pages = listed(process).map_err(failed)?;
            processes.push(Saved { image, pages, key, manifest: entry.manifest, working_set });
        }
        if processes.is_empty() {
            bail!(failed(format!("checkpoint {} holds no process: run `stasis verify`", record.id)));
        }
        let vdso = Vdso::of_this_kernel().map_err(|error| {
            let reason = format!("it cannot be read: {error}");
            Failure::Refused(vec![refusal("the vDSO of this kernel", reason, "mount /proc")])
        })?;
        Ok(Self { record, processes, store, vdso })
    }

    /// Reads where all pages lie of the processes that go on without a pager.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn complete(&mut self, memory: &lazy::Choice) -> anyhow::Result<()> {
        for (process, saved) in self.processes.iter_mut().enumerate() {
            if !saved.pages.later.0.is_empty() && memory.regions(process).is_empty() {
                let whole = self.store.read_process(&saved.manifest, &[])?;
                let directory = whole.directory.clone();
                saved.pages = listed(whole).map_err(|message| Failure::Store { directory, message })?;
            }
        }
        Ok(())
    }

    pub fn images(&self) -> Vec<&ProcessImage> {
        self.processes.iter().map(|process| &process.image).collect()
    }

    /// Looks at machine, files and ids, and says who makes whom.
    ///
    /// # Errors
    /// Everything that speaks against restarting it here and now.
    pub fn check(&self, policy: &descriptors::Policy, detach: bool) -> anyhow::Result<Tree> {
        let mut refusals = Vec::new();
        let files = descriptors::Files::of(self.processes.iter().map(|process| &process.image));
        let mut machines: Vec<&Machine> = Vec::new();
        for saved in &self.processes {
            let image = &saved.image;
            let first = refusals.len();
            layout::check(image, &files, &mut refusals);
            if !machines.contains(&&image.machine) {
                machines.push(&image.machine);
                machine::check(&image.machine, &mut refusals);
            }
            self.vdso.check(saved, &mut refusals);
            credentials::check(image, &mut refusals);
            settings::check(image, &mut refusals);
            refusals.extend(descriptors::check(image, &files, policy));
            let repeated = |refusal: &Refusal| refusals[..first].contains(refusal);
            let new: Vec<Refusal> =
                refusals[first..].iter().filter(|refusal| !repeated(refusal)).cloned().collect();
            refusals.truncate(first);
            refusals.extend(new);
        }
        let members: Vec<Member<'_>> = self.images().into_iter().map(Member::of).collect();
        let joined = terminal::joined(&self.images(), detach);
        match Tree::new(&members, detach, &joined) {
            Ok(tree) if refusals.is_empty() => return Ok(tree),
            Ok(_) => {}
            Err(refusal) => refusals.push(refusal),
        }
        Err(Failure::Refused(refusals).into())
    }
}

/// The pages of a process, whose packs can be read.
fn listed(process: StoredProcess) -> Result<layout::Pages, String> {
    let (extents, hashes) = process.pages().map_err(|error| error.to_string())?;
    let later = (process.later, process.later_pages);
    let pages = layout::Pages { extents, hashes, later, directory: process.directory };
    pages.check_packs()?;
    Ok(pages)
}
