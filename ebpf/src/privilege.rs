//! Giving up what is not needed once the programs are loaded: capabilities for good, and which are needed is found
//! out by trying.

use std::io;

use anyhow::Context as _;

/// linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;
const CAP_CHECKPOINT_RESTORE: u32 = 40;

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// A set of capabilities, a bit for each.
type Set = u64;

fn permitted() -> io::Result<Set> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: the kernel writes two `Data` for this version (capget(2)).
    match unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } {
        0 => Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(effective: Set, permitted: Set) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let half = |set: Set, shift: u32| (set >> shift) as u32;
    let data = [0, 32].map(|shift| Data {
        effective: half(effective, shift),
        permitted: half(permitted, shift),
        inheritable: 0,
    });
    // SAFETY: the kernel reads two `Data` for this version.
    match unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn prctl(option: i32, argument: u64, what: &'static str) -> anyhow::Result<()> {
    // SAFETY: these options take integers and touch no memory.
    match unsafe { libc::prctl(option, argument, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(anyhow::Error::from(io::Error::last_os_error()).context(what)),
    }
}

/// Drops all capabilities but those without which `works` fails, and, if pids are to be chosen, the one for that. Names
/// of what is kept.
///
/// # Errors
/// When the kernel does not let go of them, or `works` fails with all.
pub fn give_up(pids: bool, works: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Vec<&'static str>> {
    let all = permitted().context("capget")?;
    let wanted = if pids { bit(CAP_CHECKPOINT_RESTORE) & all } else { 0 };
    // Maps can be used by whoever holds their descriptors since Linux 5.19; before, CAP_BPF is asked for where
    // unprivileged BPF is disabled, and before 5.8 it was CAP_SYS_ADMIN's.
    let mut kept = None;
    for try_with in [0, bit(CAP_BPF), bit(CAP_BPF) | bit(CAP_SYS_ADMIN)] {
        set((wanted | try_with) & all, all).context("capset")?;
        if works().is_ok() {
            kept = Some((wanted | try_with) & all);
            break;
        }
    }
    let Some(kept) = kept else {
        works()?;
        anyhow::bail!("the maps can be used with no set of capabilities");
    };
    // The bounding set can be changed only with CAP_SETPCAP.
    set(all, all).context("capset")?;
    for capability in 0..64 {
        if kept & bit(capability) == 0 {
            // What this kernel does not know cannot be dropped (EINVAL), nor be had.
            // SAFETY: an integer argument.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")?;
    prctl(libc::PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")?;
    set(kept, kept).context("capset")?;
    works().context("with the capabilities that are left")?;
    let names = [
        (CAP_CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE"),
        (CAP_BPF, "CAP_BPF"),
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    ];
    Ok(names.into_iter().filter(|(number, _)| kept & bit(*number) != 0).map(|(_, name)| name).collect())
}

fn bit(capability: u32) -> Set {
    1 << capability
}
