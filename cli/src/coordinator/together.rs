//! What processes have together: connections, memory, open file descriptions.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use stasis_protocol::{
    coordinator::{End, Outside, Refusal, Sharable},
    image::IN_FLIGHT,
    store::SharedDescriptor,
};

use super::stopped::CHECKPOINT_THREAD;
use crate::process;

/// The ends whose other ends nobody has and that may not stay outside by this rule, and why.
pub fn alone<'a>(
    ends: impl Iterator<Item = &'a End> + Clone,
    rule: Outside,
) -> impl Iterator<Item = (&'a End, Refusal)> {
    absent(ends).filter(move |end| !may_be_reset(end, rule)).filter_map(|end| Some((end, refusal(end)?)))
}

/// The ends whose other ends nobody has and that may not stay outside; and those that may by this rule.
pub fn outside<'a>(
    ends: impl Iterator<Item = &'a End> + Clone,
    rule: Outside,
) -> (Vec<Refusal>, Vec<Refusal>) {
    let reset = absent(ends.clone()).filter(|end| may_be_reset(end, rule));
    (
        alone(ends, rule).map(|(_, refusal)| refusal).collect(),
        reset.filter_map(|end| end.refusal.clone()).collect(),
    )
}

/// Those whose other ends nobody has.
fn absent<'a>(ends: impl Iterator<Item = &'a End> + Clone) -> impl Iterator<Item = &'a End> {
    let present: BTreeSet<u64> = ends.clone().map(|end| end.has).collect();
    ends.filter(move |end| !present.contains(&end.wants))
}

fn may_be_reset(end: &End, rule: Outside) -> bool {
    end.socket && rule == Outside::Reset
}

/// Why an end whose other end nobody has may not stay outside. A terminal may be open nowhere.
fn refusal(end: &End) -> Option<Refusal> {
    let refusal = end.refusal.clone()?;
    let Some(terminal) = end.terminal else { return Some(refusal) };
    let pid = opener(terminal)?;
    Some(Refusal { reason: format!("{}, by pid {pid}", refusal.reason), ..refusal })
}

/// A process that has a terminal open, as far as this user may see.
fn opener((file_system, device): (u64, u64)) -> Option<u32> {
    let name = format!("/dev/pts/{}", libc::minor(device));
    let is_it = |path: &Path| {
        fs::read_link(path).is_ok_and(|link| link == Path::new(&name))
            && fs::metadata(path).is_ok_and(|found| found.dev() == file_system && found.rdev() == device)
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        descriptors.is_ok_and(|entries| entries.flatten().any(|entry| is_it(&entry.path())))
    })
}

/// For each process, in their order, the objects that one before it copies.
pub fn elsewhere<'a>(objects: impl Iterator<Item = &'a [u64]>) -> Vec<Vec<u64>> {
    let mut seen = BTreeSet::new();
    objects
        .map(|own| {
            let mut others: Vec<u64> = own.iter().copied().filter(|&key| !seen.insert(key)).collect();
            others.sort_unstable();
            others
        })
        .collect()
}

/// A process whose descriptors may be shared.
pub struct Holder<'a> {
    pub pid: u32,
    pub real_pid: u32,
    pub sharable: &'a [Sharable],
}

/// The open file descriptions that several processes share. They must stand still.
pub fn shared(holders: &[Holder<'_>]) -> Vec<Vec<SharedDescriptor>> {
    let mut candidates: BTreeMap<u64, Vec<(usize, i32)>> = BTreeMap::new();
    for (index, holder) in holders.iter().enumerate() {
        for sharable in holder.sharable {
            candidates.entry(sharable.key).or_default().push((index, sharable.fd));
        }
    }
    let mut shared = Vec::new();
    for alike in candidates.into_values().filter(|alike| alike.len() > 1) {
        // Each group is represented by its first; kcmp(2) orders descriptions, so that it is found by bisection.
        let mut groups: Vec<Vec<(usize, i32)>> = Vec::new();
        for one in alike {
            let found =
                groups.binary_search_by(|group| compare(holders, group[0], one).unwrap_or(Ordering::Less));
            match found {
                Ok(at) => groups[at].push(one),
                Err(at) => groups.insert(at, vec![one]),
            }
        }
        for group in groups.into_iter().filter(|group| group.len() > 1) {
            let descriptor = |(index, fd): (usize, i32)| SharedDescriptor { pid: holders[index].pid, fd };
            shared.push(group.into_iter().map(descriptor).collect());
        }
    }
    shared
}

/// kcmp(2), KCMP_FILE.
fn compare(holders: &[Holder<'_>], one: (usize, i32), other: (usize, i32)) -> io::Result<Ordering> {
    const KCMP_FILE: i32 = 0;
    let at = |(index, fd): (usize, i32)| -> io::Result<(u32, i32)> {
        let pid = holders[index].real_pid;
        if fd < IN_FLIGHT { Ok((pid, fd)) } else { Ok((checkpoint_thread(pid)?, fd - IN_FLIGHT)) }
    };
    let (one, other) = (at(one)?, at(other)?);
    // SAFETY: five integers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one.0, other.0, KCMP_FILE, one.1, other.1) };
    match order {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The checkpoint thread of a process, which has a table of descriptors of its own; told by its name.
fn checkpoint_thread(pid: u32) -> io::Result<u32> {
    let threads = process::threads(pid)?;
    let thread = threads.iter().find(|thread| thread.name == CHECKPOINT_THREAD);
    thread.map(|thread| thread.tid).ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_object_is_copied_by_the_first_that_has_it() {
        let objects: [&[u64]; 3] = [&[3, 1], &[1, 2], &[2, 3, 4]];
        assert_eq!(elsewhere(objects.into_iter()), [vec![], vec![1], vec![2, 3]]);
    }

    #[test]
    fn an_end_is_outside_when_nobody_has_the_other() {
        let refusal = |what: &str| Refusal { what: what.into(), reason: "r".into(), remedy: "s".into() };
        let end = |has, wants, what| End {
            has,
            wants,
            refusal: Some(refusal(what)),
            socket: what == "c",
            terminal: None,
        };
        let ends = [
            end(1, 2, "a"),
            end(2, 1, "b"),
            end(5, 6, "c"),
            End { has: 7, wants: 8, refusal: None, socket: true, terminal: None },
        ];
        assert_eq!(outside(ends.iter(), Outside::Refuse), (vec![refusal("c")], vec![]));
        assert_eq!(outside(ends.iter(), Outside::Reset), (vec![], vec![refusal("c")]));
    }

    #[test]
    fn descriptions_are_told_apart_by_the_kernel() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (copy, other) = (file.try_clone().unwrap(), std::fs::File::open("/dev/null").unwrap());
        let pid = std::process::id();
        let sharable: Vec<Sharable> =
            [&file, &copy, &other].map(|file| Sharable { fd: file.as_raw_fd(), key: 1 }).into();
        let holders: Vec<Holder<'_>> = sharable
            .iter()
            .map(|one| Holder { pid, real_pid: pid, sharable: std::slice::from_ref(one) })
            .collect();
        let shared = shared(&holders);
        assert_eq!(shared.len(), 1, "{shared:?}");
        let mut fds: Vec<i32> = shared[0].iter().map(|shared| shared.fd).collect();
        fds.sort_unstable();
        let mut expected = [file.as_raw_fd(), copy.as_raw_fd()];
        expected.sort_unstable();
        assert_eq!(fds, expected);
    }
}
