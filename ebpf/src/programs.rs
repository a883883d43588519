//! Loading the programs into the kernel, or taking over those that are there.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, RingBuf},
    programs::{BtfTracePoint, Iter, ProgramError, links::FdLink},
};
use stasis_events::{Counter, Task};

use crate::{
    btf,
    pinned::{self, Pinned},
    values::{self, LabelKeyValue, LabelValue, RequestValue, TaskValue, UserValue},
};

/// A program that is attached to a tracepoint.
struct Attached {
    program: &'static str,
    tracepoint: &'static str,
    feature: &'static str,
    required: bool,
}

const ATTACHED: [Attached; 4] = [
    Attached { program: "newtask", tracepoint: "task_newtask", feature: "forks", required: true },
    Attached { program: "exec", tracepoint: "sched_process_exec", feature: "execs", required: true },
    Attached { program: "exit", tracepoint: "sched_process_exit", feature: "exits", required: true },
    Attached {
        program: "tcp_state",
        tracepoint: "inet_sock_set_state",
        feature: "tcp-states",
        required: false,
    },
];

const TASKS_ITERATOR: (&str, &str) = ("all_tasks", "task");
const SOCKETS_ITERATOR: (&str, &str) = ("all_sockets", "task_file");

const MAPS: [&str; 8] =
    ["TASKS", "USERS", "REQUESTS", "SOCKETS", "LISTENERS", "LABELS", "COUNTERS", "EVENTS"];

/// What is in the kernel, by the files that it is pinned as.
pub struct Loaded {
    directory: PathBuf,
    pub tasks: HashMap<MapData, u32, TaskValue>,
    pub users: HashMap<MapData, u32, UserValue>,
    pub requests: HashMap<MapData, u32, RequestValue>,
    pub labels: HashMap<MapData, LabelKeyValue, LabelValue>,
    pub counters: Array<MapData, u64>,
    pub events: RingBuf<MapData>,
    pub features: Vec<String>,
    pub missing: Vec<(String, String)>,
    /// Whether they were there already.
    pub taken_over: bool,
}

/// # Errors
/// What this kernel lacks, or what of it could not be loaded, with the verifier's last words.
pub fn load(object: &[u8], root: &Path) -> anyhow::Result<(Pinned, Loaded)> {
    let vmlinux = fs::read("/sys/kernel/btf/vmlinux")
        .context("this kernel has no BTF (CONFIG_DEBUG_INFO_BTF): /sys/kernel/btf/vmlinux")?;
    let found = btf::offsets(&vmlinux)?;
    let offsets = values::OffsetsValue(found.offsets);
    let pinned = Pinned::new(root, object, format!("{:?}", found.offsets).as_bytes())?;
    let mut missing = Vec::new();
    let taken_over = pinned.is_there();
    if !taken_over {
        if !found.sockets_missing.is_empty() {
            missing.push(("tcp-states".into(), format!("no {}", found.sockets_missing.join(", "))));
        }
        put_together(&pinned, object, &offsets, &mut missing)?;
    }
    let mut loaded = open(&pinned.directory(), taken_over)?;
    for (feature, why) in &mut loaded.missing {
        if let Some((_, reason)) = missing.iter().find(|(name, _)| name == feature) {
            why.clone_from(reason);
        }
    }
    for (readable, other) in pinned.others() {
        if readable && let Err(error) = carry_over(&other, &mut loaded) {
            eprintln!("what {} tracked cannot be carried over: {error:#}", other.display());
        }
        pinned::remove(&other).with_context(|| format!("cannot remove {}", other.display()))?;
    }
    Ok((pinned, loaded))
}

/// Loads, attaches and pins all.
fn put_together(
    pinned: &Pinned,
    object: &[u8],
    offsets: &values::OffsetsValue,
    missing: &mut Vec<(String, String)>,
) -> anyhow::Result<()> {
    let directory = pinned.begin().context("the directory of pinned programs")?;
    let btf = Btf::from_sys_fs().context("this kernel's BTF")?;
    let mut loader = EbpfLoader::new();
    loader.override_global("OFFSETS", offsets, true);
    for map in MAPS {
        loader.map_pin_path(map, directory.join(map));
    }
    let mut programs = loader.load(object).context("the tracer's programs")?;
    // Iterators first: once a tracepoint is attached, the kernel writes.
    for (name, kind) in [TASKS_ITERATOR, SOCKETS_ITERATOR] {
        if let Err(error) = pin_iterator(&mut programs, &btf, name, kind, &directory) {
            if name == TASKS_ITERATOR.0 {
                return Err(error.context("this kernel takes no iterator over tasks (Linux 5.8)"));
            }
            missing.push(("connections".into(), reason(&error)));
        }
    }
    for attached in &ATTACHED {
        let Err(error) = pin_tracepoint(&mut programs, &btf, attached, &directory) else { continue };
        if attached.required {
            return Err(
                error.context(format!("this kernel does not let tp_btf/{} be used", attached.tracepoint))
            );
        }
        missing.push((attached.feature.into(), reason(&error)));
    }
    pinned.finish().context("the directory of pinned programs")
}

fn pin_tracepoint(
    programs: &mut Ebpf,
    btf: &Btf,
    attached: &Attached,
    directory: &Path,
) -> anyhow::Result<()> {
    let program: &mut BtfTracePoint =
        programs.program_mut(attached.program).context("is not in the object")?.try_into()?;
    program.load(attached.tracepoint, btf)?;
    let id = program.attach()?;
    let link: FdLink = program.take_link(id)?.into();
    link.pin(directory.join(attached.program))?;
    Ok(())
}

fn pin_iterator(
    programs: &mut Ebpf,
    btf: &Btf,
    name: &str,
    kind: &str,
    directory: &Path,
) -> anyhow::Result<()> {
    let program: &mut Iter = programs.program_mut(name).context("is not in the object")?.try_into()?;
    program.load(kind, btf)?;
    let id = program.attach()?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(directory.join(name))?;
    Ok(())
}

/// An error in a line, with the verifier's last lines where there are any.
fn reason(error: &anyhow::Error) -> String {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            let last: Vec<&str> = log.lines().rev().take(3).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("{io_error}: {}", last.join(" / "))
        }
        _ => format!("{error:#}"),
    }
}

fn open(directory: &Path, taken_over: bool) -> anyhow::Result<Loaded> {
    let map = |name: &str| -> anyhow::Result<Map> {
        let data = MapData::from_pin(directory.join(name)).with_context(|| format!("map {name}"))?;
        Ok(Map::from_map_data(data)?)
    };
    let mut features = Vec::new();
    let mut missing = Vec::new();
    let mut feature = |file: &str, feature: &str| {
        if directory.join(file).exists() {
            features.push(feature.to_string());
        } else {
            missing.push((feature.to_string(), "this kernel did not take its program".to_string()));
        }
    };
    for attached in &ATTACHED {
        feature(attached.program, attached.feature);
    }
    feature(SOCKETS_ITERATOR.0, "connections");
    Ok(Loaded {
        directory: directory.to_owned(),
        tasks: map("TASKS")?.try_into()?,
        users: map("USERS")?.try_into()?,
        requests: map("REQUESTS")?.try_into()?,
        labels: map("LABELS")?.try_into()?,
        counters: map("COUNTERS")?.try_into()?,
        events: map("EVENTS")?.try_into()?,
        features,
        missing,
        taken_over,
    })
}

/// Takes tracked processes over from another version's maps, while its programs still keep them right.
fn carry_over(other: &Path, loaded: &mut Loaded) -> anyhow::Result<()> {
    let before: HashMap<MapData, u32, TaskValue> =
        Map::from_map_data(MapData::from_pin(other.join("TASKS"))?)?.try_into()?;
    let users: HashMap<MapData, u32, UserValue> =
        Map::from_map_data(MapData::from_pin(other.join("USERS"))?)?.try_into()?;
    let labels: HashMap<MapData, LabelKeyValue, LabelValue> =
        Map::from_map_data(MapData::from_pin(other.join("LABELS"))?)?.try_into()?;
    for (key, label) in labels.iter().flatten() {
        let _ = loaded.labels.insert(key, label, 0);
    }
    let carried: Vec<u32> = before
        .iter()
        .flatten()
        .filter(|(pid, task)| loaded.tasks.insert(pid, task, 0).is_ok())
        .map(|(pid, _)| pid)
        .collect();
    // Whoever began in between is found by its parent; who ended in between is in nobody's list.
    let living = loaded.all_tasks()?;
    let mut counts: std::collections::HashMap<u32, u64> = std::collections::HashMap::new();
    for task in &living {
        *counts.entry(task.owner).or_default() += 1;
    }
    for pid in carried.iter().filter(|pid| !living.iter().any(|task| task.tgid == **pid)) {
        let _ = loaded.tasks.remove(pid);
    }
    for (uid, mut user) in users.iter().flatten() {
        user.0.tasks = counts.get(&uid).copied().unwrap_or(0);
        let _ = loaded.users.insert(uid, user, 0);
    }
    Ok(())
}

impl Loaded {
    /// One pass over all processes: registers what REQUESTS asks for, finds what was missed, and tells what is tracked.
    ///
    /// # Errors
    /// When the iterator cannot be read.
    pub fn all_tasks(&self) -> io::Result<Vec<Task>> {
        let bytes = self.read_iterator(TASKS_ITERATOR.0)?;
        Ok(bytes.chunks_exact(size_of::<Task>()).filter_map(values::record).collect())
    }

    /// Every socket that any process has open.
    ///
    /// # Errors
    /// When the iterator is not there, or cannot be read.
    pub fn all_sockets(&self) -> io::Result<Vec<stasis_events::Socket>> {
        let bytes = self.read_iterator(SOCKETS_ITERATOR.0)?;
        Ok(bytes.chunks_exact(size_of::<stasis_events::Socket>()).filter_map(values::record).collect())
    }

    fn read_iterator(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.directory.join(name))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).unwrap_or(0)
    }

    /// # Errors
    /// When maps cannot be looked at with the rights that are left.
    pub fn try_maps(&self) -> anyhow::Result<()> {
        self.counters.get(&0, 0).context("BPF_MAP_LOOKUP_ELEM")?;
        self.all_tasks().context("reading an iterator")?;
        Ok(())
    }
}

/// The object, which must be as hard to replace as the service itself.
///
/// # Errors
/// When it is not there, or others than root may write it.
pub fn object(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::os::unix::fs::MetadataExt;
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("{shown}: build it: cargo xtask build-ebpf"))?;
    let meta = file.metadata()?;
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        bail!(
            "{shown} may be written by others than root (uid {}, mode {:o})",
            meta.uid(),
            meta.mode() & 0o7777
        );
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
