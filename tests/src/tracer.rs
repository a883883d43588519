//! A tracer of the test's own: with its own socket, and its own programs in the kernel.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::sys::signal::{Signal, kill};

use crate::{Lab, lab::binary, requirement};

pub struct Tracer {
    runtime: PathBuf,
    pin: PathBuf,
    options: Vec<String>,
    child: Child,
    /// What it said when it was ready.
    pub greeting: String,
}

/// CAP_SETPCAP, CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE: what its unit gives it.
const CAPABILITIES: [u64; 4] = [8, 38, 39, 40];

impl Tracer {
    /// Starts one for a lab, whose commands then find it. `None`, and the test is skipped, without the right to.
    #[track_caller]
    pub fn start(lab: &Lab, options: &[&str]) -> Option<Self> {
        Self::start_in(&lab.tracer_directory(), options)
    }

    /// Starts one whose socket is in a directory, which is made.
    #[track_caller]
    pub fn start_in(runtime: &Path, options: &[&str]) -> Option<Self> {
        if !requirement::is_root() {
            requirement::skip("only root can load programs into the kernel");
            return None;
        }
        let name = runtime.file_name().expect("a directory").to_string_lossy().into_owned();
        let pin = Path::new("/sys/fs/bpf").join(&name);
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let (child, greeting) = run(runtime, &pin, &options);
        Some(Self { runtime: runtime.to_owned(), pin, options, child, greeting })
    }

    pub fn socket(&self) -> PathBuf {
        self.runtime.join("socket")
    }

    /// Where its programs are pinned.
    pub fn pin(&self) -> &Path {
        &self.pin
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by a signal and returns when it has ended.
    #[track_caller]
    pub fn end(&mut self, signal: Signal) {
        kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
        self.child.wait().expect("it is our child");
    }

    /// Starts it again, with other options.
    #[track_caller]
    pub fn start_again_with(&mut self, options: &[&str]) {
        self.options = options.iter().map(ToString::to_string).collect();
        self.start_again();
    }

    /// Starts it again.
    #[track_caller]
    pub fn start_again(&mut self) {
        (self.child, self.greeting) = run(&self.runtime, &self.pin, &self.options);
    }
}

#[track_caller]
fn run(runtime: &Path, pin: &Path, options: &[String]) -> (Child, String) {
    let mut command = Command::new(binary("stasis-tracer"));
    command.arg("--runtime").arg(runtime).arg("--pin").arg(pin).args(options).stdout(Stdio::piped());
    // Mounting is the system's business, and needs a capability that the service has not.
    mount_bpf();
    // SAFETY: prctl takes integers and touches no memory.
    unsafe {
        command.pre_exec(|| {
            for capability in (0..64).filter(|capability| !CAPABILITIES.contains(capability)) {
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            Ok(())
        });
    }
    let mut child = command.spawn().expect("stasis-tracer starts (`cargo xtask build`)");
    let mut greeting = String::new();
    let output = child.stdout.take().expect("a pipe was asked for");
    BufReader::new(output).read_line(&mut greeting).expect("it can be read");
    assert!(!greeting.is_empty(), "the tracer ended: {:?} (`cargo xtask build-ebpf`?)", child.wait());
    (child, greeting)
}

fn mount_bpf() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if !mounts.lines().any(|line| line.starts_with("bpf /sys/fs/bpf ") || line.contains(" /sys/fs/bpf bpf "))
    {
        let status = Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]).status();
        assert!(status.is_ok_and(|status| status.success()), "a bpf file system at /sys/fs/bpf");
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new(binary("stasis-tracer")).arg("--pin").arg(&self.pin).arg("--remove").status();
        let _ = fs::remove_dir_all(&self.runtime);
    }
}
