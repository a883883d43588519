//! `stasis show`: what is in a checkpoint, down to mappings, threads and descriptors.

use stasis_protocol::{
    image::{
        Backing, Description, DescriptionKind, Fifo, Mapping, Object, ObjectKind, ProcessImage, Thread, flag,
    },
    store::CheckpointRecord,
};

use crate::{
    args::ShowArgs,
    context::Context,
    failure::ExitCode,
    image,
    output::{self, Table, bytes, printable},
    report,
    store::Store,
};

pub fn run(context: &Context, args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let mut store = Store::open(&context.store()?)?;
    let record = store.resolve(&args.reference)?;
    let images = read_images(&mut store, &record)?;
    let shown = report::Shown {
        images: images.iter().map(describe).collect(),
        checkpoint: report::Checkpoint::from(record),
    };
    if context.json {
        output::json(&shown)?;
    } else {
        output::print(&render(&shown))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn read_images(store: &mut Store, record: &CheckpointRecord) -> anyhow::Result<Vec<ProcessImage>> {
    let mut images = Vec::new();
    for process in &record.draft.processes {
        let decoded = image::decode(&store.read_record(&process.manifest)?);
        let whose = format!("pid {} in checkpoint {}", process.pid, record.id);
        images.push(decoded.map_err(|error| error.failure(&whose, |error| store.failure(error)))?);
    }
    Ok(images)
}

/// What is told of an image. Nothing in it can be trusted to be consistent.
pub fn describe(image: &ProcessImage) -> report::Image {
    report::Image {
        pid: image.ids.pid,
        ppid: image.ids.ppid,
        pgid: image.ids.pgid,
        sid: image.ids.sid,
        uid: image.credentials.uid[1],
        gid: image.credentials.gid[1],
        exe: image.exe.path.clone(),
        cwd: image.cwd.clone(),
        argv: image.argv.clone(),
        kernel: image.machine.kernel.clone(),
        stopped: image.settings.stopped,
        mappings: image.mappings.iter().map(|mapping| self::mapping(mapping, image)).collect(),
        threads: image.threads.iter().map(thread).collect(),
        descriptors: image
            .descriptors
            .iter()
            .map(|descriptor| {
                let description = image.descriptions.get(descriptor.description as usize);
                report::Descriptor {
                    fd: descriptor.fd,
                    description: descriptor.description,
                    close_on_exec: descriptor.close_on_exec,
                    kind: description.map_or("missing", |description| kind(&description.kind)),
                    what: description.map(|description| what(description, image)).unwrap_or_default(),
                    flags: description.map_or(0, |description| description.flags),
                    offset: description.map_or(0, |description| description.offset),
                }
            })
            .collect(),
    }
}

fn mapping(mapping: &Mapping, image: &ProcessImage) -> report::Mapping {
    let letter = |set: bool, letter: char| if set { letter } else { '-' };
    let protection = [
        letter(mapping.protection & libc::PROT_READ as u32 != 0, 'r'),
        letter(mapping.protection & libc::PROT_WRITE as u32 != 0, 'w'),
        letter(mapping.protection & libc::PROT_EXEC as u32 != 0, 'x'),
        if mapping.shared { 's' } else { 'p' },
    ];
    let backing = match &mapping.backing {
        Backing::Anonymous if mapping.flags & flag::GROWSDOWN != 0 => "[stack]".into(),
        Backing::Anonymous if mapping.start == image.layout.start_brk => "[heap]".into(),
        Backing::Anonymous => mapping.name.as_ref().map(|name| format!("[anon:{name}]")).unwrap_or_default(),
        Backing::File(file) => file.path.clone(),
        Backing::Object(id) => object(*id, &image.objects),
        Backing::Kernel(name) => name.clone(),
    };
    report::Mapping {
        start: mapping.start,
        end: mapping.end,
        protection: protection.iter().collect(),
        offset: mapping.offset,
        backing,
    }
}

pub fn object(id: u32, objects: &[Object]) -> String {
    match objects.iter().find(|object| object.id == id).map(|object| &object.kind) {
        Some(ObjectKind::SharedMemory) => format!("shared memory {id}"),
        Some(ObjectKind::Memfd { name, .. }) => format!("memfd:{name}"),
        Some(ObjectKind::DeletedFile { path }) => format!("{path} (deleted)"),
        Some(ObjectKind::Segment { of, .. }) => format!("System V shared memory {}", of.id),
        Some(ObjectKind::File { file, .. }) => format!("{} (saved)", file.path),
        None => format!("object {id}, which is missing"),
    }
}

fn thread(thread: &Thread) -> report::Thread {
    report::Thread {
        tid: thread.tid,
        name: thread.name.clone(),
        policy: thread.policy,
        priority: thread.priority,
        nice: thread.nice,
        exited: thread.exited,
    }
}

/// The kind of a description, in JSON too.
fn kind(kind: &DescriptionKind) -> &'static str {
    match kind {
        DescriptionKind::Regular { .. } => "file",
        DescriptionKind::Directory { .. } => "directory",
        DescriptionKind::CharacterDevice { .. } => "device",
        DescriptionKind::Terminal { .. } => "terminal",
        DescriptionKind::Pseudoterminal { .. } => "pseudo-terminal",
        DescriptionKind::Pipe { fifo: None, .. } => "pipe",
        DescriptionKind::Pipe { fifo: Some(_), .. } => "fifo",
        DescriptionKind::Inherited { .. } => "inherited",
        DescriptionKind::Event { .. } => "eventfd",
        DescriptionKind::Timer { .. } => "timerfd",
        DescriptionKind::Signal { .. } => "signalfd",
        DescriptionKind::Epoll { .. } => "epoll",
        DescriptionKind::Inotify { .. } => "inotify",
        DescriptionKind::Object { memfd: true, .. } => "memfd",
        DescriptionKind::Object { memfd: false, .. } => "deleted file",
        DescriptionKind::SocketPair { .. } => "socketpair",
        DescriptionKind::Socket { .. } => "socket",
        DescriptionKind::MessageQueue { .. } => "message queue",
        DescriptionKind::Path { .. } => "path",
        DescriptionKind::Process { .. } => "pidfd",
    }
}

fn what(description: &Description, image: &ProcessImage) -> String {
    match &description.kind {
        DescriptionKind::Regular { file, .. }
        | DescriptionKind::Directory { file }
        | DescriptionKind::Path { file } => file.path.clone(),
        DescriptionKind::CharacterDevice { path, .. } | DescriptionKind::Terminal { path, .. } => {
            path.clone()
        }
        DescriptionKind::Pseudoterminal { index, queues, .. } => {
            let queues = queues.iter();
            let unread: usize = queues
                .map(|queues| {
                    let lines: usize = queues.lines.iter().map(Vec::len).sum();
                    lines + queues.rest.len() + queues.output.len()
                })
                .sum();
            format!("master side of /dev/pts/{index}, {} in it", bytes(unread as u64))
        }
        DescriptionKind::Pipe { pipe, write, content, fifo, .. } => {
            let name = match fifo {
                None => format!("{pipe}"),
                Some(Fifo { path, deleted: false }) => path.clone(),
                Some(Fifo { path, deleted: true }) => format!("{path} (deleted)"),
            };
            let end = if *write { "write end" } else { "read end" };
            format!("{name}, {end}, {} in it", bytes(content.len() as u64))
        }
        DescriptionKind::Inherited { fd, what } => format!("{what} from the starter's descriptor {fd}"),
        DescriptionKind::Event { count, .. } => format!("count {count}"),
        DescriptionKind::Timer { value_ns: 0, .. } => "disarmed".into(),
        DescriptionKind::Timer { value_ns, .. } => format!("{} left", output::duration(value_ns / 1000)),
        DescriptionKind::Signal { mask } => format!("mask {mask:016x}"),
        DescriptionKind::Epoll { targets } => {
            let fds: Vec<String> = targets.iter().map(|target| target.fd.to_string()).collect();
            format!("watches {}", if fds.is_empty() { "nothing".into() } else { fds.join(", ") })
        }
        DescriptionKind::Inotify { watches, .. } => {
            let paths: Vec<&str> = watches.iter().map(|watch| watch.path.as_str()).collect();
            format!("watches {}", if paths.is_empty() { "nothing".into() } else { paths.join(", ") })
        }
        DescriptionKind::Object { object: id, .. } => object(*id, &image.objects),
        DescriptionKind::SocketPair { pair, received, .. } => {
            let unread = received.iter().map(Vec::len).sum::<usize>() as u64;
            format!("{pair}, {} unread", bytes(unread))
        }
        DescriptionKind::MessageQueue { name, .. } => name.clone(),
        DescriptionKind::Process { id: -1, .. } => "of a process that has ended".into(),
        DescriptionKind::Process { id, .. } => format!("of {id}"),
        DescriptionKind::Socket { domain, socket_type, backlog, .. } => {
            format!(
                "domain {domain}, type {socket_type}{}",
                if backlog.is_some() { ", listening" } else { "" }
            )
        }
    }
}

fn render(shown: &report::Shown) -> String {
    let checkpoint = &shown.checkpoint;
    let dash = || "-".to_string();
    let mut text = String::new();
    for (name, value) in [
        ("checkpoint", checkpoint.id.clone()),
        ("label", checkpoint.label.clone().unwrap_or_else(dash)),
        ("taken", format!("{} on {}", checkpoint.taken, checkpoint.host)),
        ("computation", checkpoint.computation.clone()),
        ("parent", checkpoint.parent.clone().unwrap_or_else(dash)),
        ("memory", format!("{}, {} written", bytes(checkpoint.size_bytes), bytes(checkpoint.written_bytes))),
        ("pause", output::pause(checkpoint.pause_us)),
    ] {
        text.push_str(&format!("{name:<12} {}\n", printable(&value)));
    }
    for image in &shown.images {
        text.push_str(&render_image(image));
    }
    text
}

fn render_image(image: &report::Image) -> String {
    let mut text = format!(
        "\npid {}: {}\n  {} in {}, uid {}, gid {}, kernel {}{}\n",
        image.pid,
        printable(&image.argv.join(" ")),
        printable(&image.exe),
        printable(&image.cwd),
        image.uid,
        image.gid,
        printable(&image.kernel),
        if image.stopped { ", stopped by a signal" } else { "" }
    );
    let mut threads = Table::new(&["THREAD", "NICE", "NAME"], &[0, 1]);
    for thread in &image.threads {
        let name = if thread.exited { format!("{} (exited)", thread.name) } else { thread.name.clone() };
        threads.row([thread.tid.to_string(), thread.nice.to_string(), name]);
    }
    let mut descriptors = Table::new(&["FD", "KIND", "OFFSET", "WHAT"], &[0, 2]);
    for descriptor in &image.descriptors {
        let (kind, offset) = (descriptor.kind.to_string(), descriptor.offset.to_string());
        descriptors.row([descriptor.fd.to_string(), kind, offset, descriptor.what.clone()]);
    }
    let mut mappings = Table::new(&["MAPPING", "PROT", "SIZE", "BACKING"], &[2]);
    for mapping in &image.mappings {
        mappings.row([
            format!("{:x}-{:x}", mapping.start, mapping.end),
            mapping.protection.clone(),
            bytes(mapping.end.saturating_sub(mapping.start)),
            mapping.backing.clone(),
        ]);
    }
    for table in [threads, descriptors, mappings] {
        text.push('\n');
        text.push_str(&table.render());
    }
    text
}
