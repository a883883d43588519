//! A first session, for somebody who looks on: a program with memory worth losing is checkpointed while it
//! works, killed, and goes on where it was.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{orphans, run};

/// Counts, and at the end tells whether its 200 MB are what they were.
const COUNTER: &str = r#"
import hashlib, os, time
memory = os.urandom(200_000_000)
before = hashlib.sha256(memory).hexdigest()
for count in range(1, 21):
    print(f"pid {os.getpid()} counts {count}", flush=True)
    time.sleep(0.1)
print("200 MB unharmed" if hashlib.sha256(memory).hexdigest() == before else "MEMORY DAMAGED", flush=True)
"#;

/// Shows it.
///
/// # Errors
/// When any step does not do what it is said to do.
pub fn show() -> Result<()> {
    orphans::adopt().context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    let place = Place::new()?;
    let shown = session(&place);
    // Coordinator and store server would go by themselves once idle; nobody needs to wait for that.
    orphans::end_all();
    shown
}

fn session(place: &Place) -> Result<()> {
    say("a python3 program that holds 200 MB and counts to 20:");
    let script = place.directory.join("count.py");
    fs::write(&script, COUNTER).with_context(|| script.display().to_string())?;
    let script = script.to_str().context("the directory for temporary files has a name that is not UTF-8")?;
    let mut program = place.start(&["launch", "--", "/usr/bin/python3", script])?;
    let seen = program.show_until("counts 8")?;
    ensure!(seen, "the program ended before it was checkpointed");

    say("checkpointed and killed in the middle of it:");
    let begun = Instant::now();
    place.command(&["checkpoint", "--kill", "--label", "demo"])?;
    say(&format!("durable after {:.0} ms; the program is gone:", begun.elapsed().as_secs_f64() * 1000.0));
    program.show_until("nothing more")?;
    println!("   {}", program.child.wait()?);
    place.command(&["list"])?;

    say("restarted; it goes on before its memory is there:");
    let begun = Instant::now();
    let mut program = place.start(&["restart", "demo"])?;
    let seen = program.show_until("counts")?;
    ensure!(seen, "the restarted program does not count");
    say(&format!("its first line came {:.0} ms after that", begun.elapsed().as_secs_f64() * 1000.0));
    place.command(&["status"])?;
    let whole = program.show_until("200 MB unharmed")?;
    let status = program.child.wait()?;
    ensure!(whole && status.success(), "the restarted program did not end as it should: {status}");
    say("that is all: `stasis launch -- COMMAND`, and `stasis restart` when it is needed");
    Ok(())
}

fn say(text: &str) {
    println!("\n== {text}");
}

/// A store and a coordinator of the demonstration's own, removed afterwards.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("stasis-demo-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        Ok(Self { directory })
    }

    fn stasis(&self, arguments: &[&str]) -> Command {
        let mut command = run::program("stasis");
        command
            .args(arguments)
            .env("STASIS_STORE", self.directory.join("store"))
            .env("STASIS_COORD", format!("unix:{}", self.directory.join("coordinator").display()));
        command
    }

    fn start(&self, arguments: &[&str]) -> Result<Program> {
        typed(arguments);
        let mut child = self.stasis(arguments).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        Ok(Program { child, output })
    }

    fn command(&self, arguments: &[&str]) -> Result<()> {
        typed(arguments);
        let status = self.stasis(arguments).status()?;
        ensure!(status.success(), "`stasis {}`: {status}", arguments.join(" "));
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            eprintln!("{} stays behind: {error}", self.directory.display());
        }
    }
}

fn remove(directory: &Path) -> std::io::Result<()> {
    fs::remove_dir_all(directory)
}

fn typed(arguments: &[&str]) {
    println!("$ stasis {}", arguments.join(" "));
}

struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// Shows what it prints, up to a line that contains `text`; `false` when it ends without.
    fn show_until(&mut self, text: &str) -> Result<bool> {
        let mut line = String::new();
        while self.output.read_line(&mut line)? > 0 {
            print!("   {line}");
            if line.contains(text) {
                return Ok(true);
            }
            line.clear();
        }
        Ok(false)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
