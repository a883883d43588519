//! What processes have together: connections, memory, open file descriptions.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    io,
};

use stasis_protocol::{
    coordinator::{End, Outside, Refusal, Sharable},
    store::SharedDescriptor,
};

/// The ends whose other ends nobody has and that may not stay outside by this rule.
pub fn alone<'a>(
    ends: impl Iterator<Item = &'a End> + Clone,
    rule: Outside,
) -> impl Iterator<Item = &'a End> {
    let present: BTreeSet<u64> = ends.clone().map(|end| end.has).collect();
    ends.filter(move |end| {
        let may = end.refusal.is_none() || end.socket && rule == Outside::Reset;
        !may && !present.contains(&end.wants)
    })
}

/// The ends whose other ends nobody has and that may not stay outside; and those that may by this rule.
pub fn outside<'a>(
    ends: impl Iterator<Item = &'a End> + Clone,
    rule: Outside,
) -> (Vec<Refusal>, Vec<Refusal>) {
    let present: BTreeSet<u64> = ends.clone().map(|end| end.has).collect();
    let alone = ends.filter(|end| !present.contains(&end.wants) && end.refusal.is_some());
    let (reset, refused): (Vec<&End>, Vec<&End>) =
        alone.partition(|end| end.socket && rule == Outside::Reset);
    let reasons = |ends: Vec<&End>| ends.into_iter().filter_map(|end| end.refusal.clone()).collect();
    (reasons(refused), reasons(reset))
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
    let pid = |(index, _): (usize, i32)| holders[index].real_pid as libc::pid_t;
    // SAFETY: five integers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, pid(one), pid(other), KCMP_FILE, one.1, other.1) };
    match order {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::last_os_error()),
    }
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
        let end = |has, wants, what| End { has, wants, refusal: Some(refusal(what)), socket: what == "c" };
        let ends = [
            end(1, 2, "a"),
            end(2, 1, "b"),
            end(5, 6, "c"),
            End { has: 7, wants: 8, refusal: None, socket: true },
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
