//! Whose unix connections are. The kernel notes who calls socketpair(2), connect(2) and listen(2), and tells the other end
//! (SO_PEERCRED, SO_PEERGROUPS): who makes a connection again calls as the user that it was, by a process that has its id for
//! the moment. So the number is right; a pidfd of it (SO_PEERPIDFD) is of a process that has ended.

use std::{io, ptr};

use nix::{errno::Errno, sys::wait::waitpid, unistd::Pid};
use stasis_protocol::image::{Peer, Sender};

use super::kernel::done;
use crate::restart::{ids, namespace::exit};

/// Makes calls as somebody else, with the capabilities of this process; `None`: as this process.
///
/// # Errors
/// PermissionDenied where this process may not be that user; else what `act` gives.
pub fn calling_as<T: Copy>(peer: Option<&Peer>, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let Some(peer) = peer else { return act() };
    with_id(peer.pid, || as_user(peer, &act))
}

/// Makes calls by a process with this id, which has the descriptors of this one, as long as nobody has the id; by this process
/// where it cannot be had. This process must have one thread.
///
/// # Errors
/// What `act` gives.
pub fn with_id<T: Copy>(id: i32, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    if id <= 0 || id as u32 == std::process::id() {
        return act();
    }
    let size = size_of::<Option<T>>();
    // SAFETY: new memory where the kernel finds room, which is shared with the child.
    let shared = unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0)
    };
    if shared == libc::MAP_FAILED {
        return act();
    }
    let result = shared.cast::<Option<T>>();
    // SAFETY: as long as this, and aligned to a page. The child writes plain data, which is read when it has ended.
    let made = unsafe {
        result.write(None);
        match ids::make(libc::CLONE_FILES as u64, id) {
            Ok(0) => {
                result.write(act().ok());
                exit()
            }
            Ok(child) => {
                while waitpid(Pid::from_raw(child), None) == Err(Errno::EINTR) {}
                result.read()
            }
            Err(_) => None,
        }
    };
    // SAFETY: nothing points there any more.
    unsafe { libc::munmap(shared, size) };
    // What went wrong in the child does so here, too, and is told.
    made.map_or_else(act, Ok)
}

fn as_user<T>(peer: &Peer, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let own = Caller::own()?;
    if own.is(peer) {
        return act();
    }
    let result = match own.becomes(peer) {
        Ok(()) => act(),
        Err(_) if (own.peer.uid, own.peer.gid) == (peer.uid, peer.gid) => act(),
        Err(_) => Err(denied(Sender { pid: peer.pid, uid: peer.uid, gid: peer.gid })),
    };
    own.comes_back()?;
    result
}

/// That this process may not do something as somebody else.
pub fn denied(of: Sender) -> io::Error {
    let Sender { uid, gid, .. } = of;
    let reason = format!("to its other end it is of uid {uid}, gid {gid}, and you may not act for them");
    io::Error::new(io::ErrorKind::PermissionDenied, reason)
}

/// Who this thread is to the kernel. libc's own calls would change that of all threads.
struct Caller {
    peer: Peer,
    capabilities: Capabilities,
    dumpable: i32,
}

/// Effective, permitted and inheritable, the lower halves first (capget(2)).
type Capabilities = [u32; 6];

impl Caller {
    fn own() -> io::Result<Self> {
        let mut capabilities = [0; 6];
        capability_call(libc::SYS_capget, &mut capabilities)?;
        // SAFETY: no memory is touched.
        let (uid, gid, count) =
            unsafe { (libc::geteuid(), libc::getegid(), libc::getgroups(0, std::ptr::null_mut())) };
        let mut groups = vec![0; done(count)? as usize];
        // SAFETY: writes at most as many as there is room for.
        done(unsafe { libc::getgroups(count, groups.as_mut_ptr()) })?;
        // SAFETY: prctl(2) with numbers.
        let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
        Ok(Self { peer: Peer { pid: 0, uid, gid, groups }, capabilities, dumpable })
    }

    fn is(&self, peer: &Peer) -> bool {
        let sorted = |groups: &[u32]| {
            let mut groups = groups.to_vec();
            groups.sort_unstable();
            groups
        };
        (self.peer.uid, self.peer.gid) == (peer.uid, peer.gid)
            && sorted(&self.peer.groups) == sorted(&peer.groups)
    }

    fn becomes(&self, peer: &Peer) -> io::Result<()> {
        set_groups(&peer.groups)?;
        set_ids(libc::SYS_setresgid, peer.gid)?;
        set_ids(libc::SYS_setresuid, peer.uid)?;
        // Who ceases to be root has none in effect, but may have them again (capabilities(7)).
        let [_, permitted, inheritable, _, more_permitted, more_inheritable] = self.capabilities;
        let all = [permitted, permitted, inheritable, more_permitted, more_permitted, more_inheritable];
        capability_call(libc::SYS_capset, &mut { all })
    }

    fn comes_back(&self) -> io::Result<()> {
        set_ids(libc::SYS_setresuid, self.peer.uid)?;
        capability_call(libc::SYS_capset, &mut { self.capabilities })?;
        set_ids(libc::SYS_setresgid, self.peer.gid)?;
        if set_groups(&self.peer.groups).is_err() {
            // It could not change them before, either.
            let now = Self::own()?;
            if !now.is(&self.peer) {
                return Err(io::Error::other("the groups of this process cannot be taken back"));
            }
        }
        if self.dumpable == 1 {
            // SAFETY: prctl(2) with numbers.
            done(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) })?;
        }
        Ok(())
    }
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: reads the slice.
    called(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

/// The effective one of three ids.
fn set_ids(call: i64, effective: u32) -> io::Result<()> {
    // SAFETY: no memory is touched.
    called(unsafe { libc::syscall(call, u32::MAX, effective, u32::MAX) })
}

fn capability_call(call: i64, capabilities: &mut Capabilities) -> io::Result<()> {
    // struct __user_cap_header_struct: _LINUX_CAPABILITY_VERSION_3, and the calling thread.
    let mut header = [0x2008_0522u32, 0];
    // SAFETY: reads and writes the header and two structures of three words.
    called(unsafe { libc::syscall(call, header.as_mut_ptr(), capabilities.as_mut_ptr()) })
}

fn called(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
