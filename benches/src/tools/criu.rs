//! CRIU: `criu dump` and `criu restore`, from outside; the program runs without it until then.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{Session, Taken, Tool, in_path, timed};
use crate::place;

pub struct Criu {
    criu: PathBuf,
}

impl Criu {
    /// # Errors
    /// When it is not installed, or finds itself that it does not work with this kernel.
    pub fn find() -> anyhow::Result<Self> {
        let criu = in_path("criu")?;
        place::succeed(Command::new(&criu).arg("check")).context("it does not work here")?;
        Ok(Self { criu })
    }
}

impl Tool for Criu {
    fn name(&self) -> &'static str {
        "criu"
    }

    fn is_present_at_run_time(&self) -> bool {
        false
    }

    fn open(&self, directory: &Path) -> anyhow::Result<Box<dyn Session>> {
        Ok(Box::new(CriuSession { criu: self.criu.clone(), directory: directory.to_owned(), taken: 0 }))
    }
}

struct CriuSession {
    criu: PathBuf,
    directory: PathBuf,
    /// Each image has a directory of its own, named by its number from 1.
    taken: u32,
}

impl CriuSession {
    fn image(&self, number: u32) -> PathBuf {
        self.directory.join(format!("image-{number}"))
    }
}

impl Session for CriuSession {
    fn launch(&self, program: &[&OsStr]) -> anyhow::Result<Command> {
        let [program, arguments @ ..] = program else { anyhow::bail!("no program is named") };
        let mut command = place::command(program, &self.directory)?;
        command.args(arguments);
        Ok(command)
    }

    fn checkpoint(&mut self, pid: u32) -> anyhow::Result<Taken> {
        let image = self.image(self.taken + 1);
        fs::create_dir(&image)?;
        let mut command = place::command(&self.criu, &self.directory)?;
        command.args(["dump", "--leave-running", "--tree", &pid.to_string(), "--images-dir"]).arg(&image);
        let (latency, _) = timed(&mut command)?;
        self.taken += 1;
        Ok(Taken { latency, said_pause: None, said_written: None })
    }

    fn restart(&self) -> anyhow::Result<Command> {
        let mut command = place::command(&self.criu, &self.directory)?;
        // Not --restore-detached: it ends with the program.
        command.args(["restore", "--images-dir"]).arg(self.image(self.taken));
        Ok(command)
    }

    fn image_bytes(&self) -> u64 {
        (1..=self.taken).map(|number| place::disk_usage(&self.image(number))).sum()
    }
}
