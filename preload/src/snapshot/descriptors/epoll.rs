//! epoll: the interest list, as fdinfo shows it.

use alloc::{format, vec::Vec};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, EpollTarget},
};
use stasis_sys::file;

use super::{Open, Table, refusal};
use crate::procfs;

/// A target is kept by the kernel as (description, number): it stays in the list when its number is closed while
/// a duplicate of it lives (epoll(7), question 6), in this process or in another one that has the epoll as well. kcmp(2) tells
/// what the number stood for. Of each target, `description` is an index into the table's descriptors, see [`number`].
pub fn capture(table: &Table<'_>, open: &Open) -> Result<DescriptionKind, Refusal> {
    let mut targets: Vec<EpollTarget> = Vec::new();
    for line in procfs::lines(&open.info) {
        let Some((mut target, inode)) = target(line) else { continue };
        let nth = targets.iter().filter(|known| known.fd == target.fd).count() as u32;
        target.description = holder(table, open, target.fd, inode, nth).map(|index| index as u32);
        // While the program runs, the target may have been closed a moment ago.
        if target.description.is_none() && table.stopped() && table.share.told.is_none() {
            return Err(refusal(
                open.fd,
                &open.link,
                format!(
                    "it watches what was fd {} when it was added; that was closed, but something else keeps it",
                    target.fd
                ),
                "let the program remove it (EPOLL_CTL_DEL) before it closes the descriptor",
            ));
        }
        targets.push(target);
    }
    Ok(DescriptionKind::Epoll { targets })
}

/// Replaces descriptors of the table by what they stand for: `numbers` has the description of each.
pub fn number(descriptions: &mut [Description], numbers: &[u32]) {
    for description in descriptions {
        let DescriptionKind::Epoll { targets } = &mut description.kind else { continue };
        for description in targets.iter_mut().filter_map(|target| target.description.as_mut()) {
            *description = numbers[*description as usize];
        }
    }
}

/// The descriptor, by its place in the table, that stands for the `nth` of the targets that were added by the number `fd`: that
/// number, or a duplicate.
fn holder(table: &Table<'_>, epoll: &Open, fd: i32, inode: u64, nth: u32) -> Option<usize> {
    let at = table.opens.binary_search_by_key(&fd, |open| open.fd).ok();
    let is_target = |index: usize| {
        let known = &table.opens[index];
        match file::is_epoll_target(table.tid, known.fd, epoll.fd, fd, nth) {
            Ok(same) => same,
            // A kernel without kcmp: the number is all there is to go by.
            Err(error) => error.0 == libc::ENOSYS && nth == 0 && known.fd == fd,
        }
    };
    let may_be =
        |index: &usize| table.opens[*index].stat.st_ino == inode && !table.opens[*index].is_in_flight();
    let others = (0..table.opens.len()).filter(may_be);
    at.into_iter().chain(others).find(|&index| is_target(index))
}

/// A target and the inode of what it watches: `tfd: N events: HEX data: HEX  pos:N ino:HEX sdev:HEX`.
fn target(line: &[u8]) -> Option<(EpollTarget, u64)> {
    let mut words = procfs::words(line);
    if words.next()? != b"tfd:" {
        return None;
    }
    let fd = procfs::decimal(words.next()?)? as i32;
    let events = procfs::hex(words.nth(1)?)? as u32;
    let data = procfs::hex(words.nth(1)?)?;
    let inode = words.find_map(|word| procfs::hex(word.strip_prefix(b"ino:")?))?;
    Some((EpollTarget { fd, description: None, events, data }, inode))
}
