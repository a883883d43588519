//! A pid namespace of the program's own: there its ids are free, and may be asked for.
//!
//! `stasis restart` makes the namespace's first process, here called init; it gives the namespace a /proc of its
//! own and makes the processes that have their parents outside. From then on init only collects what ends, and tells
//! `stasis restart` of each change of the one that it stands in for, which is not its child. Init has no part in signals: they are
//! sent to the program directly, by its pid as it is outside.
//!
//! Alike with and without a namespace: when `stasis restart` is killed the program lives on (init does not care
//! whether it is heard), and what the program leaves behind when it ends lives on too (init ends when it has no child
//! any more; the kernel would end all others with it, pid_namespaces(7)).

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    ptr,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction, sigprocmask},
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, setsockopt,
            socketpair, sockopt::PassCred,
        },
        wait::waitpid,
    },
    unistd::Pid,
};

use super::{session::Session, staging};

/// What is asked of a namespace.
pub struct Request {
    /// The pid inside of the process whose changes are told.
    pub pid: i32,
    /// After which the kernel goes on choosing ids.
    pub after: After,
    /// With a user namespace, in which an unprivileged user may choose ids: the caller's user and group, the only
    /// ones there.
    pub user: Option<(u32, u32)>,
    /// With an IPC namespace.
    pub ipc: bool,
    /// Where init belongs: with the program, so that who signals a group or session meets both or none.
    pub session: Session,
}

/// After which ids those come that the kernel chooses, so that none is one that the program remembers.
#[derive(Clone, Copy, Debug)]
pub struct After {
    pub id: i32,
    /// Where ids had begun anew meanwhile: from here on they are remembered, too.
    pub remembered_from: Option<i32>,
    /// The limit of ids where the namespace is made.
    pub limit: Option<i32>,
}

impl After {
    /// Where ids had begun anew, those above the limit that they had are new, if there are such here (Linux 6.14).
    fn within(self, limit: Option<i32>) -> Self {
        match (self.remembered_from, self.limit, limit) {
            (Some(from), Some(outer), Some(own)) if from < outer && outer < own => {
                Self { id: outer, remembered_from: None, ..self }
            }
            _ => self,
        }
    }
}

/// The first process of the namespace.
#[derive(Debug)]
pub struct Init {
    pid: Pid,
    channel: OwnedFd,
    /// What was heard before anybody asked for changes.
    early: RefCell<VecDeque<(i32, bool)>>,
}

/// A change of the program, as init tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// waitpid(2)'s status word.
    Status(i32),
    /// Nothing new.
    None,
}

/// A message on the channel: three words.
#[derive(Clone, Copy)]
enum Message {
    /// From a process itself, so that the kernel says who that is outside (unix(7), SCM_CREDENTIALS).
    Made { pid: i32 },
    /// waitpid(2)'s status word, and whether init ends now.
    Status { status: i32, ends: bool },
    /// What was tried, and its errno.
    Failed { step: Step, errno: i32 },
}

/// What init does before the program is there.
#[derive(Clone, Copy)]
enum Step {
    Map = 0,
    Mount = 1,
    Clone = 2,
}

impl Message {
    fn to_words(self) -> [i32; 3] {
        match self {
            Self::Made { pid } => [0, pid, 0],
            Self::Status { status, ends } => [1, status, ends.into()],
            Self::Failed { step, errno } => [2, step as i32, errno],
        }
    }

    fn from_words([kind, first, second]: [i32; 3]) -> Self {
        match kind {
            0 => Self::Made { pid: first },
            1 => Self::Status { status: first, ends: second != 0 },
            _ => {
                let step = match first {
                    0 => Step::Map,
                    1 => Step::Mount,
                    _ => Step::Clone,
                };
                Self::Failed { step, errno: second }
            }
        }
    }
}

/// Makes a namespace, in which init calls `make` with the number of its channel, for the processes that it makes.
/// All signals must be blocked and SIGCHLD not be ignored, and this process must have one thread.
///
/// # Errors
/// Why there can be no namespace.
pub fn enter(request: &Request, make: impl FnOnce(RawFd)) -> anyhow::Result<Init> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&ours, PassCred, &true)?;
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    if request.user.is_some() {
        flags |= libc::CLONE_NEWUSER;
    }
    if request.ipc {
        flags |= libc::CLONE_NEWIPC;
    }
    let made = clone3(flags as u64, None)
        .with_context(|| if request.user.is_some() { "a user namespace" } else { "a pid namespace" })?;
    if made == 0 {
        drop(ours);
        be_init(request, theirs, make)
    }
    Ok(Init { pid: Pid::from_raw(made), channel: ours, early: RefCell::default() })
}

/// Makes a namespace and in it one process, which ends.
///
/// # Errors
/// Why that cannot be.
pub fn try_one(request: &Request) -> anyhow::Result<()> {
    let init = enter(request, |channel| match clone3(0, Some(request.pid)) {
        Ok(0) => {
            say_made(channel, request.pid);
            exit()
        }
        Ok(_) => {}
        Err(error) => failed(channel, Step::Clone, &error),
    })?;
    let heard = init.receive(MsgFlags::empty()).map_err(Into::into).and_then(|message| init.heard(message));
    init.collect();
    heard.map(drop)
}

/// Says, by a process itself, that it is there.
pub fn say_made(channel: RawFd, pid: i32) {
    tell(channel, Message::Made { pid });
}

/// What is heard while processes are made.
pub enum News {
    /// A process has this pid inside, and that one here.
    Made(i32, Pid),
    Other,
    /// Nothing more for now.
    None,
}

impl Init {
    /// Nobody else's until it is collected.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Becomes readable when there is something to be told.
    pub fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Who was made since it was last asked. Does not wait.
    ///
    /// # Errors
    /// Why the namespace cannot be used.
    pub fn news(&self) -> anyhow::Result<News> {
        match self.receive(MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => Ok(News::None),
            message => self.heard(message?),
        }
    }

    fn heard(&self, message: Option<(Message, Pid)>) -> anyhow::Result<News> {
        match message {
            Some((Message::Made { pid }, here)) => Ok(News::Made(pid, here)),
            Some((Message::Failed { step, errno }, _)) => {
                let what = match step {
                    Step::Map => "the user namespace's id maps",
                    Step::Mount => "mounting /proc in the namespace",
                    Step::Clone => "the program's pid in the namespace",
                };
                Err(anyhow::Error::from(io::Error::from_raw_os_error(errno)).context(what))
            }
            // The program was faster.
            Some((Message::Status { status, ends }, _)) => {
                self.early.borrow_mut().push_back((status, ends));
                Ok(News::Other)
            }
            // It has ended already, and init with it.
            None if self.early.borrow().iter().any(|(_, ends)| *ends) => Ok(News::None),
            None => bail!("the namespace's first processes were killed"),
        }
    }

    /// Ends init, and with it every process of the namespace.
    pub fn end(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        self.collect();
    }

    /// What has become of the program since it was last asked. Does not wait.
    ///
    /// # Errors
    /// When the channel cannot be read.
    pub fn change(&self) -> io::Result<Change> {
        let told = |(status, ends)| {
            if ends {
                self.collect();
            }
            Ok(Change::Status(status))
        };
        if let Some(early) = self.early.borrow_mut().pop_front() {
            return told(early);
        }
        loop {
            match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(Some((Message::Status { status, ends }, _))) => return told((status, ends)),
                Ok(Some(_)) => {}
                // Init was killed, and the kernel has killed the program with it.
                Ok(None) => {
                    self.collect();
                    return Ok(Change::Status(libc::SIGKILL));
                }
                Err(Errno::EAGAIN) => return Ok(Change::None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the end of init, which is near when the program has ended and has left nobody.
    pub fn collect(&self) {
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }

    /// The next message and who sent it; `None` when nobody is left to send one.
    fn receive(&self, flags: MsgFlags) -> nix::Result<Option<(Message, Pid)>> {
        let mut bytes = [0; 12];
        let mut control = nix::cmsg_space!(libc::ucred);
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        let received = loop {
            match recvmsg::<()>(self.channel.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                received => break received?,
            }
        };
        let len = received.bytes;
        let mut sender = Pid::from_raw(0);
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmCredentials(who) = message {
                sender = Pid::from_raw(who.pid());
            }
        }
        if len == 0 {
            return Ok(None);
        }
        let mut words = [0; 3];
        for (word, four) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = i32::from_ne_bytes(*four);
        }
        Ok(Some((Message::from_words(words), sender)))
    }
}

/// clone(2) like fork(2), sharing what the flags say.
///
/// # Errors
/// clone(2)'s.
pub fn clone_with(flags: u64) -> io::Result<i32> {
    // SAFETY: without CLONE_VM: the child has memory of its own, and this process has one thread.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if child < 0 { Err(io::Error::last_os_error()) } else { Ok(child as i32) }
}

/// clone3(2) like fork(2), into new namespaces, or with the pid that is asked for.
///
/// # Errors
/// EPERM, EEXIST, EINVAL, ENOSPC: see clone3(2).
pub fn clone3(flags: u64, pid: Option<i32>) -> io::Result<i32> {
    // SAFETY: plain numbers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(pid) = &pid {
        arguments.set_tid = ptr::from_ref(pid) as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    if child < 0 { Err(io::Error::last_os_error()) } else { Ok(child as i32) }
}

/// Blocks all signals, and lets children be waited for whatever this process inherited.
///
/// # Errors
/// None that these calls have for such arguments.
pub fn hold_signals() -> nix::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed.
    unsafe { sigaction(Signal::SIGCHLD, &default) }?;
    Ok(before)
}

fn be_init(request: &Request, channel: OwnedFd, make: impl FnOnce(RawFd)) -> ! {
    // Another name than that of the process that stands in for the program, for who looks at ps(1).
    // SAFETY: reads a string.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"stasis-init".as_ptr()) };
    request.session.enter();
    if let Some((uid, gid)) = request.user
        && let Err(error) = map_ids(uid, gid)
    {
        failed(channel.as_raw_fd(), Step::Map, &error);
    }
    if let Err(error) = mount_proc() {
        failed(channel.as_raw_fd(), Step::Mount, &error);
    }
    // Otherwise the threads of the restorer, which come first, may take the ids of the program's, too.
    go_on_after(request.after.within(pid_limit()));
    make(channel.as_raw_fd());
    serve(&let_go(channel), request.pid)
}

/// sysctl kernel.pid_max.
pub fn pid_limit() -> Option<i32> {
    read_number("/proc/sys/kernel/pid_max")
}

/// Has the kernel choose ids after this one, where it would choose remembered ones. The file is there where set_tid is
/// (CONFIG_CHECKPOINT_RESTORE), and for the same rights; where /proc/sys is read-only (a container's) all stays as it is.
pub fn go_on_after(After { id, remembered_from, .. }: After) {
    let is_remembered = |last: i32| last < id || remembered_from.is_some_and(|from| last >= from);
    if last_id().is_some_and(is_remembered) {
        let _ = fs::write(LAST, id.to_string());
    }
}

const LAST: &str = "/proc/sys/kernel/ns_last_pid";

/// Which id the kernel has given last.
pub fn last_id() -> Option<i32> {
    read_number(LAST)
}

fn read_number(path: &str) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn failed(channel: RawFd, step: Step, error: &io::Error) -> ! {
    tell(channel, Message::Failed { step, errno: error.raw_os_error().unwrap_or(libc::EIO) });
    exit()
}

/// The only ids that an unprivileged process may map are its own (user_namespaces(7)).
fn map_ids(uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// A /proc that numbers processes as they number themselves. Mounts made outside later are seen inside, not the
/// other way round (mount_namespaces(7), MS_SLAVE).
fn mount_proc() -> io::Result<()> {
    // SAFETY: mount(2) reads strings.
    let made = unsafe {
        libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_REC | libc::MS_SLAVE, ptr::null()) == 0
            && libc::mount(
                c"proc".as_ptr(),
                c"/proc".as_ptr(),
                c"proc".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
                ptr::null(),
            ) == 0
    };
    if made { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes all but the channel: who reads from a pipe that the program writes to must see its end.
fn let_go(channel: OwnedFd) -> OwnedFd {
    staging::let_go();
    let number = channel.into_raw_fd();
    // SAFETY: nothing else that is open here is used any more, and nothing that owns it is dropped. dup2(2) does
    // nothing where both numbers are the same.
    unsafe {
        let number = libc::dup2(number, 0).max(0);
        libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0);
        // A working directory would keep its file system from being unmounted.
        libc::chdir(c"/".as_ptr());
        OwnedFd::from_raw_fd(number)
    }
}

/// Collects what ends, and tells of the program; ends with the last child.
fn serve(channel: &OwnedFd, program: i32) -> ! {
    loop {
        let mut status = 0;
        // SAFETY: waitpid(2) writes one word.
        let changed = unsafe { libc::waitpid(-1, &raw mut status, libc::WUNTRACED) };
        if changed < 0 && Errno::last() != Errno::EINTR {
            exit()
        }
        if changed != program {
            continue;
        }
        let ended = !libc::WIFSTOPPED(status);
        let ends = ended && nobody_is_left();
        tell(channel.as_raw_fd(), Message::Status { status, ends });
        if ends {
            exit()
        }
    }
}

/// Whether no child is left; collects those that have ended.
fn nobody_is_left() -> bool {
    loop {
        // SAFETY: no status is asked for.
        match unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) } {
            0 => return false,
            -1 => return Errno::last() == Errno::ECHILD,
            _ => {}
        }
    }
}

/// Nobody may be there to hear it.
fn tell(channel: RawFd, message: Message) {
    let mut bytes = [0; 12];
    for (four, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(message.to_words()) {
        *four = word.to_ne_bytes();
    }
    let _ = send(channel, &bytes, MsgFlags::MSG_NOSIGNAL);
}

/// Ends this process without running the parent's exit handlers.
pub fn exit() -> ! {
    // SAFETY: takes an integer.
    unsafe { libc::_exit(0) }
}
