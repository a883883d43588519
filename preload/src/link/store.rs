//! The connection to the store server, and the staging buffer that page data goes through.

use alloc::{format, string::String, vec::Vec};

use stasis_protocol::{
    PAGE_SIZE, VERSION,
    store::{DumpStats, Hash, Reply, Request},
};
use stasis_sys::{Errno, file, file::Fd, memory, process};

use crate::dump::Rest;

/// How many ranges go into one message.
const MAX_RANGES: usize = 1 << 14;

/// What is copied to other memory than the staging buffer goes through so many bytes behind it.
pub const BOUNCE: usize = 256 << 10;

/// How the reason begins when the server has ended: a new one comes by itself.
pub const GONE: &str = "the store server is gone";

/// A connection on which the store server has said welcome, with a staging buffer of two halves: one
/// is filled while the other is hashed and written.
pub struct Store {
    socket: Fd,
    /// The staging buffer's file; -1: none.
    file: Fd,
    staging: usize,
    /// How much of the file comes behind the staging buffer: [`BOUNCE`], or nothing.
    bounce: usize,
    half: usize,
    /// How long the staging buffer was to be.
    wanted: usize,
    /// How many halves are filled, and the `Pages` message of which has not been answered yet.
    outstanding: usize,
    next_half: usize,
    /// How much of each half has been populated, in bytes.
    populated: [usize; 2],
}

impl Store {
    /// Introduces this process on a connected socket, and gives the server a staging buffer of `len` bytes (a power of two).
    ///
    /// # Errors
    /// What the server could not be told, or said.
    pub fn greet(socket: Fd, len: usize) -> Result<Self, String> {
        Self::new(socket, len).ready(|store| {
            store.send(&Request::Hello { version: VERSION }, None)?;
            match store.receive()? {
                Reply::Welcome { version: VERSION, .. } => store.give_staging(),
                other => Err(store.unexpected(other)),
            }
        })
    }

    /// Takes a connection that the coordinator passed, which is restricted to one dump and needs no hello.
    ///
    /// # Errors
    /// As [`Store::greet`].
    pub fn passed(socket: Fd, len: usize) -> Result<Self, String> {
        Self::new(socket, len).ready(|store| store.give_staging())
    }

    fn new(socket: Fd, len: usize) -> Self {
        Self {
            socket,
            file: -1,
            staging: 0,
            bounce: 0,
            half: len / 2,
            wanted: len,
            outstanding: 0,
            next_half: 0,
            populated: [0; 2],
        }
    }

    fn ready(mut self, make: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<Self, String> {
        match make(&mut self) {
            Ok(()) => Ok(self),
            Err(reason) => {
                self.close();
                Err(reason)
            }
        }
    }

    /// Gives the server a staging buffer, a shorter one than is wanted where the program's limits or the machine's memory allow no
    /// longer one.
    fn give_staging(&mut self) -> Result<(), String> {
        /// A page for each half.
        const SHORTEST: usize = 2 * PAGE_SIZE;
        /// A shorter one has nothing behind it: programs that have that little memory, or may have no longer file, need no other.
        const LONG: usize = 4 << 20;
        // A longer file than the limit allows is a SIGXFSZ.
        let limit = process::soft_limit(libc::RLIMIT_FSIZE);
        let longest = limit.min(self.wanted as u64) as usize;
        if longest < SHORTEST {
            return Err(format!(
                "no staging buffer: RLIMIT_FSIZE (ulimit -f) allows no file of {SHORTEST} bytes"
            ));
        }
        let mut len = 1 << longest.ilog2();
        let fd = file::memfd(c"stasis-staging", libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
            .map_err(|error| format!("no staging buffer: {error}"))?;
        let bounce = |len| if len >= LONG && (len + BOUNCE) as u64 <= limit { BOUNCE } else { 0 };
        let made = loop {
            match Self::make_staging(fd, len + bounce(len)) {
                _ if len < SHORTEST => {
                    break Err(format!(
                        "no staging buffer: files of {SHORTEST} bytes are beyond RLIMIT_FSIZE"
                    ));
                }
                Err(Errno(libc::ENOMEM | libc::EAGAIN)) if len > SHORTEST => len /= 2,
                Err(error) if process::is_limited(libc::RLIMIT_AS) => {
                    break Err(format!(
                        "no staging buffer: {error}, with RLIMIT_AS (ulimit -v) nearly used up"
                    ));
                }
                Err(error) => break Err(format!("no staging buffer: {error}")),
                Ok(address) => break Ok(address),
            }
        };
        let sent = made.and_then(|address| {
            (self.staging, self.half, self.bounce) = (address, len / 2, bounce(len));
            // A child of the program has no use for it.
            // SAFETY: the mapping made above.
            let _ = unsafe { memory::advise(address, self.staging().1, libc::MADV_DONTFORK) };
            let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
            file::fcntl(fd, libc::F_ADD_SEALS, seals as usize)
                .map_err(|error| format!("no staging buffer: {error}"))?;
            self.send(&Request::Staging { len: len as u64 }, Some(fd))
        });
        self.file = fd;
        sent
    }

    /// Makes a file so long, and maps it.
    fn make_staging(fd: Fd, len: usize) -> Result<usize, Errno> {
        file::ftruncate(fd, len as u64)?;
        // SAFETY: a new mapping where the kernel finds room.
        unsafe { memory::map(0, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0) }
    }

    pub fn fd(&self) -> Fd {
        self.socket
    }

    /// Where the staging buffer is mapped, and what comes behind it, in bytes: not part of any image.
    pub fn staging(&self) -> (usize, usize) {
        (self.staging, self.half * 2 + self.bounce)
    }

    /// The staging buffer's file.
    pub fn file(&self) -> Fd {
        self.file
    }

    /// Where in that file [`BOUNCE`] bytes come behind the staging buffer, and where they are mapped; `None` where there are none.
    pub fn bounce(&self) -> Option<(u64, *const u8)> {
        let at = self.half * 2;
        (self.bounce != 0).then_some((at as u64, (self.staging + at) as *const u8))
    }

    /// How long the staging buffer was to be.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Whether the server is still there: nothing is to be read between dumps but its end.
    pub fn is_alive(&self) -> bool {
        stasis_sys::sync::poll(self.socket, libc::POLLIN, 0) == Ok(0)
    }

    pub fn half_len(&self) -> usize {
        self.half
    }

    pub fn send(&self, request: &Request, beside: Option<Fd>) -> Result<(), String> {
        super::send(self.socket, request, beside).map_err(|error| format!("{GONE}: {error}"))
    }

    fn receive(&self) -> Result<Reply, String> {
        match super::receive(self.socket) {
            Ok(Reply::Refused(reason)) => Err(reason),
            Ok(reply) => Ok(reply),
            Err(error) => Err(format!("{GONE}: {error}")),
        }
    }

    fn unexpected(&self, reply: Reply) -> String {
        format!("the store server does not speak this version ({VERSION}): {reply:?}")
    }

    /// A half of the staging buffer that may be filled: its offset in the buffer and its address.
    /// Waits for the server if both are with it.
    pub fn free_half(&mut self) -> Result<(u64, *mut u8), String> {
        if self.outstanding == 2 {
            self.await_released()?;
        }
        let offset = self.next_half * self.half;
        Ok((offset as u64, (self.staging + offset) as *mut u8))
    }

    /// Populates the half that [`Self::free_half`] gives up to `end`, as far as it has not been; how far it is then, at least
    /// `end`. A page takes a microsecond, and several where the machine is a virtual one that has to get it first.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn populate(&mut self, end: usize) -> Result<usize, Errno> {
        /// How much is populated at a time, in bytes.
        const PART: usize = 64 << 10;
        let done = self.populated[self.next_half];
        if end <= done {
            return Ok(done);
        }
        let end = end.next_multiple_of(PART).min(self.half);
        let start = self.staging + self.next_half * self.half + done;
        // SAFETY: populating changes no content.
        match unsafe { memory::advise(start, end - done, libc::MADV_POPULATE_WRITE) } {
            // EINVAL: unknown before Linux 5.14; pages come as they are touched.
            Err(error) if error.0 != libc::EINVAL => return Err(error),
            _ => {}
        }
        self.populated[self.next_half] = end;
        Ok(end)
    }

    /// Whether [`Self::free_half`] would not have to wait.
    pub fn has_free_half(&mut self) -> Result<bool, String> {
        self.has_at_most(1)
    }

    /// Whether both halves are free.
    pub fn is_done(&mut self) -> Result<bool, String> {
        self.has_at_most(0)
    }

    /// Whether no more halves than these are the server's, which may have said so.
    fn has_at_most(&mut self, halves: usize) -> Result<bool, String> {
        while self.outstanding > halves && stasis_sys::sync::poll(self.socket, libc::POLLIN, 0) != Ok(0) {
            self.await_released()?;
        }
        Ok(self.outstanding <= halves)
    }

    /// Begins a dump; whether the store has the base.
    pub fn begin_dump(&self, token: u64, base: Option<Hash>) -> Result<bool, String> {
        self.send(&Request::BeginDump { token, pid: process::getpid() as u32, base }, None)?;
        if base.is_none() {
            return Ok(false);
        }
        match self.receive()? {
            Reply::Begun { base } => Ok(base),
            other => Err(self.unexpected(other)),
        }
    }

    /// The half that [`Self::free_half`] gave last is filled: the next one is to be found, whether or not this one has been handed
    /// over.
    pub fn fill_half(&mut self) {
        self.outstanding += 1;
        self.next_half ^= 1;
    }

    /// Hands over holes, and what was put into a half.
    pub fn hand_over(&mut self, rest: Rest) -> Result<(), String> {
        let mut holes = rest.forget;
        while !holes.is_empty() {
            let ranges = holes.split_off(holes.len().saturating_sub(MAX_RANGES));
            self.send(&Request::Forget { ranges }, None)?;
        }
        if !rest.runs.is_empty() {
            self.send(&Request::Pages { runs: rest.runs }, None)?;
        }
        Ok(())
    }

    fn await_released(&mut self) -> Result<(), String> {
        match self.receive()? {
            Reply::Released => {
                self.outstanding -= 1;
                Ok(())
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Ends the dump; returns when it is durable.
    pub fn end_dump(&mut self, record: Vec<u8>) -> Result<(Hash, DumpStats), String> {
        while self.outstanding > 0 {
            self.await_released()?;
        }
        self.send(&Request::EndDump { record }, None)?;
        match self.receive()? {
            Reply::Dumped { manifest, stats } => Ok((manifest, stats)),
            other => Err(self.unexpected(other)),
        }
    }

    /// Closes the connection: the server forgets an unfinished dump by itself.
    pub fn close(self) {
        let _ = file::close(self.socket);
        if self.file >= 0 {
            let _ = file::close(self.file);
        }
        if self.staging != 0 {
            let (address, len) = self.staging();
            // SAFETY: only this value knows the buffer.
            let _ = unsafe { memory::unmap(address, len) };
        }
    }
}
