//! Terminals, and the few character devices that have no state.

use stasis_protocol::{coordinator::Refusal, image::DescriptionKind};
use stasis_sys::file;

use super::{CLOSE_IT, Open, Table, bytes, inherited};
use crate::procfs;

const TCGETS: u64 = 0x5401;
const TIOCGWINSZ: u64 = 0x5413;
/// The kernel's struct termios (asm-generic/termbits.h), in bytes.
const TERMIOS: usize = 36;
const WINSIZE: usize = 8;

/// Device numbers: Documentation/admin-guide/devices.txt.
pub fn character_device(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let (major, minor) = (libc::major(open.stat.st_rdev), libc::minor(open.stat.st_rdev));
    match (major, minor) {
        // null, zero, full, random, urandom, kmsg
        (1, 3 | 5 | 7 | 8 | 9 | 11) => {
            Ok(DescriptionKind::CharacterDevice { path: open.link.clone(), rdev: open.stat.st_rdev })
        }
        (5, 2) | (128..=135, _) => inherited(open).map_or_else(
            || {
                open.refuse(
                    "it is the master side of a pseudo-terminal; who uses the other side is not known",
                    CLOSE_IT,
                )
            },
            Ok,
        ),
        // ttyN and ttySN; tty, console; the slave sides of pseudo-terminals; serial lines on USB
        (4 | 5 | 136..=143 | 166 | 188 | 204 | 229, _) => terminal(table, open),
        _ => inherited(open)
            .map_or_else(|| open.refuse("the state of a device of this kind cannot be saved", CLOSE_IT), Ok),
    }
}

fn terminal(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let (mut termios, mut winsize) = ([0u8; 64], [0u8; WINSIZE]);
    if table.stopped() {
        let duplicate = table.duplicate(open)?;
        // A terminal whose other side is gone answers EIO to everything; the program is left to find that out.
        // SAFETY: TCGETS writes struct termios, which is shorter than the buffer.
        let _ = unsafe { file::ioctl(duplicate.0, TCGETS, &mut termios) };
        // SAFETY: TIOCGWINSZ writes struct winsize, four u16.
        let _ = unsafe { file::ioctl(duplicate.0, TIOCGWINSZ, &mut winsize) };
    }
    let is_dev_tty = (libc::major(open.stat.st_rdev), libc::minor(open.stat.st_rdev)) == (5, 0);
    Ok(DescriptionKind::Terminal {
        path: open.link.clone(),
        controlling: is_dev_tty || controlling_terminal(table.tid) == Some(open.stat.st_rdev),
        termios: bytes(&termios, TERMIOS),
        winsize: bytes(&winsize, WINSIZE),
    })
}

/// The device number of the controlling terminal (proc(5), /proc/pid/stat, field 7).
fn controlling_terminal(tid: i32) -> Option<u64> {
    let stat = procfs::read(path!("/proc/self/task/{tid}/stat").as_c_str()).ok()?;
    let after = stat.iter().rposition(|&byte| byte == b')')? + 1;
    // Field 3 is the first behind the name; the kernel prints the number as a signed int.
    procfs::words(&stat[after..]).nth(4).and_then(procfs::signed).map(|number| u64::from(number as u32))
}
