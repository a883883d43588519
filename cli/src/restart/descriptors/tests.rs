//! Each test gives a forked child the descriptors of an image and has it look at itself.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use stasis_protocol::image::{
    Credentials, Description, DescriptionKind, Descriptor, EpollTarget, FileIdentity, FileRights, Ids,
    Layout, Machine, Object, ObjectKind, ProcessImage, Resume, Settings, SocketFile,
};
use stasis_protocol::store::SharedDescriptor;

use super::*;

const POLICY: Policy = Policy { missing: MissingFile::Refuse, changed: ChangedFile::Refuse };

pub fn identity(path: &Path) -> FileIdentity {
    let found = path.metadata().unwrap();
    FileIdentity {
        path: path.to_str().unwrap().into(),
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        mtime_ns: found.mtime() * 1_000_000_000 + found.mtime_nsec(),
        mode: found.mode(),
    }
}

fn described(flags: i32, kind: DescriptionKind) -> Description {
    Description {
        flags: flags as u32,
        offset: 0,
        owner: None,
        signal: 0,
        flock: None,
        ofd_locks: vec![],
        lease: None,
        kind,
    }
}

fn regular(flags: i32, path: &Path) -> Description {
    described(flags, DescriptionKind::Regular { file: identity(path), locks: vec![] })
}

/// An image of descriptions, each with the descriptors that are given beside it.
fn image(open: Vec<(Description, Vec<RawFd>)>) -> ProcessImage {
    let mut descriptors = Vec::new();
    let mut descriptions = Vec::new();
    for (index, (description, fds)) in open.into_iter().enumerate() {
        descriptors.extend(fds.into_iter().map(|fd| Descriptor {
            fd,
            description: index as u32,
            close_on_exec: false,
        }));
        descriptions.push(description);
    }
    let file = FileIdentity { path: "/".into(), device: 0, inode: 0, size: 0, mtime_ns: 0, mode: 0 };
    let nobody = nix::unistd::getuid().as_raw();
    ProcessImage {
        version: 1,
        machine: Machine {
            kernel: String::new(),
            xcr0: 0,
            xsave_size: 0,
            xsave_offsets: vec![],
            cpuid: [0; 6],
            vdso_len: 0,
            vdso_sum: 0,
            counts_ids: 0,
        },
        ids: Ids { pid: 4242, ppid: 1, pgid: 1, sid: 1, last: 0 },
        argv: vec![],
        exe: file,
        cwd: "/".into(),
        umask: 0o22,
        layout: Layout {
            start_code: 0,
            end_code: 0,
            start_data: 0,
            end_data: 0,
            start_brk: 0,
            brk: 0,
            start_stack: 0,
            arg_start: 0,
            arg_end: 0,
            env_start: 0,
            env_end: 0,
            auxv: vec![],
        },
        mappings: vec![],
        objects: vec![],
        system_v: vec![],
        undo: vec![],
        descriptions,
        descriptors,
        in_flight: vec![],
        threads: vec![],
        zombies: vec![],
        credentials: Credentials {
            uid: [nobody; 4],
            gid: [nix::unistd::getgid().as_raw(); 4],
            groups: vec![],
            inheritable: 0,
            permitted: 0,
            effective: 0,
            bounding: 0,
            ambient: 0,
            securebits: 0,
            no_new_privs: false,
        },
        limits: vec![],
        settings: Settings::default(),
        resume: Resume::default(),
        handover: vec![],
    }
}

fn checked(image: &ProcessImage, policy: &Policy) -> Vec<Refusal> {
    check(image, &Files::of([image].into_iter()), policy)
}

/// Installs an image in a child, has it look at itself, and fails with what it says.
fn in_child(image: &ProcessImage, look: impl FnOnce(&Installed) -> Result<(), String>) {
    let passed = Passed::look(false);
    let images = vec![image];
    let mut objects = Objects::create(&images).unwrap();
    objects.seal(&images).unwrap();
    in_child_of(&Common::new(images, &[], objects, &passed, &POLICY), 0, look);
}

fn in_child_of(common: &Common<'_>, process: usize, look: impl FnOnce(&Installed) -> Result<(), String>) {
    let (mut told, low) = std::io::pipe().unwrap();
    // A number that no image here uses.
    // SAFETY: fcntl(2) with numbers; the result is ours.
    let tell =
        unsafe { File::from_raw_fd(done(libc::fcntl(low.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 500)).unwrap()) };
    drop(low);
    // SAFETY: the child only makes system calls and allocates, which glibc allows after fork.
    match unsafe { libc::fork() } {
        0 => {
            let number = tell.into_raw_fd();
            let said = match install(common, process, &[number]) {
                Ok(installed) => look(&installed),
                Err(refusal) => Err(refusal.to_string()),
            };
            // SAFETY: install has left it open.
            let mut tell = unsafe { File::from_raw_fd(number) };
            let _ = tell.write_all(said.err().unwrap_or_else(|| "as it was".into()).as_bytes());
            // SAFETY: ends the child without running what the parent owns.
            unsafe { libc::_exit(0) };
        }
        child => {
            assert!(child > 0);
            drop(tell);
            let mut said = String::new();
            told.read_to_string(&mut said).unwrap();
            // SAFETY: waits for our own child.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            assert_eq!(said, "as it was");
        }
    }
}

fn open_numbers() -> BTreeSet<RawFd> {
    let own: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        })
        .unwrap_or_default();
    // The directory itself was open while it was read.
    // SAFETY: fcntl(2) with numbers.
    own.into_iter().filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).collect()
}

fn fdinfo(fd: RawFd, key: &str) -> String {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("nothing").trim().into()
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} instead of {wanted:?}")) }
}

fn read_some(fd: RawFd) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    // SAFETY: writes at most the buffer's length.
    let count = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    bytes.truncate(count.max(0) as usize);
    bytes
}

#[test]
fn descriptors_come_to_their_numbers_and_no_others_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    fs::write(&path, "0123456789").unwrap();
    let mut shared = regular(libc::O_RDWR | libc::O_APPEND, &path);
    shared.offset = 4;
    // Numbers in the way of those that things are made at, in descending order.
    let image = image(vec![
        (shared, vec![30, 3, 7]),
        (regular(libc::O_RDONLY, &path), vec![4]),
        (described(libc::O_RDWR, DescriptionKind::Event { count: 3, semaphore: true }), vec![6, 5]),
    ]);
    in_child(&image, |_| {
        let numbers = open_numbers();
        expect("numbers", numbers.into_iter().filter(|&fd| fd < 500).collect(), vec![3, 4, 5, 6, 7, 30])?;
        expect("offset", fdinfo(30, "pos:"), "4".into())?;
        expect("flags", fdinfo(3, "flags:"), "0102002".into())?;
        // SAFETY: no memory is touched.
        unsafe { libc::lseek(7, 9, libc::SEEK_SET) };
        expect("shared offset", fdinfo(3, "pos:"), "9".into())?;
        expect("own offset", fdinfo(4, "pos:"), "0".into())?;
        expect("count", fdinfo(5, "eventfd-count:"), "3".into())?;
        expect("semaphore", fdinfo(6, "eventfd-semaphore:"), "1".into())
    });
}

#[test]
fn a_written_file_is_cut_back_and_a_read_one_must_be_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("output");
    fs::write(&path, "before").unwrap();
    let writing = image(vec![(regular(libc::O_WRONLY, &path), vec![1])]);
    let reading = image(vec![(regular(libc::O_RDONLY, &path), vec![0])]);
    assert_eq!(checked(&reading, &POLICY), []);
    File::options().append(true).open(&path).unwrap().write_all(b" and after").unwrap();
    assert_eq!(checked(&writing, &POLICY), []);
    let refusals = checked(&reading, &POLICY);
    assert!(refusals[0].what.contains(path.to_str().unwrap()), "{refusals:?}");
    assert_eq!(checked(&reading, &Policy { changed: ChangedFile::Accept, ..POLICY }), []);
    in_child(&writing, |_| Ok(()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
    fs::write(&path, "bef").unwrap();
    assert_eq!(checked(&writing, &POLICY).len(), 1, "a shorter file");
    fs::remove_file(&path).unwrap();
    assert_eq!(checked(&writing, &POLICY).len(), 1, "a missing file");
    assert_eq!(checked(&writing, &Policy { missing: MissingFile::Null, ..POLICY }), []);
    fs::create_dir(&path).unwrap();
    assert_eq!(checked(&writing, &Policy { changed: ChangedFile::Accept, ..POLICY }).len(), 1, "a directory");
}

#[test]
fn a_successor_of_a_written_file_is_not_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, "old").unwrap();
    let writing = image(vec![(regular(libc::O_WRONLY, &path), vec![1])]);
    fs::rename(&path, directory.path().join("log.1")).unwrap();
    fs::write(&path, "a new one, and longer").unwrap();
    assert_eq!(checked(&writing, &POLICY).len(), 1);
}

fn pipe(flags: i32, write: bool, content: &[u8], packets: &[u32]) -> Description {
    let kind = DescriptionKind::Pipe {
        pipe: 9,
        write,
        other_closed: true,
        unopened: false,
        capacity: 1 << 17,
        content: content.into(),
        packets: packets.into(),
        fifo: None,
    };
    described(flags, kind)
}

#[test]
fn a_pipe_has_its_bytes_and_ends_when_its_writer_is_gone() {
    let content = vec![7u8; 100_000];
    let one_end = image(vec![(pipe(libc::O_RDONLY, false, &content, &[]), vec![11])]);
    in_child(&one_end, |_| {
        expect("content", read_some(11) == vec![7u8; 100_000], true)?;
        expect("end", read_some(11), vec![])?;
        expect("flags", fdinfo(11, "flags:"), "00".into())
    });
}

#[test]
fn packets_keep_their_borders() {
    let flags = libc::O_NONBLOCK;
    let image = image(vec![
        (pipe(libc::O_WRONLY | libc::O_DIRECT, true, &[], &[]), vec![20]),
        (pipe(flags, false, b"onetwothree", &[3, 3, 5]), vec![10, 21]),
    ]);
    in_child(&image, |_| {
        for packet in [&b"one"[..], b"two", b"three", b""] {
            expect("packet", read_some(10), packet.into())?;
        }
        expect("flags", fdinfo(20, "flags:"), "040001".into())
    });
}

#[test]
fn a_socket_pair_has_what_was_not_read() {
    let end = |received: &[&[u8]], shutdown_write, shutdown_read| DescriptionKind::SocketPair {
        pair: 3,
        other_closed: false,
        reset: false,
        domain: libc::AF_UNIX,
        local: vec![],
        peer: vec![],
        socket_type: libc::SOCK_SEQPACKET,
        received: received.iter().map(|message| message.to_vec()).collect(),
        senders: vec![],
        rights: vec![],
        charged: 0,
        shutdown_read,
        shutdown_write,
        peer_is: None,
        file: None,
        options: vec![],
    };
    let image = image(vec![
        (described(libc::O_RDWR, end(&[b"first", b"second"], true, false)), vec![8]),
        (described(libc::O_RDWR | libc::O_NONBLOCK, end(&[], false, true)), vec![9]),
    ]);
    in_child(&image, |_| {
        expect("first", read_some(8), b"first".to_vec())?;
        expect("second", read_some(8), b"second".to_vec())?;
        // SAFETY: reads one byte.
        expect("shut", unsafe { libc::send(8, c"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }, -1)?;
        // SAFETY: reads one byte.
        expect("open", unsafe { libc::send(9, c"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }, 1)
    });
}

#[test]
fn a_socket_gets_its_file_with_its_mode_where_that_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut local = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    local.extend(path.to_str().unwrap().bytes().chain([0]));
    let rights = FileRights { mode: 0o624, uid: 0, gid: 0 };
    let listening = DescriptionKind::Socket {
        domain: libc::AF_UNIX,
        socket_type: libc::SOCK_STREAM,
        protocol: 0,
        local,
        peer: vec![],
        backlog: Some(4),
        waiting: vec![],
        received: vec![],
        refused: None,
        listener_is: None,
        file: Some(SocketFile { path: path.to_str().unwrap().into(), rights: Some(rights) }),
        options: vec![],
    };
    let image = image(vec![(described(libc::O_RDWR, listening), vec![5])]);
    in_child(&image, |_| {
        let mode = fs::metadata(&path).map_err(|error| error.to_string())?.mode();
        expect("mode", mode & 0o7777, 0o624)
    });
}

#[test]
fn an_interest_list_has_its_data_and_a_spent_one_shot_stays_spent() {
    let target = |fd, description, events: i32, data| EpollTarget {
        fd,
        description: Some(description),
        events: events as u32,
        data,
    };
    let targets = vec![
        target(14, 1, libc::EPOLLIN, 0xfeed),
        target(15, 2, libc::EPOLLONESHOT, 2),
        target(16, 3, libc::EPOLLIN | libc::EPOLLET, 3),
    ];
    let event = |count| described(libc::O_RDWR, DescriptionKind::Event { count, semaphore: false });
    let image = image(vec![
        (described(libc::O_RDWR, DescriptionKind::Epoll { targets }), vec![12]),
        (event(1), vec![14]),
        (event(1), vec![15]),
        (event(0), vec![16]),
    ]);
    in_child(&image, |_| {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; 8];
        // SAFETY: writes at most 8 events.
        expect("events", unsafe { libc::epoll_wait(12, events.as_mut_ptr(), 8, 0) }, 1)?;
        expect("data", events[0].u64, 0xfeed)?;
        let info = fs::read_to_string("/proc/self/fdinfo/12").unwrap_or_default();
        let spent = info.lines().find(|line| line.contains("tfd:       15")).unwrap_or_default();
        expect("spent", spent.contains("events: 40000000"), true)
    });
}

#[test]
fn an_interest_list_knows_its_targets_by_numbers_that_were_closed_or_stand_for_something_else() {
    let target = |fd, data| EpollTarget { fd, description: Some(1), events: libc::EPOLLIN as u32, data };
    let targets = vec![target(13, 1), target(14, 2), target(40, 3)];
    let event = |count| described(libc::O_RDWR, DescriptionKind::Event { count, semaphore: false });
    let image = image(vec![
        (described(libc::O_RDWR, DescriptionKind::Epoll { targets }), vec![12]),
        (event(1), vec![13, 15]),
        (event(0), vec![14]),
    ]);
    in_child(&image, |_| {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; 8];
        // SAFETY: writes at most 8 events.
        expect("events", unsafe { libc::epoll_wait(12, events.as_mut_ptr(), 8, 0) }, 3)?;
        let data: u64 = events.iter().map(|event| event.u64).sum();
        expect("data", data, 6)?;
        expect("40 is closed", fs::read_link("/proc/self/fd/40").is_err(), true)?;
        expect("14 is empty", fdinfo(14, "eventfd-count:").trim().into(), "0".to_owned())
    });
}

#[test]
fn a_memfd_has_its_name_size_and_seals() {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    let kind = DescriptionKind::Object { object: 1, memfd: true, locks: vec![(libc::F_WRLCK, 10, 5)] };
    let mut open = described(libc::O_RDWR, kind);
    open.offset = 77;
    let mut image = image(vec![(open, vec![3])]);
    let kind = ObjectKind::Memfd { name: "of the test".into(), seals: seals as u32, hugetlb: false };
    image.objects.push(Object { id: 1, kind, size: 10_000, mode: 0o600, key: 5 });
    in_child(&image, |_| {
        let link = fs::read_link("/proc/self/fd/3").unwrap_or_default();
        expect("name", link.to_str(), Some("/memfd:of the test (deleted)"))?;
        expect("size", fs::metadata("/proc/self/fd/3").map_or(0, |found| found.size()), 10_000)?;
        expect("offset", fdinfo(3, "pos:"), "77".into())?;
        expect("lock", fdinfo(3, "lock:").contains("POSIX  ADVISORY  WRITE"), true)?;
        // SAFETY: fcntl(2) with numbers.
        expect("seals", unsafe { libc::fcntl(3, libc::F_GET_SEALS) }, seals)
    });
}

#[test]
fn a_lock_that_somebody_else_holds_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("locked");
    let holder = File::create(&path).unwrap();
    // SAFETY: no memory is touched.
    done(unsafe { libc::flock(holder.as_raw_fd(), libc::LOCK_EX) }).unwrap();
    let mut open = regular(libc::O_RDWR, &path);
    open.flock = Some(libc::LOCK_SH);
    let image = image(vec![(open, vec![3])]);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| in_child(&image, |_| Ok(()))));
    let message = *refused.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains(path.to_str().unwrap()) && message.contains("somebody else"), "{message}");
}

#[test]
fn what_needs_the_final_process_is_left_to_late_calls() {
    let mut timer = described(
        libc::O_RDWR,
        DescriptionKind::Timer {
            clock: libc::CLOCK_MONOTONIC,
            settime_flags: 0,
            value_ns: 2_500_000_000,
            deadline_ns: 0,
            interval_ns: 0,
            ticks: 4,
        },
    );
    timer.owner = Some((1, 4242));
    let mut image = image(vec![(timer, vec![3])]);
    image.descriptors[0].close_on_exec = true;
    in_child(&image, |installed| {
        let calls: Vec<i64> = installed.late.iter().map(|call| call.nr as i64).collect();
        let wanted = vec![libc::SYS_fcntl, libc::SYS_timerfd_settime, libc::SYS_ioctl, libc::SYS_fcntl];
        expect("calls", calls, wanted)?;
        for call in &installed.late {
            let mut args = call.args;
            for position in (0..6).filter(|position| call.relocate & 1 << position != 0) {
                args[position] += installed.data.as_ptr() as u64;
            }
            // SAFETY: the calls are made as the restorer makes them.
            let result = unsafe {
                libc::syscall(call.nr as i64, args[0], args[1], args[2], args[3], args[4], args[5])
            };
            if call.may_fail == 0 {
                expect("call", result >= 0, true)?;
            }
        }
        expect("ticks", fdinfo(3, "ticks:"), "4".into())?;
        expect("time left", fdinfo(3, "it_value:").starts_with("(2, "), true)?;
        expect("flags", fdinfo(3, "flags:"), "02000002".into())
    });
}

#[test]
fn an_image_that_contradicts_itself_is_refused() {
    let mut image =
        image(vec![(described(0, DescriptionKind::Event { count: 0, semaphore: false }), vec![3, 3])]);
    assert_eq!(checked(&image, &POLICY).len(), 1);
    image.descriptors[1] = Descriptor { fd: -1, description: 7, close_on_exec: false };
    assert_eq!(checked(&image, &POLICY).len(), 1);
}

fn shared(all: &[(u32, RawFd)]) -> Vec<SharedDescriptor> {
    all.iter().map(|&(pid, fd)| SharedDescriptor { pid, fd }).collect()
}

fn with_pid(pid: i32, mut image: ProcessImage) -> ProcessImage {
    image.ids.pid = pid;
    image
}

/// Has each process look at itself, after what they have together was made.
fn in_children(
    images: &[ProcessImage],
    shared: &[Vec<SharedDescriptor>],
    look: impl Fn(usize) -> Result<(), String>,
) {
    let passed = Passed::look(false);
    let images: Vec<&ProcessImage> = images.iter().collect();
    let objects = Objects::create(&images).unwrap();
    let mut common = Common::new(images, shared, objects, &passed, &POLICY);
    common.make().unwrap();
    for process in 0..common.images.len() {
        in_child_of(&common, process, |_| look(process));
    }
}

fn open_pipe(write: bool, content: &[u8]) -> Description {
    let mut description = pipe(if write { libc::O_WRONLY } else { libc::O_RDONLY }, write, content, &[]);
    if let DescriptionKind::Pipe { other_closed, .. } = &mut description.kind {
        *other_closed = false;
    }
    description
}

#[test]
fn a_pipe_between_processes_is_one_and_has_its_bytes_once() {
    let images = [
        with_pid(1, image(vec![(open_pipe(true, b""), vec![1, 9])])),
        with_pid(2, image(vec![(open_pipe(false, b"old"), vec![0])])),
        with_pid(3, image(vec![(open_pipe(false, b"old"), vec![7])])),
    ];
    in_children(&images, &[shared(&[(2, 0), (3, 7)])], |process| match process {
        // SAFETY: reads three bytes.
        0 => expect("written", unsafe { libc::write(1, c"new".as_ptr().cast(), 3) }, 3),
        1 => expect("content", read_some(0), b"oldnew".to_vec()),
        _ => expect("blocks no more than before", fdinfo(7, "flags:"), "00".into()),
    });
}

#[test]
fn the_ends_of_a_pair_meet_from_different_processes() {
    let end = |received: &[&[u8]]| {
        described(
            libc::O_RDWR | libc::O_NONBLOCK,
            DescriptionKind::SocketPair {
                pair: 77,
                other_closed: false,
                reset: false,
                domain: libc::AF_UNIX,
                peer: vec![],
                local: vec![],
                socket_type: libc::SOCK_STREAM,
                received: received.iter().map(|message| message.to_vec()).collect(),
                senders: vec![],
                rights: vec![],
                charged: 0,
                shutdown_read: false,
                shutdown_write: false,
                peer_is: None,
                file: None,
                options: vec![],
            },
        )
    };
    // The second has both: one with the first, the other with the third.
    let images = [
        with_pid(1, image(vec![(end(&[b"to one"]), vec![5])])),
        with_pid(2, image(vec![(end(&[b"to one"]), vec![5]), (end(&[b"to three"]), vec![6])])),
        with_pid(3, image(vec![(end(&[b"to three"]), vec![8])])),
    ];
    in_children(&images, &[shared(&[(1, 5), (2, 5)]), shared(&[(3, 8), (2, 6)])], |process| match process {
        0 => {
            expect("content", read_some(5), b"to one".to_vec())?;
            // SAFETY: reads one byte.
            expect("sent", unsafe { libc::write(5, c"!".as_ptr().cast(), 1) }, 1)
        }
        1 => expect("read by its sharer", read_some(5), vec![]),
        _ => expect("content", read_some(8), b"to three!".to_vec()),
    });
}

#[test]
fn a_shared_offset_is_shared_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    fs::write(&path, "0123456789").unwrap();
    let open = || {
        let mut open = regular(libc::O_RDONLY, &path);
        open.offset = 3;
        open.flock = Some(libc::LOCK_EX);
        open
    };
    let images = [with_pid(1, image(vec![(open(), vec![4])])), with_pid(2, image(vec![(open(), vec![6])]))];
    in_children(&images, &[shared(&[(1, 4), (2, 6)])], |process| match process {
        0 => {
            // SAFETY: no memory is touched.
            expect("offset", unsafe { libc::lseek(4, 2, libc::SEEK_CUR) }, 5)?;
            expect("lock", fdinfo(4, "lock:").contains("FLOCK"), true)
        }
        _ => expect("offset", fdinfo(6, "pos:"), "5".into()),
    });
}

#[test]
fn memory_of_several_processes_is_one() {
    let kind = || DescriptionKind::Object { object: 1, memfd: true, locks: vec![] };
    let images = [6000, 9000].map(|size| {
        let mut image = with_pid(size, image(vec![(described(libc::O_RDWR, kind()), vec![3])]));
        let kind = ObjectKind::Memfd { name: "both".into(), seals: 0, hugetlb: false };
        image.objects.push(Object { id: 1, kind, size: size as u64, mode: 0o600, key: 42 });
        image
    });
    in_children(&images, &[], |process| match process {
        // SAFETY: reads four bytes.
        0 => expect("written", unsafe { libc::pwrite(3, c"seen".as_ptr().cast(), 4, 0) }, 4),
        _ => {
            expect("content", read_some(3).starts_with(b"seen"), true)?;
            expect("size", fs::metadata("/proc/self/fd/3").map_or(0, |found| found.size()), 9000)
        }
    });
}

#[test]
fn what_leads_outside_is_the_restarts_own() {
    let (read, write) = std::io::pipe().unwrap();
    let number = read.as_raw_fd();
    let images = [with_pid(1, image(vec![(open_pipe(false, b"gone"), vec![number])]))];
    (&write).write_all(b"outside").unwrap();
    in_children(&images, &[], |_| expect("content", read_some(number), b"outside".to_vec()));
}
