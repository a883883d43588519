//! Pseudo-terminals: the master side with what waits in both directions.
//!
//! The kernel shows nobody what waits in a terminal. It is taken and put back while all stand still
//! (`stasis_sys::terminal`), by one process that has the master: to whoever has only the other side it may be the controlling
//! terminal, whose background may not read.

use alloc::vec::Vec;

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, Slave, TerminalQueues, checksum},
};
use stasis_sys::{
    Errno,
    file::{self, Fd},
    sync,
    terminal::{self, Pair, Piece, State, Termios},
};

use super::{CLOSE_IT, Open, Table, ends, terminals};

const TIOCGPTN: u64 = 0x8004_5430;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGETD: u64 = 0x5424;
const TIOCEXCL: u64 = 0x540c;
const TIOCNXCL: u64 = 0x540d;

/// Documentation/admin-guide/devices.txt: the other sides of /dev/ptmx' pseudo-terminals.
pub const SLAVES: u32 = 136;

pub fn is_slave(device: u64) -> bool {
    libc::major(device) == SLAVES
}

fn number(terminal: Fd, request: u64) -> Result<i32, Errno> {
    let mut value = 0i32;
    // SAFETY: all of these requests write an int.
    unsafe { file::ioctl(terminal, request, &mut value) }.map(|_| value)
}

/// The device of a terminal that is open by another name (/dev/tty).
pub fn device(terminal: Fd) -> Option<u64> {
    number(terminal, TIOCGDEV).ok().map(|device| u64::from(device as u32))
}

/// Names a pseudo-terminal by its file system and its number there.
pub fn key(file_system: u64, index: u32) -> u64 {
    let mut bytes = Vec::from(*b"pty");
    bytes.extend(file_system.to_ne_bytes());
    bytes.extend(index.to_ne_bytes());
    checksum(&bytes)
}

/// The file system (devpts) that is mounted at a path.
pub fn file_system(directory: &str) -> u64 {
    file::stat(path!("{directory}").as_c_str()).map_or(0, |stat| stat.st_dev)
}

/// /dev/ptmx belongs to the file system in the directory `pts` beside it (fs/devpts/inode.c).
fn file_system_of(master: &Open) -> u64 {
    match master.link.strip_suffix("/ptmx") {
        Some(directory) if directory.ends_with("/pts") => master.stat.st_dev,
        Some(directory) => file_system(path!("{directory}/pts").as_c_str().to_str().unwrap_or("/dev/pts")),
        None => file_system("/dev/pts"),
    }
}

pub fn master(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let duplicate = table.duplicate(open)?;
    let master = duplicate.0;
    let failed =
        |error| open.failed("it does not answer as the master side of a pseudo-terminal does", error);
    let index = number(master, TIOCGPTN).map_err(failed)? as u32;
    let file_system = file_system_of(open);
    let pty = key(file_system, index);
    let has_hung_up = sync::poll(master, 0, 0).map_err(failed)? & libc::POLLHUP != 0;
    let is_open = table.opens.iter().any(|other| terminals::pty_of(table, other) == pty)
        || table.share.present.binary_search(&ends::named(pty, false)).is_ok();
    let slave = match (has_hung_up, is_open) {
        (true, _) => Slave::Closed,
        (false, true) => Slave::Open,
        (false, false) => Slave::Unopened,
    };
    let name = path!("/dev/pts/{index}");
    // Where that is of another file system, the name is another terminal's.
    let stat = file::stat(name.as_c_str()).ok().filter(|stat| stat.st_dev == file_system);
    let owner =
        stat.map_or((u32::MAX, u32::MAX, 0o620), |stat| (stat.st_uid, stat.st_gid, stat.st_mode & 0o777));
    let modes = Termios::get(master).map_err(failed)?;
    let packet = number(master, TIOCGPKT).unwrap_or(0) != 0;
    let locked = number(master, TIOCGPTLCK).unwrap_or(0) != 0;
    let queues = if slave != Slave::Unopened && table.copies(pty) {
        Some(queues(table, open, master, locked, State { modes, packet, ..State::default() })?)
    } else {
        None
    };
    Ok(DescriptionKind::Pseudoterminal {
        pty,
        index,
        file_system,
        termios: Vec::from(modes.to_bytes()),
        winsize: Vec::from(terminals::winsize(master)),
        locked,
        packet,
        owner,
        slave,
        queues,
    })
}

/// Takes what waits, and puts it back.
fn queues(
    table: &Table<'_>,
    open: &Open,
    master: Fd,
    locked: bool,
    mut state: State,
) -> Result<TerminalQueues, Refusal> {
    let failed = |error| open.failed("what waits in it cannot be read", error);
    if locked {
        terminal::set_locked(master, false).map_err(failed)?;
    }
    let pair = other_side(table, open, master);
    if locked {
        let _ = terminal::set_locked(master, true);
    }
    let (pair, _close) = pair?;
    if number(pair.slave, TIOCGETD).unwrap_or(0) != 0 {
        return open.refuse("it has a line discipline that is not a terminal's (TIOCSETD)", CLOSE_IT);
    }
    let mut queues = TerminalQueues {
        exclusive: number(pair.slave, TIOCGEXCL).unwrap_or(0) != 0,
        ..TerminalQueues::default()
    };
    let taken = pair.take(&mut state, |piece| match piece {
        Piece::Line(bytes) => queues.lines.push(Vec::from(bytes)),
        Piece::Rest(bytes) => queues.rest.extend_from_slice(bytes),
        Piece::Output(bytes) => queues.output.extend_from_slice(bytes),
    });
    (queues.status, queues.stopped) = (state.status, state.stopped);
    let put = pair.put_back(&state, queues.lines.iter().map(Vec::as_slice), &queues.rest, &queues.output);
    taken.map_err(failed)?;
    put.map_err(|error| open.failed("what was waiting in it cannot be put back", error))?;
    Ok(queues)
}

/// The other side, opened for this alone; one of the program's own where no other may be opened (TIOCEXCL).
fn other_side(table: &Table<'_>, open: &Open, master: Fd) -> Result<(Pair, super::Duplicate), Refusal> {
    let error = match Pair::open(master) {
        Ok(pair) => return Ok((pair, super::Duplicate(pair.slave))),
        Err(error) => error,
    };
    let own = table.opens.iter().find(|other| {
        is_slave(other.stat.st_rdev)
            && libc::minor(other.stat.st_rdev) == number(master, TIOCGPTN).unwrap_or(-1) as u32
    });
    let Some(own) = own.filter(|_| error == Errno(libc::EBUSY)) else {
        return Err(open.failed("its other side cannot be opened", error));
    };
    let exclusive = table.duplicate(own)?;
    let _ = terminal::control(exclusive.0, TIOCNXCL, 0);
    let pair = Pair::open(master);
    let _ = terminal::control(exclusive.0, TIOCEXCL, 0);
    let pair = pair.map_err(|error| open.failed("its other side cannot be opened", error))?;
    Ok((pair, super::Duplicate(pair.slave)))
}
