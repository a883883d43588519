//! Sockets: what becomes of TCP sockets as it happens, and who holds which socket when it is asked.
//!
//! Unix sockets have no tracepoint, so both ends of theirs come from the iterator. Hooks of control groups would tell
//! of more (connect(2) of UDP), for one more capability (CAP_NET_ADMIN) than the service needs.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_seq_write, bpf_sock_from_file},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use stasis_events::{Counter, Kind, Owner, Socket, SocketAddresses, TcpEvent};

use crate::{
    iterate::Meta,
    kernel::{Kernel, current_ids, effective_user},
    maps::{EVENTS, LISTENERS, SOCKETS, TASKS, count},
    offset,
};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// include/net/tcp_states.h
const ESTABLISHED: i32 = 1;
const SYN_SENT: i32 = 2;
const SYN_RECV: i32 = 3;
const CLOSE: i32 = 7;
const LISTEN: i32 = 10;

/// `inet_sock_set_state`. The running task is the socket's own when it connects or listens; at other changes it is
/// whoever was running when the packet came, so the owner is remembered.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_state(context: BtfTracePointContext) -> i32 {
    let sock = Kernel(context.arg::<u64>(0));
    let old: i32 = context.arg(1);
    let new: i32 = context.arg(2);
    let known = match new {
        SYN_SENT | LISTEN => begin(sock, new),
        ESTABLISHED if old == SYN_RECV => accepted(sock),
        // SAFETY: a socket changes its state under its lock, one change at a time.
        _ => unsafe { SOCKETS.get(sock.0) }.copied(),
    };
    let Some(owner) = known else { return 0 };
    report(sock, &owner, old, new);
    if new == CLOSE {
        let _ = SOCKETS.remove(sock.0);
        if old == LISTEN {
            let _ = LISTENERS.remove(listener(sock));
        }
    }
    0
}

#[inline(always)]
fn begin(sock: Kernel, new: i32) -> Option<Owner> {
    let (tgid, _) = current_ids();
    // SAFETY: see `tasks::newtask`.
    let task = unsafe { TASKS.get(tgid) }?;
    let owner = Owner {
        computation: task.computation,
        owner: task.owner,
        tgid,
        inode: inode(sock.follow(offset!(sock_socket))),
    };
    let _ = SOCKETS.insert(sock.0, owner, 0);
    if new == LISTEN {
        let _ = LISTENERS.insert(listener(sock), owner, 0);
    }
    Some(owner)
}

/// A connection that came in: its task is the listener's until somebody accepts it, which no tracepoint tells.
#[inline(always)]
fn accepted(sock: Kernel) -> Option<Owner> {
    // SAFETY: a copy of a listener's owner that is being replaced is that of another listener on the same port.
    let mut owner = *(unsafe { LISTENERS.get(listener(sock)) }?);
    owner.inode = 0;
    let _ = SOCKETS.insert(sock.0, owner, 0);
    Some(owner)
}

#[inline(always)]
fn listener(sock: Kernel) -> u64 {
    let port: u16 = sock.read(offset!(sock_num));
    (namespace(sock) << 16) | port as u64
}

#[inline(always)]
fn namespace(sock: Kernel) -> u64 {
    let inode: u32 = sock.follow(offset!(sock_net)).read(offset!(net_inum));
    inode as u64
}

#[inline(always)]
fn report(sock: Kernel, owner: &Owner, old: i32, new: i32) {
    let addresses = addresses(sock);
    let Some(mut entry) = EVENTS.reserve::<TcpEvent>(0) else {
        count(Counter::Dropped);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: as in `report::task`.
    unsafe {
        (*event).kind = Kind::Tcp as u32;
        (*event).owner = owner.owner;
        (*event).computation = owner.computation;
        (*event).time_ns = bpf_ktime_get_boot_ns();
        (*event).tgid = owner.tgid;
        (*event).old = old as u16;
        (*event).new = new as u16;
        (*event).inode = owner.inode;
        (*event).addresses = addresses;
    }
    entry.submit(0);
}

#[inline(always)]
fn addresses(sock: Kernel) -> SocketAddresses {
    let family: u16 = sock.read(offset!(sock_family));
    let mut found = SocketAddresses { family, ..SocketAddresses::default() };
    if family != AF_INET && family != AF_INET6 {
        return found;
    }
    found.local_port = sock.read(offset!(sock_num));
    found.remote_port = u16::from_be(sock.read(offset!(sock_dport)));
    found.namespace = namespace(sock);
    if family == AF_INET {
        let local: [u8; 4] = sock.read(offset!(sock_rcv_saddr));
        let remote: [u8; 4] = sock.read(offset!(sock_daddr));
        found.local[0] = local[0];
        found.local[1] = local[1];
        found.local[2] = local[2];
        found.local[3] = local[3];
        found.remote[0] = remote[0];
        found.remote[1] = remote[1];
        found.remote[2] = remote[2];
        found.remote[3] = remote[3];
    } else {
        found.local = sock.read(offset!(sock_v6_rcv_saddr));
        found.remote = sock.read(offset!(sock_v6_daddr));
    }
    found
}

/// The inode's number of a `struct socket`.
#[inline(always)]
fn inode(socket: Kernel) -> u64 {
    if socket.0 == 0 { 0 } else { socket.read(offset!(socket_inode)) }
}

/// `bpf_iter__task_file`
#[repr(C)]
struct Context {
    meta: *const Meta,
    task: *const c_void,
    fd: u32,
    file: *mut c_void,
}

/// Tells every socket that any process has open: the other end may be anybody's.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn all_sockets(context: *const c_void) -> i32 {
    let context: *const Context = context.cast();
    // SAFETY: the context is what the kernel says it is; the verifier checks it.
    let (meta, task, fd, file) =
        unsafe { ((*context).meta, (*context).task, (*context).fd, (*context).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // SAFETY: the kernel's own pointer to an open file.
    let socket = unsafe { bpf_sock_from_file(file.cast()) };
    if socket.is_null() {
        return 0;
    }
    let socket = Kernel(socket as u64);
    let sock = socket.follow(offset!(socket_sk));
    let task = Kernel(task as u64);
    let tgid: u32 = task.read(offset!(task_tgid));
    // SAFETY: see `iterate::all_tasks`.
    let (computation, owner) =
        unsafe { TASKS.get(tgid) }.map_or((0, 0), |task| (task.computation, task.owner));
    let addresses = addresses(sock);
    let peer_inode = if addresses.family == AF_UNIX {
        let peer = sock.follow(offset!(unix_peer));
        if peer.0 == 0 { 0 } else { inode(peer.follow(offset!(sock_socket))) }
    } else {
        0
    };
    let record = Socket {
        computation,
        inode: inode(socket),
        peer_inode,
        owner,
        tgid,
        uid: effective_user(task),
        fd,
        kind: sock.read(offset!(sock_type)),
        state: sock.read::<u8>(offset!(sock_state)) as u16,
        unused: 0,
        addresses,
    };
    // SAFETY: as in `iterate::all_tasks`.
    unsafe { bpf_seq_write((*meta).seq, (&raw const record).cast(), size_of::<Socket>() as u32) };
    0
}
