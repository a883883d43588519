//! Terminals, and the few character devices that have no state.

use core::sync::atomic::Ordering;

use stasis_protocol::{coordinator::Refusal, image::DescriptionKind};
use stasis_sys::{
    file::{self, Fd},
    terminal::Termios,
};

use super::{CLOSE_IT, Open, Table, bytes, files, inherited, pty};
use crate::{procfs, stop, threads};

const TIOCGWINSZ: u64 = 0x5413;
const WINSIZE: usize = 8;

/// Device numbers: Documentation/admin-guide/devices.txt.
pub fn character_device(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let (major, minor) = (libc::major(open.stat.st_rdev), libc::minor(open.stat.st_rdev));
    match (major, minor) {
        // null, zero, full, random, urandom, kmsg
        (1, 3 | 5 | 7 | 8 | 9 | 11) if !files::is_at_its_path(open) => {
            open.refuse("its path does not lead to it any more", CLOSE_IT)
        }
        (1, 3 | 5 | 7 | 8 | 9 | 11) => {
            Ok(DescriptionKind::CharacterDevice { path: open.link.clone(), rdev: open.stat.st_rdev })
        }
        (5, 2) => pty::master(table, open),
        // ttyN and ttySN; tty, console; the slave sides of pseudo-terminals; serial lines on USB
        (4 | 5 | 136..=143 | 166 | 188 | 204 | 229, _) => terminal(table, open),
        _ => inherited(open)
            .map_or_else(|| open.refuse("the state of a device of this kind cannot be saved", CLOSE_IT), Ok),
    }
}

fn terminal(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let (mut termios, mut winsize) = ([0u8; Termios::SIZE], [0u8; WINSIZE]);
    // The name goes with the master side (drivers/tty/pty.c, `pty_close`).
    let hung_up = pty::is_slave(open.stat.st_rdev) && open.link.ends_with(" (deleted)");
    if table.stopped() && !hung_up {
        let duplicate = table.duplicate(open)?;
        termios = Termios::get(duplicate.0).unwrap_or_default().to_bytes();
        winsize = self::winsize(duplicate.0);
    }
    Ok(DescriptionKind::Terminal {
        path: open.link.clone(),
        pty: pty_of(table, open),
        hung_up,
        controlling: is_dev_tty(open) || controlling_terminal(table.tid) == Some(open.stat.st_rdev),
        termios: bytes(&termios, Termios::SIZE),
        winsize: bytes(&winsize, WINSIZE),
    })
}

fn is_dev_tty(open: &Open) -> bool {
    (libc::major(open.stat.st_rdev), libc::minor(open.stat.st_rdev)) == (5, 0)
}

/// Names the pseudo-terminal that a descriptor is the slave side of; 0 where it is of none.
pub fn pty_of(table: &Table<'_>, open: &Open) -> u64 {
    if open.stat.st_mode & libc::S_IFMT != libc::S_IFCHR || open.flags as i32 & libc::O_PATH != 0 {
        return 0;
    }
    if pty::is_slave(open.stat.st_rdev) {
        return pty::key(open.stat.st_dev, libc::minor(open.stat.st_rdev));
    }
    let device =
        is_dev_tty(open).then(|| table.duplicate(open).ok().and_then(|tty| pty::device(tty.0))).flatten();
    device
        .filter(|device| pty::is_slave(*device))
        .map_or(0, |device| pty::key(pty::file_system("/dev/pts"), libc::minor(device)))
}

/// What fdinfo shows of a terminal that was opened by TIOCGPTPEER with O_CLOEXEC is the description's, not the descriptor's
/// (drivers/tty/pty.c, `ptm_open_peer`): there a thread of the program is asked.
pub fn closes_on_exec(table: &Table<'_>, open: &Open) -> bool {
    let is_doubtful = || {
        let duplicate = table.duplicate(open).ok()?;
        let flags = file::fcntl(duplicate.0, libc::F_GETFL, 0).ok()?;
        (flags as i32 & libc::O_CLOEXEC != 0).then_some(())
    };
    if !open.close_on_exec || !table.stopped() || !pty::is_slave(open.stat.st_rdev) || is_doubtful().is_none()
    {
        return open.close_on_exec;
    }
    let slot = threads::all().find(|slot| slot.tid.load(Ordering::Relaxed) == table.tid);
    let flags = slot.and_then(|slot| stop::descriptor_flags(slot, open.fd));
    flags.is_none_or(|flags| flags & libc::FD_CLOEXEC != 0)
}

/// struct winsize, four u16; zeros for a terminal whose other side is gone: it answers EIO to everything, which the program is
/// left to find out.
pub fn winsize(terminal: Fd) -> [u8; WINSIZE] {
    let mut size = [0u8; WINSIZE];
    // SAFETY: TIOCGWINSZ writes struct winsize.
    let _ = unsafe { file::ioctl(terminal, TIOCGWINSZ, &mut size) };
    size
}

/// The device number of the controlling terminal (proc(5), /proc/pid/stat, field 7).
fn controlling_terminal(tid: i32) -> Option<u64> {
    let stat = procfs::read(path!("/proc/self/task/{tid}/stat").as_c_str()).ok()?;
    let after = stat.iter().rposition(|&byte| byte == b')')? + 1;
    // Field 3 is the first behind the name; the kernel prints the number as a signed int.
    procfs::words(&stat[after..]).nth(4).and_then(procfs::signed).map(|number| u64::from(number as u32))
}
