//! System V shared memory, semaphores and message queues, each with the id that programs remember, and what was in it.
//!
//! Ids are asked for by `/proc/sys/kernel/{shm,sem,msg}_next_id`. In a place with a pid namespace there is an IPC namespace
//! of its own, too, where all ids are free. Elsewhere an object may be there still, left by the original: it is rolled
//! back where it is the same one, and nobody has it attached.
//!
//! The kernel notes who makes and uses them (shmctl(2), semctl(2), msgctl(2)): that is done by processes that have those ids for
//! the moment.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
};

use anyhow::{Context as _, anyhow};
use stasis_protocol::image::{Object, ObjectKind, SystemV, SystemVContent};

use super::{computation::Saved, descriptors::with_id, ids, namespace::exit, objects};

/// Why an object cannot be made.
pub struct Unmade {
    pub error: anyhow::Error,
    /// Its id or key is in use: it may be free in another place.
    pub ids: bool,
}

impl<E: Into<anyhow::Error>> From<E> for Unmade {
    fn from(error: E) -> Self {
        Self { error: error.into(), ids: false }
    }
}

fn in_use(what: String) -> Unmade {
    Unmade { error: anyhow!("{what} is in use"), ids: true }
}

/// A segment, and which processes may have pages of it.
struct Segment<'a> {
    of: &'a SystemV,
    removed: bool,
    creator: i32,
    size: u64,
    having: Vec<(&'a Saved, &'a Object)>,
}

/// All objects of a computation.
pub struct Objects<'a> {
    segments: BTreeMap<i32, Segment<'a>>,
    contents: Vec<&'a SystemVContent>,
    /// What processes' ends would add to semaphores in all.
    undo: BTreeMap<(i32, u16), i32>,
}

impl<'a> Objects<'a> {
    pub fn of(processes: &'a [Saved]) -> Self {
        let mut all = Self { segments: BTreeMap::new(), contents: Vec::new(), undo: BTreeMap::new() };
        for saved in processes {
            for object in &saved.image.objects {
                let ObjectKind::Segment { of, removed, creator } = &object.kind else { continue };
                let (removed, creator, size) = (*removed, *creator, object.size);
                let new = || Segment { of, removed, creator, size, having: Vec::new() };
                all.segments.entry(of.id).or_insert_with(new).having.push((saved, object));
            }
            all.contents.extend(&saved.image.system_v);
            for undo in &saved.image.undo {
                *all.undo.entry((undo.id, undo.number)).or_default() += undo.adjustment;
            }
        }
        all
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.contents.is_empty()
    }

    /// Makes all of them, and fills them. Segments that go away when nobody has them attached are kept by a process of their
    /// own, until `until` is readable or closed. This process must have one thread.
    ///
    /// # Errors
    /// Names the object.
    pub fn make(&self, until: &OwnedFd) -> Result<(), Unmade> {
        let mut attached = Vec::new();
        for segment in self.segments.values() {
            let address = segment.make()?;
            if segment.removed {
                attached.push(address);
            } else {
                detach(address);
            }
        }
        for content in &self.contents {
            match content {
                SystemVContent::Semaphores { of, values, users } => self.semaphores(of, values, users)?,
                SystemVContent::Messages { of, most, messages, sender, receiver } => {
                    queue(of, *most, messages, (*sender, *receiver))?;
                }
            }
        }
        if !attached.is_empty() && ids::make_any().context("no more processes can be made (ulimit -u)")? == 0
        {
            keep(until);
        }
        for address in attached {
            detach(address);
        }
        Ok(())
    }

    fn semaphores(&self, of: &SystemV, values: &[u16], users: &[i32]) -> Result<(), Unmade> {
        let what = format!("System V semaphore set {}", of.id);
        let count = i32::try_from(values.len())?;
        make(
            of,
            &what,
            "sem",
            0,
            || {
                // SAFETY: IPC_STAT fills in the structure.
                let found: libc::semid_ds = unsafe { stat(|to| libc::semctl(of.id, 0, libc::IPC_STAT, to)) }?;
                Ok((found.sem_perm, found.sem_ctime, found.sem_nsems == values.len() as u64))
            },
            || {
                // SAFETY: three numbers.
                unsafe { libc::semget(of.key, count, flags(of)) }
            },
        )?;
        set_owner(of, &what, |perm| {
            // SAFETY: struct semid_ds is plain data, which IPC_SET reads.
            unsafe {
                let mut set: libc::semid_ds = std::mem::zeroed();
                set.sem_perm = perm;
                libc::semctl(of.id, 0, libc::IPC_SET, &raw mut set)
            }
        })?;
        let values: Vec<u16> = values
            .iter()
            .zip(0u16..)
            .map(|(&value, number)| {
                let undone = self.undo.get(&(of.id, number)).copied().unwrap_or(0);
                u16::try_from(i32::from(value).saturating_add(undone)).unwrap_or(value)
            })
            .collect();
        const SETALL: i32 = 17;
        // SAFETY: reads as many values as the set has.
        done(unsafe { libc::semctl(of.id, 0, SETALL, values.as_ptr()) }).context(what.clone())?;
        let mut used: BTreeMap<i32, Vec<(i32, u16)>> = BTreeMap::new();
        for ((user, number), value) in users.iter().zip(0..).zip(values) {
            used.entry(*user).or_default().push((number, value));
        }
        used.remove(&0);
        for (user, semaphores) in used {
            const SETVAL: i32 = 16;
            // SAFETY: numbers.
            let set = |&(number, value): &(i32, u16)| unsafe {
                done(libc::semctl(of.id, number, SETVAL, i32::from(value)))
            };
            with_id(user, || semaphores.iter().try_for_each(|one| set(one).map(drop)))
                .context(what.clone())?;
        }
        Ok(())
    }
}

impl Segment<'_> {
    /// Makes and fills it; where it is attached.
    fn make(&self) -> Result<*const libc::c_void, Unmade> {
        let of = self.of;
        let what = format!("System V shared memory {}", of.id);
        make(
            of,
            &what,
            "shm",
            if outlives_its_creator() { self.creator } else { 0 },
            || {
                // SAFETY: IPC_STAT fills in the structure.
                let found: libc::shmid_ds = unsafe { stat(|to| libc::shmctl(of.id, libc::IPC_STAT, to)) }?;
                let alike = found.shm_segsz as u64 == self.size && found.shm_nattch == 0;
                Ok((found.shm_perm, found.shm_ctime, alike))
            },
            || {
                // SAFETY: three numbers.
                unsafe { libc::shmget(of.key, self.size as usize, flags(of)) }
            },
        )?;
        set_owner(of, &what, |perm| {
            // SAFETY: struct shmid_ds is plain data, which IPC_SET reads.
            unsafe {
                let mut set: libc::shmid_ds = std::mem::zeroed();
                set.shm_perm = perm;
                libc::shmctl(of.id, libc::IPC_SET, &raw mut set)
            }
        })?;
        // SAFETY: a new mapping where the kernel finds room.
        let address = unsafe { libc::shmat(of.id, ptr::null(), 0) };
        if address as isize == -1 {
            return Err(anyhow::Error::from(io::Error::last_os_error()).context(what).into());
        }
        // SAFETY: the segment is as long as this, and nobody else has it attached.
        let memory = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), self.size as usize) };
        memory.fill(0);
        for (saved, object) in &self.having {
            objects::each(saved, object, |at, bytes| {
                let at = at as usize;
                memory[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            })?;
        }
        const SHM_LOCKED: u32 = 0o2000;
        if of.mode & SHM_LOCKED != 0 {
            // SAFETY: two numbers.
            done(unsafe { libc::shmctl(of.id, libc::SHM_LOCK, ptr::null_mut()) }).context(what.clone())?;
        }
        if self.removed {
            // It stays for as long as it is attached.
            // SAFETY: two numbers.
            done(unsafe { libc::shmctl(of.id, libc::IPC_RMID, ptr::null_mut()) }).context(what)?;
        }
        Ok(address)
    }
}

fn queue(
    of: &SystemV,
    most: u64,
    messages: &[(i64, Vec<u8>)],
    (sender, receiver): (i32, i32),
) -> Result<(), Unmade> {
    let what = format!("System V message queue {}", of.id);
    // SAFETY: IPC_STAT fills in the structure.
    let stat = || unsafe { stat::<libc::msqid_ds>(|to| libc::msgctl(of.id, libc::IPC_STAT, to)) };
    make(
        of,
        &what,
        "msg",
        0,
        || {
            let found = stat()?;
            Ok((found.msg_perm, found.msg_ctime, true))
        },
        || {
            // SAFETY: two numbers.
            unsafe { libc::msgget(of.key, flags(of)) }
        },
    )?;
    let found = stat().context(what.clone())?;
    // What was left there goes.
    for _ in 0..found.msg_qnum {
        let mut text = vec![0u64; found.__msg_cbytes as usize / 8 + 2];
        let room = (text.len() - 1) * 8;
        // SAFETY: writes a word and at most as much text as there is room.
        let received = unsafe { libc::msgrcv(of.id, text.as_mut_ptr().cast(), room, 0, libc::IPC_NOWAIT) };
        if received < 0 {
            break;
        }
    }
    if found.msg_qbytes != most || is_other(of, &found.msg_perm) {
        // SAFETY: struct msqid_ds is plain data, which IPC_SET reads.
        let set = unsafe {
            let mut set: libc::msqid_ds = std::mem::zeroed();
            set.msg_perm = owner(of);
            set.msg_qbytes = most;
            libc::msgctl(of.id, libc::IPC_SET, &raw mut set)
        };
        done(set).context(what.clone())?;
    }
    let send = |kind: i64, text: &[u8]| {
        let mut message = kind.to_ne_bytes().to_vec();
        message.extend_from_slice(text);
        // SAFETY: reads a word and the text behind it; the kernel does not ask for more than bytes.
        done(unsafe { libc::msgsnd(of.id, message.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) })
    };
    // One that says nothing, for somebody to have received something.
    if receiver != 0 && with_id(sender, || send(1, &[])).is_ok() {
        let receive = || {
            let mut kind = 0i64;
            // SAFETY: writes a word.
            done(unsafe { libc::msgrcv(of.id, (&raw mut kind).cast(), 0, 0, libc::IPC_NOWAIT) } as i32)
        };
        with_id(receiver, receive).context(what.clone())?;
    }
    if messages.is_empty() {
        return Ok(());
    }
    with_id(sender, || messages.iter().try_for_each(|(kind, text)| send(*kind, text).map(drop)))
        .context(what)?;
    Ok(())
}

/// Makes an object with its id, by a process with the id `creator`. `find`: permissions, time of change, and whether what has the
/// id could be it; `get` makes one.
fn make(
    of: &SystemV,
    what: &str,
    kind: &str,
    creator: i32,
    find: impl FnOnce() -> io::Result<(libc::ipc_perm, i64, bool)>,
    get: impl Fn() -> i32,
) -> Result<(), Unmade> {
    match find() {
        Ok((perm, changed, alike)) => {
            // An object without a key is known by its age: ids begin anew with the machine.
            let is_same = alike
                && perm.__key == of.key
                && (perm.cuid, perm.cgid) == (of.creator_uid, of.creator_gid)
                && (of.key != libc::IPC_PRIVATE || changed == of.changed);
            return if is_same { Ok(()) } else { Err(in_use(what.into())) };
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => {}
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => return Err(in_use(what.into())),
        Err(error) => return Err(anyhow::Error::from(error).context(what.to_owned()).into()),
    }
    let next = format!("/proc/sys/kernel/{kind}_next_id");
    if let Err(error) = fs::write(&next, of.id.to_string()) {
        // In a namespace of its own this user may.
        let ids = error.kind() == io::ErrorKind::PermissionDenied;
        let error = anyhow!(error).context(format!("{what}: its id cannot be asked for ({next})"));
        return Err(Unmade { error, ids });
    }
    let made = with_id(creator, || as_creator(of, &get));
    match made {
        Ok(id) if id == of.id => Ok(()),
        Ok(id) => {
            // SAFETY: numbers, and no structure. It was made a moment ago.
            unsafe {
                match kind {
                    "shm" => libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()),
                    "sem" => libc::semctl(id, 0, libc::IPC_RMID),
                    _ => libc::msgctl(id, libc::IPC_RMID, ptr::null_mut()),
                }
            };
            Err(in_use(what.into()))
        }
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            Err(in_use(format!("the key {:#x} of {what}", of.key)))
        }
        Err(error) => Err(anyhow::Error::from(error).context(format!("{what} cannot be made")).into()),
    }
}

/// Makes something as the user who made it at first, where this user may be anybody.
fn as_creator(of: &SystemV, get: impl Fn() -> i32) -> io::Result<i32> {
    const SAME: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: takes nothing.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let becomes = uid == 0 && (of.creator_uid, of.creator_gid) != (uid, gid);
    // SAFETY: numbers. This process has one thread; libc's own functions would look for others.
    let set = |uid: libc::uid_t, gid: libc::gid_t| unsafe {
        if becomes {
            libc::syscall(libc::SYS_setresgid, SAME, gid, SAME);
            libc::syscall(libc::SYS_setresuid, SAME, uid, SAME);
        }
    };
    set(of.creator_uid, of.creator_gid);
    let made = done(get());
    // The group can be had again only as root.
    if becomes {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_setresuid, SAME, uid, SAME) };
    }
    set(uid, gid);
    made
}

/// Whether a segment that nobody has attached yet stays when who made it ends (proc_sys_kernel(5), shm_rmid_forced).
fn outlives_its_creator() -> bool {
    fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").map_or(true, |forced| forced.trim() == "0")
}

fn flags(of: &SystemV) -> i32 {
    libc::IPC_CREAT | libc::IPC_EXCL | (of.mode & 0o777) as i32
}

fn is_other(of: &SystemV, perm: &libc::ipc_perm) -> bool {
    (perm.uid, perm.gid, u32::from(perm.mode) & 0o777) != (of.uid, of.gid, of.mode & 0o777)
}

fn owner(of: &SystemV) -> libc::ipc_perm {
    // SAFETY: struct ipc_perm is plain data.
    let mut perm: libc::ipc_perm = unsafe { std::mem::zeroed() };
    (perm.uid, perm.gid, perm.mode) = (of.uid, of.gid, (of.mode & 0o777) as _);
    perm
}

/// Gives an object its owner, where that is not who made it: the time of the change is when it was made, else.
fn set_owner(of: &SystemV, what: &str, set: impl FnOnce(libc::ipc_perm) -> i32) -> Result<(), Unmade> {
    if (of.uid, of.gid) != (of.creator_uid, of.creator_gid) {
        done(set(owner(of))).context(what.to_owned())?;
    }
    Ok(())
}

/// # Safety
/// `ask` fills in the structure.
unsafe fn stat<T>(ask: impl FnOnce(*mut T) -> i32) -> io::Result<T> {
    // SAFETY: the structures of IPC_STAT are plain data.
    let mut found: T = unsafe { std::mem::zeroed() };
    done(ask(&raw mut found)).map(|_| found)
}

fn done(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn detach(address: *const libc::c_void) {
    // SAFETY: attached here, and not used any more.
    unsafe { libc::shmdt(address) };
}

/// The life of the process that keeps segments: it has nothing else open, or others would wait for it.
fn keep(until: &OwnedFd) -> ! {
    let mut byte = 0u8;
    // SAFETY: nothing else that is open here is used any more; a byte is written.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"stasis-keeper".as_ptr());
        libc::dup2(until.as_raw_fd(), 0);
        libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0);
        while libc::read(0, (&raw mut byte).cast(), 1) < 0
            && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
        {}
    }
    exit()
}
