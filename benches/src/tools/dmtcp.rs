//! DMTCP: `dmtcp_launch`, with a coordinator of the session's own and without compression, which would take
//! most of the time with memory that does not compress.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::{Session, Taken, Tool, in_path, timed};
use crate::place;

pub struct Dmtcp {
    /// Where dmtcp_launch is; the others are beside it.
    directory: PathBuf,
}

impl Dmtcp {
    /// # Errors
    /// When it is not installed.
    pub fn find() -> anyhow::Result<Self> {
        let launch = in_path("dmtcp_launch")?;
        place::succeed(Command::new(&launch).arg("--version"))?;
        Ok(Self { directory: launch.parent().unwrap_or(Path::new("/")).to_owned() })
    }
}

impl Tool for Dmtcp {
    fn name(&self) -> &'static str {
        "dmtcp"
    }

    fn is_present_at_run_time(&self) -> bool {
        true
    }

    fn open(&self, directory: &Path) -> anyhow::Result<Box<dyn Session>> {
        let images = directory.join("images");
        fs::create_dir(&images)?;
        let mut session = DmtcpSession {
            binaries: self.directory.clone(),
            directory: directory.to_owned(),
            images,
            port: String::new(),
        };
        let port_file = directory.join("port");
        let mut command = place::command(self.directory.join("dmtcp_coordinator"), directory)?;
        // It has written the port when the command that starts it returns.
        command.args(["--daemon", "--quiet", "--coord-port", "0", "--port-file"]).arg(&port_file);
        ensure!(command.status()?.success(), "dmtcp_coordinator did not start");
        let port = fs::read_to_string(&port_file).context("dmtcp_coordinator wrote no port")?;
        session.port = port.trim().to_owned();
        Ok(Box::new(session))
    }
}

struct DmtcpSession {
    binaries: PathBuf,
    directory: PathBuf,
    images: PathBuf,
    port: String,
}

impl DmtcpSession {
    fn command(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = place::command(self.binaries.join(name), &self.directory)?;
        command.args(["--coord-port", &self.port]).args(arguments);
        Ok(command)
    }
}

impl Session for DmtcpSession {
    fn launch(&self, program: &[&OsStr]) -> anyhow::Result<Command> {
        let mut command = self.command("dmtcp_launch", &["--quiet", "--no-gzip", "--ckptdir"])?;
        command.arg(&self.images).args(program);
        Ok(command)
    }

    fn checkpoint(&mut self, _pid: u32) -> anyhow::Result<Taken> {
        // -b: returns when the checkpoint has been written.
        let (latency, _) = timed(&mut self.command("dmtcp_command", &["--bcheckpoint"])?)?;
        Ok(Taken { latency, said_pause: None, said_written: None })
    }

    fn restart(&self) -> anyhow::Result<Command> {
        let mut command = self.command("dmtcp_restart", &["--quiet"])?;
        for entry in fs::read_dir(&self.images)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "dmtcp") {
                command.arg(path);
            }
        }
        Ok(command)
    }

    fn image_bytes(&self) -> u64 {
        place::disk_usage(&self.images)
    }
}

impl Drop for DmtcpSession {
    fn drop(&mut self) {
        let quit = self.command("dmtcp_command", &["--quit"]);
        if let Err(error) = quit.and_then(|mut command| place::succeed(&mut command)) {
            eprintln!("the coordinator of DMTCP did not end: {error:#}");
        }
    }
}
