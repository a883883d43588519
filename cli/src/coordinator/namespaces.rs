//! Where processes are (namespaces(7)): a restart puts all of a computation in one place, and makes none that a program
//! has made for itself.

use std::{fs, path::PathBuf};

/// The links of /proc/PID/ns, and what is in each. Those for children are where the next ones will be.
const KINDS: [(&str, &str); 10] = [
    ("mnt", "mounts"),
    ("pid", "process ids"),
    ("pid_for_children", "process ids of its children"),
    ("user", "users"),
    ("net", "network"),
    ("uts", "host name"),
    ("ipc", "IPC objects"),
    ("cgroup", "cgroups"),
    ("time", "clocks"),
    ("time_for_children", "clocks of its children"),
];

/// The namespaces of a process; those that cannot be seen are left out.
pub struct Namespaces(Vec<(&'static str, PathBuf)>);

impl Namespaces {
    pub fn of(pid: u32) -> Self {
        let link = |(kind, what)| Some((what, fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?));
        Self(KINDS.into_iter().filter_map(link).collect())
    }

    /// What is in those namespaces that are none of `places`.
    pub fn beside(&self, places: &[&Self]) -> Vec<&'static str> {
        let mut beside = self.0.clone();
        beside.retain(|(what, link)| {
            let known: Vec<&PathBuf> = places
                .iter()
                .flat_map(|place| &place.0)
                .filter(|other| other.0 == *what)
                .map(|other| &other.1)
                .collect();
            !known.is_empty() && !known.contains(&link)
        });
        beside.into_iter().map(|(what, _)| what).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_where_we_are_is_beside_nothing() {
        let own = Namespaces::of(std::process::id());
        assert!(own.beside(&[&own]).is_empty());
        let elsewhere = Namespaces(vec![("mounts", "mnt:[1]".into())]);
        assert_eq!(elsewhere.beside(&[&own]), ["mounts"]);
        assert!(elsewhere.beside(&[&own, &Namespaces(vec![("mounts", "mnt:[1]".into())])]).is_empty());
    }
}
