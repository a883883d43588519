//! All processes of a checkpoint: read, and checked before anything is made.

use anyhow::bail;
use stasis_protocol::{
    coordinator::Refusal,
    image::{Machine, ProcessImage},
    store::CheckpointRecord,
};
use stasis_store::pager::order::Order;

use super::{
    credentials, descriptors, layout, machine, refusal, settings, terminal,
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
    /// Reads the checkpoint that a reference names.
    ///
    /// # Errors
    /// [`Failure::Store`]; a refusal of an image that another Stasis wrote.
    pub fn read(context: &Context, reference: &str) -> anyhow::Result<Self> {
        let directory = context.store()?;
        let mut store = Store::open(&directory)?;
        let failed = |message: String| Failure::Store { directory: directory.clone(), message };
        let record = store.resolve(reference)?;
        let mut processes = Vec::with_capacity(record.draft.processes.len());
        // All of these before the first process: what is asked after that ends the lease of its packs.
        let mut working_sets = Vec::new();
        for entry in &record.draft.processes {
            working_sets.push(store.working_set(&record.id, entry.pid)?);
        }
        for (entry, working_set) in record.draft.processes.iter().zip(working_sets) {
            let process = store.read_process(&entry.manifest)?;
            let whose = format!("pid {} in checkpoint {}", entry.pid, record.id);
            let image = image::decode(&process.record)
                .map_err(|error| error.failure(&whose, |error| failed(error.to_string())))?;
            let (extents, hashes) = process.pages().map_err(|error| failed(error.to_string()))?;
            let pages = layout::Pages { extents, hashes, directory: process.directory };
            pages.check_packs().map_err(failed)?;
            processes.push(Saved { image, pages, key: process.key, manifest: entry.manifest, working_set });
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
