//! The root directory: the host's, over 9p and read-only, with file systems of this kernel where something is written.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    unistd::{chdir, chroot},
};

use crate::job::Job;

/// Where the host's files are before they are the root.
const HOST: &str = "/host";
/// The same once more, for what a new file system hides.
const KEPT: &str = "/kept";

pub fn load_modules(job: &Job) -> Result<()> {
    for path in &job.modules {
        let file = File::open(path).with_context(|| path.clone())?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("finit_module of {path}")),
        }
    }
    Ok(())
}

pub fn prepare(job: &Job) -> Result<()> {
    // Nobody changes the files meanwhile, so the guest may keep what it has read (`loose`), and map it.
    let options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";
    attach("host", HOST, "9p", MsFlags::MS_RDONLY, options)?;
    bind(HOST, KEPT)?;
    for (kind, place, options) in [
        ("proc", "proc", ""),
        ("sysfs", "sys", ""),
        ("devtmpfs", "dev", "mode=755"),
        ("tmpfs", "tmp", "mode=1777"),
        ("tmpfs", "run", "mode=755"),
    ] {
        attach(kind, &format!("{HOST}/{place}"), kind, MsFlags::empty(), options)?;
    }
    for (kind, place, options) in
        [("devpts", "pts", "mode=620,ptmxmode=666"), ("tmpfs", "shm", "mode=1777"), ("mqueue", "mqueue", "")]
    {
        let place = format!("{HOST}/dev/{place}");
        fs::create_dir_all(&place).with_context(|| place.clone())?;
        attach(kind, &place, kind, MsFlags::empty(), options)?;
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        symlink(target, format!("{HOST}/dev/{link}")).with_context(|| format!("/dev/{link}"))?;
    }
    for path in &job.kept {
        let place = format!("{HOST}{path}");
        fs::create_dir_all(&place).with_context(|| place.clone())?;
        bind(&format!("{KEPT}{path}"), &place)?;
    }
    for path in &job.copied {
        let place = format!("{HOST}{path}");
        attach("tmpfs", &place, "tmpfs", MsFlags::empty(), "mode=755")?;
        copy(Path::new(&format!("{KEPT}{path}")), Path::new(&place))?;
    }
    become_root()?;
    bring_up_loopback().context("the interface lo")
}

/// As switch_root(8) does: a process that was merely chroot(2)ed could make no user namespace.
fn become_root() -> Result<()> {
    chdir(HOST)?;
    let none = None::<&str>;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).context("moving the host's files to /")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

fn attach(source: &str, place: &str, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(source), place, Some(kind), flags, Some(options))
        .with_context(|| format!("mounting {kind} on {place} ({options})"))
}

fn bind(source: &str, place: &str) -> Result<()> {
    let none = None::<&str>;
    mount(Some(source), place, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("binding {source} to {place}"))
}

/// The files of a directory; programs stay executable.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let target = to.join(entry.file_name());
            fs::copy(entry.path(), &target).with_context(|| target.display().to_string())?;
        }
    }
    Ok(())
}

fn bring_up_loopback() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: zeros are a request without a name and flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq (netdevice(7)).
    let result =
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS, &request) };
    Errno::result(result)?;
    Ok(())
}
