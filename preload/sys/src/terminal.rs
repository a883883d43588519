//! Pseudo-terminals: what waits in them is taken, and put back so that who reads it finds the same.
//!
//! The kernel lets nobody look into a terminal's queues: they can only be read. What was read is put back from the other
//! side, under settings that let every byte through as it is (drivers/tty/n_tty.c): nothing is echoed again, no
//! signal is sent again. All who use the terminal must stand still.

use crate::{
    Errno, Result,
    call::call,
    file::{self, Fd},
    process, sync,
};

const TCGETS: u64 = 0x5401;
const TCSETS: u64 = 0x5402;
const TCXONC: u64 = 0x540a;
const TCFLSH: u64 = 0x540b;
const TIOCGPGRP: u64 = 0x540f;
const TIOCSPGRP: u64 = 0x5410;
const TIOCPKT: u64 = 0x5420;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTPEER: u64 = 0x5441;

/// struct termios as the kernel has it (asm-generic/termbits.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Termios {
    pub input: u32,
    pub output: u32,
    pub control: u32,
    pub local: u32,
    pub line: u8,
    pub characters: [u8; 19],
}

impl Termios {
    pub const SIZE: usize = size_of::<Self>();

    pub fn get(terminal: Fd) -> Result<Self> {
        let mut modes = Self::default();
        // SAFETY: TCGETS writes struct termios.
        unsafe { file::ioctl(terminal, TCGETS, &mut modes) }.map(|_| modes)
    }

    pub fn set(&self, terminal: Fd) -> Result<()> {
        // SAFETY: TCSETS reads struct termios.
        unsafe { file::ioctl(terminal, TCSETS, &mut self.clone()) }.map(drop)
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            input: word(0)?,
            output: word(4)?,
            control: word(8)?,
            local: word(12)?,
            line: *bytes.get(16)?,
            characters: bytes.get(17..36)?.try_into().ok()?,
        })
    }

    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (four, word) in
            bytes.as_chunks_mut::<4>().0.iter_mut().zip([self.input, self.output, self.control, self.local])
        {
            *four = word.to_ne_bytes();
        }
        bytes[16] = self.line;
        bytes[17..].copy_from_slice(&self.characters);
        bytes
    }

    /// Whether reads give lines (n_tty.c, `input_available_p`).
    fn has_lines(&self) -> bool {
        self.local & libc::ICANON != 0 && self.local & libc::EXTPROC == 0
    }

    /// Lets every byte through. EXTPROC stays: when it changes, the kernel forgets where lines end.
    fn raw(&self) -> Self {
        let mut modes = Self { input: 0, output: 0, local: self.local & libc::EXTPROC, ..*self };
        modes.characters = [0; 19];
        modes.characters[libc::VMIN] = 1;
        modes
    }

    /// The same with lines. What ends them, and stops output, can be quoted.
    fn lines(&self) -> Self {
        let mut modes = self.raw();
        modes.input = libc::IXON;
        modes.local = libc::ICANON | libc::IEXTEN;
        modes.characters[libc::VMIN] = 0;
        modes.characters[libc::VEOF] = EOF;
        modes.characters[libc::VLNEXT] = QUOTE;
        modes.characters[libc::VSTOP] = STOP;
        modes.characters[libc::VSTART] = START;
        for end in [libc::VEOL, libc::VEOL2] {
            if ![EOF, QUOTE, STOP, START].contains(&self.characters[end]) {
                modes.characters[end] = self.characters[end];
            }
        }
        modes
    }

    fn ends_line(&self, byte: u8) -> bool {
        let ends = [self.characters[libc::VEOL], self.characters[libc::VEOL2]];
        byte == b'\n' || byte != 0 && ends.contains(&byte)
    }
}

/// The largest piece that is put into one buffer (tty_buffer.c, TTY_BUFFER_PAGE), and what small ones were asked for.
const LARGE: usize = 1792;
const SMALL: usize = 256;

const EOF: u8 = 0x04;
const START: u8 = 0x11;
const STOP: u8 = 0x13;
const QUOTE: u8 = 0x16;

/// How output came to be stopped, see ioctl_tty(2), TCXONC.
pub mod stopped {
    pub const NOT: u8 = 0;
    /// By the STOP character.
    pub const TYPED: u8 = 1;
    /// By TCOOFF.
    pub const CALLED: u8 = 2;
}

/// What was taken, piece by piece.
pub enum Piece<'a> {
    /// A line that waits to be read; empty: an end of file.
    Line(&'a [u8]),
    /// Of a line that is not finished, or of what waits in a terminal without lines.
    Rest(&'a [u8]),
    /// What was written to the terminal and the master has not read.
    Output(&'a [u8]),
}

/// What is there beside the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub modes: Termios,
    /// TIOCPKT, and the status that waits for the master (ioctl_tty(2)).
    pub packet: bool,
    pub status: u8,
    /// See [`stopped`].
    pub stopped: u8,
}

/// Both sides of a pseudo-terminal.
#[derive(Clone, Copy)]
pub struct Pair {
    pub master: Fd,
    pub slave: Fd,
}

impl Pair {
    /// Opens the other side of `master`, which nobody may use meanwhile, for this alone.
    pub fn open(master: Fd) -> Result<Self> {
        peer(master, libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK).map(|slave| Self { master, slave })
    }

    /// Takes what waits in both directions. `state` has `modes` and `packet`, and gets the rest.
    pub fn take(&self, state: &mut State, mut each: impl FnMut(Piece<'_>)) -> Result<()> {
        let group = Foreground::enter(self.slave);
        let taken = self.try_take(state, &mut each);
        group.leave(self.slave);
        taken
    }

    fn try_take(&self, state: &mut State, each: &mut dyn FnMut(Piece<'_>)) -> Result<()> {
        let mut buffer = [0; 8192];
        if state.packet {
            while sync::poll(self.master, libc::POLLPRI, 0)? & libc::POLLPRI != 0 {
                if file::read(self.master, &mut buffer[..1])? == 0 {
                    break;
                }
                state.status |= buffer[0];
            }
            set_packet(self.master, false)?;
        }
        self.take_output(&mut buffer, each)?;
        // Its own queue is empty: nothing else keeps it from being written to (drivers/tty/pty.c, `pty_write_room`).
        if !self.can_write()? {
            control(self.slave, TCXONC, 1)?;
            state.stopped = if self.can_write()? { stopped::CALLED } else { stopped::TYPED };
        }
        if state.modes.has_lines() {
            // The buffer has no room for more.
            for _ in 0..4096 {
                match file::read(self.slave, &mut buffer) {
                    Ok(len) => each(Piece::Line(&buffer[..len])),
                    Err(Errno(libc::EAGAIN)) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        state.modes.raw().set(self.slave)?;
        // This moves what waits behind a full buffer, too.
        while sync::poll(self.slave, libc::POLLIN, 0)? & libc::POLLIN != 0 {
            match file::read(self.slave, &mut buffer)? {
                0 => break,
                len => each(Piece::Rest(&buffer[..len])),
            }
        }
        // Echoes that had no room.
        self.take_output(&mut buffer, each)
    }

    fn take_output(&self, buffer: &mut [u8], each: &mut dyn FnMut(Piece<'_>)) -> Result<()> {
        while sync::poll(self.master, libc::POLLIN, 0)? & libc::POLLIN != 0 {
            match file::read(self.master, buffer)? {
                0 => break,
                len => each(Piece::Output(&buffer[..len])),
            }
        }
        Ok(())
    }

    fn can_write(&self) -> Result<bool> {
        Ok(sync::poll(self.slave, libc::POLLOUT, 0)? & libc::POLLOUT != 0)
    }

    /// Puts back what was taken, into queues that are empty, and the settings.
    ///
    /// # Errors
    /// EAGAIN when it does not fit.
    pub fn put_back<'a>(
        &self,
        state: &State,
        lines: impl Iterator<Item = &'a [u8]> + Clone,
        rest: &[u8],
        output: &[u8],
    ) -> Result<()> {
        let put = self.try_put_back(state, lines, rest, output);
        let set = state.modes.set(self.slave);
        let again = if state.packet && state.status == 0 { set_packet(self.master, true) } else { Ok(()) };
        put.and(set).and(again)
    }

    fn try_put_back<'a>(
        &self,
        state: &State,
        lines: impl Iterator<Item = &'a [u8]> + Clone,
        rest: &[u8],
        output: &[u8],
    ) -> Result<()> {
        if state.packet && state.status != 0 {
            // A flush of what is empty is told like any other; what stops output is told when settings change.
            set_packet(self.master, true)?;
            for (bit, queue) in [(1, 0), (2, 1)] {
                if state.status & bit != 0 {
                    control(self.slave, TCFLSH, queue)?;
                }
            }
        }
        let raw = state.modes.raw();
        if state.modes.has_lines() {
            let modes = state.modes.lines();
            modes.set(self.slave)?;
            for line in lines.clone() {
                match line.split_last() {
                    Some((&last, before)) if modes.ends_line(last) => {
                        self.type_quoted(&modes, before)?;
                        self.type_in(&[last])?;
                    }
                    _ => {
                        self.type_quoted(&modes, line)?;
                        self.type_in(&[EOF])?;
                    }
                }
            }
            self.type_quoted(&modes, rest)?;
            if !rest.is_empty() || lines.clone().next().is_some() {
                // Seen when all before it has been: nothing else tells that.
                self.type_in(&[STOP])?;
                wait(|| self.can_write().map(|can| !can))?;
            }
            // Without IXON output goes on.
            Termios { input: 0, ..modes }.set(self.slave)?;
        } else {
            const BUFFER: usize = 4095;
            raw.set(self.slave)?;
            self.type_in(rest)?;
            wait(|| file::unread(self.slave).map(|count| count >= rest.len().min(BUFFER)))?;
        }
        self.write_again(output)?;
        match state.stopped {
            stopped::CALLED => control(self.slave, TCXONC, 0),
            stopped::TYPED => {
                let mut modes = if state.modes.has_lines() { state.modes.lines() } else { raw };
                modes.input |= libc::IXON;
                modes.characters[libc::VSTOP] = STOP;
                modes.characters[libc::VSTART] = START;
                modes.set(self.slave)?;
                self.type_in(&[STOP])?;
                wait(|| self.can_write().map(|can| !can))
            }
            _ => Ok(()),
        }
    }

    /// Writes what the master is to read, packed at least as densely as it was by whatever had written it.
    ///
    /// A buffer holds twice what was asked for when it was made, and is left when the next write does not fit (drivers/tty/tty_buffer.c,
    /// `__tty_buffer_request_room`). So two writes of the largest size fill one. Where no more may be made, small ones that were used
    /// before are given out still.
    ///
    /// # Errors
    /// EAGAIN when it does not fit.
    fn write_again(&self, output: &[u8]) -> Result<()> {
        const TRIES: usize = 20;
        match self.pack(output, LARGE, TRIES) {
            Err(Errno(libc::EAGAIN)) => {}
            packed => return packed,
        }
        let mut buffer = [0; 8192];
        self.take_output(&mut buffer, &mut |_| {})?;
        self.renew(&mut buffer)?;
        // What the master's own queue has room for.
        let (first, behind) = output.split_at(output.len().min(4096));
        self.pack(first, SMALL, TRIES)?;
        wait(|| file::unread(self.master).map(|count| count >= first.len().min(4095)))?;
        // Four large buffers and a part of one are as much as may be made with one more behind them.
        let (mut left, sizes) = (behind, [[LARGE; 8].as_slice(), &[512; 2], &[LARGE; 2]]);
        for size in sizes.into_iter().flatten() {
            let part = &left[..left.len().min(*size)];
            left = &left[file::write(self.slave, part).unwrap_or(0)..];
        }
        self.pack(left, SMALL, TRIES)
    }

    /// Writes in pieces of a size, and in small ones where those do not fit.
    fn pack(&self, output: &[u8], size: usize, tries: usize) -> Result<()> {
        let mut left = output;
        wait_for(tries, || {
            while !left.is_empty() {
                let write = |size| match file::write(self.slave, &left[..left.len().min(size)]) {
                    Err(Errno(libc::EAGAIN)) => Ok(0),
                    written => written,
                };
                let written = match write(size)? {
                    0 => write(SMALL)?,
                    written => written,
                };
                if written == 0 {
                    // This moves on what waits behind the buffer.
                    sync::poll(self.master, libc::POLLIN, 0)?;
                    return Ok(false);
                }
                left = &left[written..];
            }
            Ok(true)
        })
    }

    /// Gives an empty queue as many small buffers as it may have, and lets go of a large one that has been read and is kept.
    fn renew(&self, buffer: &mut [u8]) -> Result<()> {
        let filler = [0; SMALL];
        while matches!(file::write(self.slave, &filler), Ok(1..)) {}
        self.take_output(buffer, &mut |_| {})?;
        for _ in 0..LARGE * 2 / SMALL {
            file::write(self.slave, &filler)?;
            wait(|| sync::poll(self.master, libc::POLLIN, 0).map(|ready| ready & libc::POLLIN != 0))?;
            self.take_output(buffer, &mut |_| {})?;
        }
        Ok(())
    }

    fn type_quoted(&self, modes: &Termios, bytes: &[u8]) -> Result<()> {
        let mut quoted = [0; 512];
        for part in bytes.chunks(quoted.len() / 2) {
            let mut len = 0;
            for &byte in part {
                if modes.ends_line(byte) || [EOF, QUOTE, STOP, START].contains(&byte) {
                    quoted[len] = QUOTE;
                    len += 1;
                }
                quoted[len] = byte;
                len += 1;
            }
            self.type_in(&quoted[..len])?;
        }
        Ok(())
    }

    /// Writes to the master without waiting in the kernel, whatever its flags: a little may always be written where
    /// anything may.
    fn type_in(&self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(256) {
            let mut left = part;
            while !left.is_empty() {
                wait(|| sync::poll(self.master, libc::POLLOUT, 0).map(|ready| ready & libc::POLLOUT != 0))?;
                left = &left[file::write(self.master, left)?..];
            }
        }
        Ok(())
    }
}

/// The group that may read from a terminal: others of its session may not, and are told so by an error where they block
/// SIGTTIN.
struct Foreground(Option<i32>);

impl Foreground {
    fn enter(terminal: Fd) -> Self {
        let (mut group, mut own) = (0i32, process::numbers(libc::SYS_getpgid, [0; 5]).unwrap_or(0) as i32);
        // SAFETY: TIOCGPGRP writes an int, and fails where it is not the calling process' controlling terminal.
        let known = unsafe { file::ioctl(terminal, TIOCGPGRP, &mut group) }.is_ok();
        if !known || group == own {
            return Self(None);
        }
        // SAFETY: TIOCSPGRP reads an int.
        let _ = unsafe { file::ioctl(terminal, TIOCSPGRP, &mut own) };
        Self(Some(group))
    }

    fn leave(self, terminal: Fd) {
        if let Self(Some(mut group)) = self {
            // SAFETY: as above.
            let _ = unsafe { file::ioctl(terminal, TIOCSPGRP, &mut group) };
        }
    }
}

/// Opens the other side of a master (Linux 4.13), close-on-exec. Not by O_CLOEXEC: the kernel would keep that flag with the
/// description, and show it of every descriptor (fs/proc/fd.c).
pub fn peer(master: Fd, flags: i32) -> Result<Fd> {
    // SAFETY: no memory is touched.
    let fd =
        unsafe { call(libc::SYS_ioctl, [master as usize, TIOCGPTPEER as usize, flags as usize, 0, 0, 0]) }?;
    let _ = file::fcntl(fd as Fd, libc::F_SETFD, libc::FD_CLOEXEC as usize);
    Ok(fd as Fd)
}

/// Whether the other side may not be opened.
pub fn set_locked(master: Fd, locked: bool) -> Result<()> {
    // SAFETY: TIOCSPTLCK reads an int.
    unsafe { file::ioctl(master, TIOCSPTLCK, &mut i32::from(locked)) }.map(drop)
}

pub fn set_packet(master: Fd, packet: bool) -> Result<()> {
    // SAFETY: TIOCPKT reads an int.
    unsafe { file::ioctl(master, TIOCPKT, &mut i32::from(packet)) }.map(drop)
}

/// ioctl(2) with a number.
pub fn control(terminal: Fd, request: u64, argument: usize) -> Result<()> {
    // SAFETY: requests with a number touch no memory.
    unsafe { call(libc::SYS_ioctl, [terminal as usize, request as usize, argument, 0, 0, 0]) }.map(drop)
}

/// Waits for what a worker of the kernel does in microseconds, and tells nobody of.
fn wait(is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(2000, is_so)
}

/// The same, for so many milliseconds at most.
fn wait_for(tries: usize, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    const AT_ONCE: usize = 100;
    for attempt in 0..AT_ONCE + tries {
        if is_so()? {
            return Ok(());
        }
        sync::poll(-1, 0, i32::from(attempt >= AT_ONCE))?;
    }
    Err(Errno(libc::EAGAIN))
}
