//! What is to be done, as `/job` says it: one `KEY VALUE` in each line, written by `xtask/src/vm/mod.rs`.

use std::fs;

use anyhow::{Context, Result, bail};

#[derive(Default)]
pub struct Job {
    /// Files of the initramfs, each after those that it needs.
    pub modules: Vec<String>,
    /// Directories of the host that must be seen though they lie in one that is replaced (`/tmp`).
    pub kept: Vec<String>,
    /// Directories of the host that can be written to here: a copy, which ends with the machine.
    pub copied: Vec<String>,
    /// The programs' environment, all of it.
    pub environment: Vec<(String, String)>,
    /// Where the programs are started.
    pub directory: String,
    /// Run one after the other.
    pub programs: Vec<Program>,
}

pub struct Program {
    pub path: String,
    pub arguments: Vec<String>,
}

impl Job {
    pub fn read(path: &str) -> Result<Self> {
        let mut job = Self::default();
        for line in fs::read_to_string(path).with_context(|| path.to_owned())?.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            let value = value.to_owned();
            match key {
                "module" => job.modules.push(value),
                "keep" => job.kept.push(value),
                "copy" => job.copied.push(value),
                "environment" => {
                    let (name, value) = value.split_once('=').context("environment NAME=VALUE")?;
                    job.environment.push((name.to_owned(), value.to_owned()));
                }
                "directory" => job.directory = value,
                "program" => job.programs.push(Program { path: value, arguments: Vec::new() }),
                "argument" => job.programs.last_mut().context("whose argument?")?.arguments.push(value),
                _ => bail!("{path}: what is `{key}`?"),
            }
        }
        Ok(job)
    }
}
