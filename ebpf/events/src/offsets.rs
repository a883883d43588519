//! Where the running kernel keeps what the programs read: found in its BTF by the service and put into the programs'
//! read-only data before they are loaded, since Rust has no relocations of its own for that (CO-RE).

/// There is no such field in this kernel.
pub const NONE: u32 = u32::MAX;

/// Offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_comm: u32,
    pub task_start_boottime: u32,
    pub task_real_parent: u32,
    pub task_cred: u32,
    pub task_signal: u32,
    pub task_exit_code: u32,
    pub task_thread_pid: u32,
    pub cred_euid: u32,
    pub signal_live: u32,
    pub signal_group_exit_code: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    pub upid_size: u32,
    pub bprm_filename: u32,
    /// The byte with the bit, and the bit's mask.
    pub bprm_secureexec: u32,
    pub bprm_secureexec_mask: u32,
    /// [`NONE`] for all that follow where sockets cannot be looked at.
    pub sock_family: u32,
    pub sock_state: u32,
    pub sock_num: u32,
    pub sock_dport: u32,
    pub sock_daddr: u32,
    pub sock_rcv_saddr: u32,
    pub sock_v6_daddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_net: u32,
    pub net_inum: u32,
    pub sock_type: u32,
    pub sock_socket: u32,
    pub socket_sk: u32,
    pub unix_peer: u32,
    /// From a `struct socket` to its inode's number (struct socket_alloc).
    pub socket_inode: u32,
}

impl Offsets {
    pub const fn nowhere() -> Self {
        // SAFETY: every field is a u32, of which any bits are a value; all ones are NONE.
        unsafe { core::mem::transmute([NONE; size_of::<Self>() / 4]) }
    }
}
