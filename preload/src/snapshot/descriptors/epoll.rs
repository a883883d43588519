//! epoll: the interest list, as fdinfo shows it.

use alloc::{format, vec::Vec};

use stasis_protocol::{
    coordinator::Refusal,
    image::{DescriptionKind, EpollTarget},
};
use stasis_sys::file;

use super::{Open, Table, refusal};
use crate::procfs;

/// A target is kept by the kernel as (description, number): it stays in the list when its number is closed while
/// a duplicate of it lives (epoll(7), question 6), and only that number names it. kcmp(2) tells whether
/// the number still stands for it.
pub fn capture(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let mut targets: Vec<EpollTarget> = Vec::new();
    for line in procfs::lines(&open.info) {
        let Some(target) = target(line) else { continue };
        let nth = targets.iter().filter(|known| known.fd == target.fd).count() as u32;
        let is_open = table.opens.binary_search_by_key(&target.fd, |open| open.fd).is_ok();
        // ENOSYS: a kernel without kcmp; then the number is all there is to go by.
        let same = is_open
            && file::is_epoll_target(table.tid, target.fd, open.fd, target.fd, nth)
                .unwrap_or_else(|error| error.0 == libc::ENOSYS && nth == 0);
        // While the program runs, the target may have been closed a moment ago.
        if !same && table.stopped() {
            return Err(refusal(
                open.fd,
                &open.link,
                format!(
                    "it watches what was fd {} when it was added; that number was closed, but a duplicate of it lives",
                    target.fd
                ),
                "let the program remove it (EPOLL_CTL_DEL) before it closes the descriptor",
            ));
        }
        targets.push(target);
    }
    Ok(DescriptionKind::Epoll { targets })
}

/// `tfd: N events: HEX data: HEX  pos:N ino:HEX sdev:HEX`.
fn target(line: &[u8]) -> Option<EpollTarget> {
    let mut words = procfs::words(line);
    if words.next()? != b"tfd:" {
        return None;
    }
    let fd = procfs::decimal(words.next()?)? as i32;
    let events = procfs::hex(words.nth(1)?)? as u32;
    let data = procfs::hex(words.nth(1)?)?;
    Some(EpollTarget { fd, events, data })
}
