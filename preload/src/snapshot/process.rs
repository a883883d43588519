//! The record's part that concerns the process as a whole.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Credentials, FileIdentity, Ids, Layout, Limit, Machine, Settings, Zombie, checksum},
};
use stasis_sys::{file, process};

use super::{descriptors, kernel_state, mappings::Found, subject};
use crate::{confined, processor, procfs, threads, vdso};

pub struct Process {
    pub machine: Machine,
    pub ids: Ids,
    pub argv: Vec<String>,
    pub exe: FileIdentity,
    pub cwd: String,
    pub umask: u32,
    pub layout: Layout,
    pub credentials: Credentials,
    pub limits: Vec<Limit>,
    pub settings: Settings,
}

/// Looks for what cannot be checkpointed about the process as a whole.
pub fn check(refusals: &mut Vec<Refusal>) {
    let pid = process::getpid();
    if pid == 1 {
        refusals.push(Refusal {
            what: format!("pid {pid}"),
            reason: "it is the first process of its pid namespace (a container), and could not be restarted: in another one \
                     that is the process that adopts orphans"
                .into(),
            remedy: "have the container start with an init (docker run --init) that starts `stasis launch`".into(),
        });
    }
    // By the subject: the checkpoint thread's own directories are its own (clone without CLONE_FS).
    let tid = subject();
    let cwd = procfs::link(path!("/proc/self/task/{tid}/cwd").as_c_str());
    let unknown = match &cwd {
        Ok(cwd) if core::str::from_utf8(cwd).is_err() => Some("its path is not UTF-8".into()),
        Ok(_) => None,
        // The thread has ended, the leader before others: it is seen when all stand still.
        Err(error) if error.0 == libc::ENOENT => None,
        // ENAMETOOLONG: longer than PATH_MAX.
        Err(error) => Some(format!("its path cannot be read: {error}")),
    };
    let cwd = cwd.unwrap_or_default();
    if let Some(reason) = unknown {
        refusals.push(Refusal {
            what: format!("pid {pid}, its working directory {}", String::from_utf8_lossy(&cwd)),
            reason,
            remedy: "let the program change to another one".into(),
        });
    }
    if cwd.ends_with(b" (deleted)") {
        refusals.push(Refusal {
            what: format!("pid {pid}, its working directory {}", String::from_utf8_lossy(&cwd)),
            reason: "it has been deleted, and could not be entered again".into(),
            remedy: "let the program change to one that exists".into(),
        });
    }
    if procfs::link(c"/proc/self/root").is_ok_and(|root| root != b"/") {
        refusals.push(Refusal {
            what: format!("pid {pid}"),
            reason: "it runs in a root directory of its own (chroot)".into(),
            remedy: "launch it without chroot".into(),
        });
    }
    if has_descriptor_table() {
        refusals.push(Refusal {
            what: format!("pid {pid}"),
            reason: "it has a local descriptor table (modify_ldt(2)), which is not saved".into(),
            remedy: "let the program do without segments of its own".into(),
        });
    }
    confined::check(refusals);
    let (mut threads, mut first) = (0, None);
    let _ = procfs::numbered_entries(c"/proc/self/task", |thread| {
        if thread != process::gettid() {
            threads += 1;
            check_thread(&mut first, thread, refusals);
        }
    });
    if threads > 1 && kernel_state::has_timer_of_unknown_thread() {
        refusals.push(Refusal {
            what: format!("pid {pid}"),
            reason: "it has a timer of a thread's processor time (timer_create(2)) that was not made by libc: the kernel \
                     does not tell whose"
                .into(),
            remedy: "let the program make it by timer_create(3)".into(),
        });
    }
}

/// Whether the process has segments of its own.
fn has_descriptor_table() -> bool {
    const READ: usize = 0;
    let mut first = [0u8; 8];
    let arguments = [READ, first.as_mut_ptr() as usize, first.len(), 0, 0];
    process::numbers(libc::SYS_modify_ldt, arguments).is_ok_and(|len| len != 0)
}

/// Looks for what cannot be checkpointed about one thread. `first`: the first that was looked at and lives, which the others
/// are to have their descriptors with; a leader that has ended (pthread_exit(3)) has none.
fn check_thread(first: &mut Option<i32>, tid: i32, refusals: &mut Vec<Refusal>) {
    let status = procfs::thread_status(tid);
    if ends(&status) {
        return;
    }
    let compared = *first.get_or_insert(tid);
    let mut refuse = |reason: &str, remedy: &str| {
        let name = String::from_utf8_lossy(procfs::field(&status, "Name:").unwrap_or(b"?")).into_owned();
        refusals.push(Refusal {
            what: format!("pid {}, thread {tid} ({name})", process::getpid()),
            reason: reason.into(),
            remedy: remedy.into(),
        });
    };
    if filters(&status) > started_with_filters() {
        refuse(
            "a seccomp filter allows it some system calls only (seccomp(2)): it could not be stopped, or would be without \
             the filter when it is restarted",
            "let the program do without its sandbox",
        );
    }
    if process::shares(compared, tid, process::Shared::Files) == Some(false)
        && !ends(&procfs::thread_status(tid))
    {
        if ends(&procfs::thread_status(compared)) {
            // It had been compared with those before, which are therefore like it.
            *first = Some(tid);
        } else {
            refuse(
                "it has descriptors of its own (unshare(2), CLONE_FILES), which are not looked at",
                "let its threads share their descriptors",
            );
        }
    }
    if process::shares(compared, tid, process::Shared::Directory) == Some(false)
        && procfs::link(path!("/proc/self/task/{tid}/root").as_c_str()).is_ok_and(|root| root != b"/")
    {
        refuse("it has a root directory of its own (chroot)", "launch the program without chroot");
    }
}

/// Whether a thread has ended, or is about to: one that exits gives up its descriptors long before it stops being listed as
/// running (do_exit, kernel/exit.c), and then has room for none.
fn ends(status: &[u8]) -> bool {
    let state = procfs::field(status, "State:");
    state.is_none_or(|state| state.starts_with(b"Z") || state.starts_with(b"X"))
        || procfs::field(status, "FDSize:") == Some(b"0")
}

/// How many seccomp filters a thread has; the strict mode counts as one.
fn filters(status: &[u8]) -> u64 {
    let number = |key| procfs::field(status, key).and_then(procfs::decimal);
    // Filters are counted since Linux 5.9.
    match number("Seccomp:") {
        None | Some(0) => 0,
        Some(_) => number("Seccomp_filters:").unwrap_or(1).max(1),
    }
}

static STARTED_WITH_FILTERS: AtomicU64 = AtomicU64::new(0);

/// How many there were when the program began: those of a container, which whoever restarts in it has, too.
fn started_with_filters() -> u64 {
    if confined::has(confined::FILTERS) { 0 } else { STARTED_WITH_FILTERS.load(Relaxed) }
}

/// To be called by the constructor, before there are other threads.
pub fn note_filters() {
    // Without a filter, which is nearly always, one quick call.
    if process::prctl(libc::PR_GET_SECCOMP, [0; 4]).unwrap_or(0) != 0 {
        let status = procfs::read(c"/proc/self/status").unwrap_or_default();
        STARTED_WITH_FILTERS.store(filters(&status), Relaxed);
    }
}

/// Children of this process.
#[derive(Default)]
pub struct Children {
    /// Those that have not ended.
    pub alive: Vec<u32>,
    /// Those that have, and were not waited for.
    pub zombies: Vec<Zombie>,
}

/// The children that there are now.
pub fn children() -> Children {
    let mut children = Children::default();
    if !process::has_children() {
        return children;
    }
    // One file per thread (proc(5)); a child may have been made by any.
    let _ = procfs::numbered_entries(c"/proc/self/task", |tid| {
        let listed = procfs::read(path!("/proc/self/task/{tid}/children").as_c_str()).unwrap_or_default();
        for child in procfs::words(&listed).filter_map(procfs::decimal) {
            match zombie(child as i32) {
                Some(zombie) => children.zombies.push(zombie),
                // A program that asks for a checkpoint of itself finds that it was taken, when it is restarted.
                None if is_command(child) => children.zombies.push(as_ended(child as i32)),
                None => children.alive.push(child as u32),
            }
        }
    });
    children
}

/// Whether a process is a `stasis` command, which is no part of a computation.
pub fn is_command(pid: u64) -> bool {
    // Also asked by the constructor, which may not allocate yet.
    let mut exe = [0; 512];
    let len = file::readlink(path!("/proc/{pid}/exe").as_c_str(), &mut exe);
    len.is_ok_and(|len| exe[..len].ends_with(b"/stasis"))
}

/// A child as it will be when it has ended well.
fn as_ended(pid: i32) -> Zombie {
    let stat = procfs::read(path!("/proc/{pid}/stat").as_c_str()).unwrap_or_default();
    let fields = stat_fields(&stat);
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0) as i32;
    Zombie { pid, pgid: field(5), sid: field(6), status: 0 }
}

/// What is left of a child that has ended; `None` where it has not, or somebody has waited for it.
fn zombie(pid: i32) -> Option<Zombie> {
    let status = process::ended_child(pid).ok().flatten()?;
    Some(Zombie { status, ..as_ended(pid) })
}

/// The fields of a stat file from the state on, as numbers (proc_pid_stat(5), where the state is field 3).
fn stat_fields(stat: &[u8]) -> Vec<u64> {
    // The name in parentheses may hold anything: fields are counted from the last `)`.
    let after = stat.iter().rposition(|&byte| byte == b')').map_or(0, |at| at + 1);
    procfs::words(stat[after..].trim_ascii())
        .map(|word| {
            procfs::signed(word).map_or(0, |value| value as u64).max(procfs::decimal(word).unwrap_or(0))
        })
        .collect()
}

/// What only execve(2) changes, and prctl(PR_SET_MM): it is asked before the program stands still.
pub struct Program {
    pub machine: Machine,
    pub argv: Vec<String>,
    pub exe: FileIdentity,
    auxv: Vec<u64>,
}

impl Program {
    pub fn look(mappings: &[Found]) -> Self {
        let exe =
            String::from_utf8_lossy(&procfs::link(c"/proc/thread-self/exe").unwrap_or_default()).into_owned();
        let exe = match file::stat(c"/proc/thread-self/exe") {
            Ok(stat) => descriptors::identity(exe, &stat),
            Err(_) => FileIdentity { path: exe, device: 0, inode: 0, size: 0, mtime_ns: 0, mode: 0 },
        };
        let cmdline = procfs::read(c"/proc/thread-self/cmdline").unwrap_or_default();
        let mut argv: Vec<String> = cmdline
            .split(|&byte| byte == 0)
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect();
        argv.pop();
        let auxv = procfs::read(c"/proc/thread-self/auxv").unwrap_or_default();
        let auxv = auxv.as_chunks::<8>().0.iter().map(|&word| u64::from_ne_bytes(word)).collect();
        Self { machine: machine(mappings), argv, exe, auxv }
    }
}

/// `status` is what /proc/PID/status says of the subject.
pub fn capture(stopped: bool, program: Program, status: &[u8]) -> Process {
    let tid = subject();
    let stat = procfs::read(c"/proc/thread-self/stat").unwrap_or_default();
    let fields = stat_fields(&stat);
    // Numbered as in proc_pid_stat(5), where the state is field 3.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let cwd = procfs::link(path!("/proc/self/task/{tid}/cwd").as_c_str()).unwrap_or_default();
    Process {
        machine: program.machine,
        ids: Ids {
            pid: process::getpid(),
            ppid: field(4) as i32,
            pgid: field(5) as i32,
            sid: field(6) as i32,
            last: last_id(),
        },
        argv: program.argv,
        exe: program.exe,
        cwd: String::from_utf8_lossy(&cwd).into_owned(),
        umask: procfs::field(status, "Umask:").and_then(procfs::octal).unwrap_or(0o22) as u32,
        layout: Layout {
            start_code: field(26),
            end_code: field(27),
            start_data: field(45),
            end_data: field(46),
            start_brk: field(47),
            brk: process::numbers(libc::SYS_brk, [0; 5]).unwrap_or(0) as u64,
            start_stack: field(28),
            arg_start: field(48),
            arg_end: field(49),
            env_start: field(50),
            env_end: field(51),
            auxv: program.auxv,
        },
        credentials: credentials(status, threads::claim(tid).map_or(0, |slot| slot.securebits.load(Relaxed))),
        limits: limits(),
        settings: settings([field(5), field(6), field(7), field(8)], stopped),
    }
}

/// 0 where the kernel does not tell (CONFIG_CHECKPOINT_RESTORE).
fn last_id() -> i32 {
    let text = procfs::read(c"/proc/sys/kernel/ns_last_pid").unwrap_or_default();
    procfs::decimal(text.trim_ascii()).unwrap_or(0) as i32
}

/// What counts the ids that the program sees.
fn counts_ids() -> u64 {
    let mut bytes = procfs::read(c"/proc/sys/kernel/random/boot_id").unwrap_or_default();
    bytes.extend(procfs::link(c"/proc/thread-self/ns/pid").unwrap_or_default());
    checksum(&bytes)
}

fn machine(mappings: &[Found]) -> Machine {
    // SAFETY: utsname is plain data, filled in by uname(2).
    let mut name: libc::utsname = unsafe { core::mem::zeroed() };
    // SAFETY: as above.
    let _ = unsafe { process::with(libc::SYS_uname, [0; 6], 0, &mut name) };
    let release: Vec<u8> =
        name.release.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    let (mut vdso_len, mut vdso_sum) = (0, 0);
    if let Some(Found { mapping, .. }) = vdso::find(mappings) {
        vdso_len = mapping.end - mapping.start;
        // SAFETY: the vDSO is readable and stays mapped while all threads are stopped.
        vdso_sum =
            checksum(unsafe { core::slice::from_raw_parts(mapping.start as *const u8, vdso_len as usize) });
    }
    let processor = processor::get();
    Machine {
        kernel: String::from_utf8_lossy(&release).into_owned(),
        xcr0: processor.xcr0,
        xsave_size: processor.xsave_size,
        xsave_offsets: processor.xsave_offsets().to_vec(),
        cpuid: processor.cpuid,
        vdso_len,
        vdso_sum,
        counts_ids: counts_ids(),
    }
}

/// What a thread's /proc/PID/status says of it, and what only the thread itself can ask.
pub fn credentials(status: &[u8], securebits: u32) -> Credentials {
    let ids = |key| {
        let mut ids = [0u32; 4];
        let words = procfs::field(status, key).unwrap_or_default();
        for (id, word) in ids.iter_mut().zip(procfs::words(words)) {
            *id = procfs::decimal(word).unwrap_or(u64::from(u32::MAX)) as u32;
        }
        ids
    };
    let caps = |key| procfs::field(status, key).and_then(procfs::hex).unwrap_or(0);
    Credentials {
        uid: ids("Uid:"),
        gid: ids("Gid:"),
        groups: procfs::words(procfs::field(status, "Groups:").unwrap_or_default())
            .filter_map(procfs::decimal)
            .map(|group| group as u32)
            .collect(),
        inheritable: caps("CapInh:"),
        permitted: caps("CapPrm:"),
        effective: caps("CapEff:"),
        bounding: caps("CapBnd:"),
        ambient: caps("CapAmb:"),
        securebits,
        no_new_privs: procfs::field(status, "NoNewPrivs:") == Some(b"1"),
    }
}

fn limits() -> Vec<Limit> {
    const RLIM_NLIMITS: u32 = 16;
    (0..RLIM_NLIMITS)
        .filter_map(|resource| {
            let [soft, hard] = process::limit(resource).ok()?;
            Some(Limit { resource, soft, hard })
        })
        .collect()
}

/// Whether a process, whose id is in use, has ended; it may wait to be waited for.
fn has_ended(pid: u64) -> bool {
    if pid == process::getpid() as u64 {
        return false;
    }
    let stat = procfs::read(path!("/proc/{pid}/stat").as_c_str()).unwrap_or_default();
    // The state follows the name in parentheses, which may hold anything.
    let after = stat.iter().rposition(|&byte| byte == b')').map_or(0, |at| at + 2);
    matches!(stat.get(after), None | Some(b'Z' | b'X'))
}

/// The protection keys that the program has: those that cannot be had.
fn protection_keys() -> u32 {
    if !processor::get().has_protection_keys {
        return 0;
    }
    let free = core::iter::from_fn(|| process::numbers(libc::SYS_pkey_alloc, [0; 5]).ok());
    let free = free.fold(0u32, |free, key| free | 1 << (key & 31));
    for key in (0..32).filter(|key| free & 1 << key != 0) {
        let _ = process::numbers(libc::SYS_pkey_free, [key, 0, 0, 0, 0]);
    }
    stasis_sys::PROTECTION_KEYS & !free
}

/// Of the process' group, session, terminal and its foreground group, as proc_pid_stat(5) tells them: signed ints.
fn settings([pgid, session, terminal, foreground]: [u64; 4], stopped: bool) -> Settings {
    let number = |path| procfs::read(path).ok();
    let mut subreaper = 0i32;
    let _ = process::prctl(libc::PR_GET_CHILD_SUBREAPER, [&raw mut subreaper as usize, 0, 0, 0]);
    Settings {
        dumpable: process::prctl(libc::PR_GET_DUMPABLE, [0; 4]).unwrap_or(1) as u32,
        subreaper: subreaper != 0,
        thp_disable: process::prctl(libc::PR_GET_THP_DISABLE, [0; 4]).unwrap_or(0) as u32,
        personality: number(path!("/proc/self/task/{}/personality", subject()).as_c_str())
            .and_then(|text| procfs::hex(text.trim_ascii()))
            .unwrap_or(0) as u32,
        oom_score_adj: number(c"/proc/thread-self/oom_score_adj")
            .and_then(|text| procfs::signed(text.trim_ascii()))
            .unwrap_or(0) as i32,
        // Empty for a process whose leader has ended.
        coredump_filter: number(path!("/proc/self/task/{}/../../coredump_filter", subject()).as_c_str())
            .and_then(|text| procfs::hex(text.trim_ascii()))
            .unwrap_or(0) as u32,
        protection_keys: protection_keys(),
        stopped,
        foreground: terminal != 0 && pgid == foreground,
        terminal: u64::from(terminal as u32),
        foreground_group: foreground as i32,
        session_ended: session != 0 && has_ended(session),
    }
}
