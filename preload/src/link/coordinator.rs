//! The connection to the coordinator.

use alloc::{string::String, vec::Vec};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU64, Ordering},
};

use stasis_protocol::{
    VERSION,
    coordinator::{FromProcess, Hello, Role, ToProcess},
};
use stasis_sys::{
    Errno,
    file::{self, Fd},
    process, socket,
};

use crate::procfs;

const LONGEST: usize = 108;

struct Address(UnsafeCell<([u8; LONGEST], usize)>);

// SAFETY: written before the checkpoint thread starts, or by it.
unsafe impl Sync for Address {}

static ADDRESS: Address = Address(UnsafeCell::new(([0; LONGEST], 0)));

/// Remembers the path of the coordinator's socket, with or without `unix:`.
pub fn set_address(address: &[u8]) {
    let address = address.strip_prefix(b"unix:").unwrap_or(address);
    let len = address.len().min(LONGEST);
    // SAFETY: see `Address`.
    let (bytes, stored) = unsafe { &mut *ADDRESS.0.get() };
    bytes[..len].copy_from_slice(&address[..len]);
    *stored = len;
}

pub fn address() -> &'static [u8] {
    // SAFETY: see `Address`.
    let (bytes, len) = unsafe { &*ADDRESS.0.get() };
    &bytes[..*len]
}

/// What this process belongs to, or whoever forked it: [`ToProcess::Welcome`]; 0: nothing yet.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// A connection on which the coordinator has said welcome.
#[derive(Clone, Copy)]
pub struct Coordinator(Fd);

impl Coordinator {
    /// Connects by the remembered address; to be followed by [`Coordinator::greet`].
    pub fn connect() -> Result<Fd, Errno> {
        socket::connect(address(), true)
    }

    /// Introduces this process on a connected socket, and waits for the answer.
    pub fn greet(socket: Fd) -> Result<Self, Errno> {
        Self::meet(socket, None, false)
    }

    /// The same for a process that may have been restarted from a checkpoint; `stops`: it is about to stop itself.
    pub fn greet_again(socket: Fd, restarted_from: Option<String>, stops: bool) -> Result<Self, Errno> {
        Self::meet(socket, restarted_from, stops)
    }

    fn meet(socket: Fd, restarted_from: Option<String>, stops: bool) -> Result<Self, Errno> {
        introduce(socket, restarted_from, stops).inspect_err(|_| _ = file::close(socket))?;
        Self::welcomed(socket)
    }

    /// Waits for the answer on a socket where this process has introduced itself. An original beside which its restarted
    /// processes are is turned away, again and again.
    pub fn welcomed(socket: Fd) -> Result<Self, Errno> {
        let answer = super::receive(socket);
        if let Ok(ToProcess::Welcome { version: VERSION, epoch }) = answer {
            EPOCH.store(epoch, Ordering::Relaxed);
            return Ok(Self(socket));
        }
        let _ = file::close(socket);
        Err(answer.err().unwrap_or(Errno(libc::EPROTO)))
    }

    /// Waits until every process of a restarted computation is there, or the coordinator is not.
    pub fn await_others(&self) {
        while !matches!(self.receive(), Ok(ToProcess::Go) | Err(_)) {}
    }

    pub fn fd(&self) -> Fd {
        self.0
    }

    pub fn receive(&self) -> Result<ToProcess, Errno> {
        super::receive(self.0)
    }

    /// The same, with the descriptor that came beside the message.
    pub fn receive_beside(&self) -> Result<(ToProcess, Option<Fd>), Errno> {
        super::receive_beside(self.0)
    }

    pub fn send(&self, message: &FromProcess) -> Result<(), Errno> {
        super::send(self.0, message, None)
    }
}

/// Connects and says who this process is, without waiting for anybody: the coordinator knows of the process from
/// then on, whatever becomes of its threads.
///
/// # Errors
/// connect(2)'s: ECONNREFUSED or ENOENT where nobody listens.
pub fn announce() -> Result<Fd, Errno> {
    let socket = socket::connect(address(), false)?;
    introduce(socket, None, false).inspect_err(|_| {
        let _ = file::close(socket);
    })?;
    Ok(socket)
}

fn introduce(socket: Fd, restarted_from: Option<String>, stops: bool) -> Result<(), Errno> {
    let argv = procfs::read(c"/proc/thread-self/cmdline")?;
    let argv = argv.split(|&byte| byte == 0).map(super::text).collect::<Vec<_>>();
    let epoch = EPOCH.load(Ordering::Relaxed);
    let role = Role::Process { pid: process::getpid() as u32, argv, restarted_from, stops, epoch };
    super::send(socket, &Hello { version: VERSION, role }, None)
}
