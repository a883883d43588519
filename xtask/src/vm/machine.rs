//! The virtual machine (qemu), from its start to its end or its deadline.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{run::announce, summary::Summary, vm::Report};

/// How long a processor that runs by itself takes to come to the first process, at most: a second, usually.
const BOOT: Duration = Duration::from_secs(30);

/// What tests read (`stasis_tests::slowness`): what the kernel does not know becomes the first process' environment.
const SLOWNESS: &str = "STASIS_TEST_SLOWNESS";

/// What the lines of `xtask/init` begin with that are not the tests'.
const MARK: &str = "stasis-vm: ";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Processors {
    /// KVM's.
    Real,
    /// Some ten times as slow.
    Emulated,
}

pub struct Machine<'a> {
    pub version: &'a str,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// Where the kernel's messages go.
    pub console: &'a Path,
}

impl Machine<'_> {
    /// Boots it, passes on what the tests write, and returns what they said when it has ended. `load` is to write the
    /// initramfs for these processors.
    ///
    /// # Errors
    /// When it does not start, or does not end before the deadline or without saying how: with the end of the
    /// console.
    pub fn run(&self, deadline: Duration, load: impl Fn(Processors) -> Result<()>) -> Result<Report> {
        let end = Instant::now() + deadline;
        match self.hardware(end, &load)? {
            Ok(report) => Ok(report),
            Err(reason) => {
                println!(
                    "the machine's processors are emulated, which takes some ten times as long: {reason}"
                );
                load(Processors::Emulated)?;
                let mut running = self.start(Processors::Emulated)?;
                running
                    .wait_up(end)
                    .and_then(|()| running.finish(end, "emulated"))
                    .map_err(|e| self.explain(e))
            }
        }
    }

    /// With KVM; or why not.
    fn hardware(
        &self,
        end: Instant,
        load: &impl Fn(Processors) -> Result<()>,
    ) -> Result<std::result::Result<Report, String>> {
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            return Ok(Err(format!("/dev/kvm: {error}")));
        }
        // Others (kvm_pvm) run only kernels that were made for them.
        if !["/sys/module/kvm_intel", "/sys/module/kvm_amd"].iter().any(|path| Path::new(path).exists()) {
            return Ok(Err("/dev/kvm is there, but neither kvm_intel nor kvm_amd".to_owned()));
        }
        load(Processors::Real)?;
        let mut running = self.start(Processors::Real)?;
        if let Err(error) = running.wait_up(end.min(Instant::now() + BOOT)) {
            return Ok(Err(format!("with KVM {error:#}")));
        }
        running.finish(end, "with KVM").map(Ok).map_err(|error| self.explain(error))
    }

    fn start(&self, processors: Processors) -> Result<Running> {
        let (accelerator, slowness) = match processors {
            Processors::Real => ("kvm", 1),
            Processors::Emulated => ("tcg", 4),
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-m",
                "4G",
                "-smp",
                "2",
            ])
            .args(["-accel", accelerator])
            // Longer page tables make emulation slower; MSRs of the second can often not be set in a nested machine.
            .args(["-cpu", "max,la57=off,arch-capabilities=off"])
            .args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            // Nothing hostile runs there; a panic ends the machine.
            .arg("-append")
            .arg(format!("console=ttyS0 panic=-1 mitigations=off tsc=reliable {SLOWNESS}={slowness}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // SAFETY: prctl(PR_SET_PDEATHSIG) is one system call, and allocates nothing.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        announce(&command);
        let mut child = command.spawn().context("qemu-system-x86_64 cannot be run")?;
        let output = child.stdout.take().expect("it is a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Running { child, lines, version: self.version.to_owned() })
    }

    /// An error with the end of the console.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let console = fs::read(self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        error.context(format!("the machine's console ({}) ends with:\n{tail}\n", self.console.display()))
    }
}

/// A machine that runs; dropped, it is ended.
struct Running {
    child: Child,
    lines: Receiver<String>,
    version: String,
}

impl Running {
    /// Waits until the first process has made its root.
    fn wait_up(&mut self, end: Instant) -> Result<()> {
        match self.line(end)? {
            Some(line) if line == format!("{MARK}up") => Ok(()),
            Some(line) => bail!("the machine begins with `{line}`"),
            None => bail!("the machine has ended before it was up"),
        }
    }

    /// Passes lines on to the end.
    fn finish(&mut self, end: Instant, how: &str) -> Result<Report> {
        let mut summary = Summary::default();
        let mut skipped = Vec::new();
        let mut ended = None;
        while let Some(line) = self.line(end)? {
            match line.strip_prefix(MARK) {
                Some("passed") => ended = Some(true),
                Some("failed") => ended = Some(false),
                Some(rest) => match rest.strip_prefix("skipped: ") {
                    Some(test) => skipped.push(test.to_owned()),
                    None => println!("{line}"),
                },
                None => {
                    println!("{line}");
                    summary.add_line(&line);
                }
            }
        }
        let status = self.child.wait()?;
        let Some(good) = ended else { bail!("the machine ended before its tests did: {status}") };
        skipped.sort();
        summary.skip_passed(skipped.len() as u64);
        Ok(Report { summary, skipped, good, place: format!("Linux {}, {how}", self.version) })
    }

    /// The next line; `None` at the end.
    fn line(&self, end: Instant) -> Result<Option<String>> {
        match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine was not done by its deadline, and was ended")
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
