//! The test binaries that are run in the machine, and what they are told.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{announce, cargo};

/// What is run when nothing is said: the tests in which it matters how written pages are found.
const USUAL: &[&str] = &["incremental", "generations", "history"];

/// And when processors are emulated, where all of those take as long as everything else together: one test of each way
/// of finding written pages, and one of checkpoints that follow each other.
const FEW: &[(&str, &[&str])] = &[
    ("incremental", &["with_soft_dirty::seed_1", "without_a_tracker::seed_1"]),
    ("history", &["a_program_goes_on_when_all_its_checkpoints_are_deleted"]),
];

pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<String>,
}

/// The end-to-end tests that `filters` name: by a file (`incremental`), by parts of their own names, or by both. Without
/// filters the usual ones, or `few` of them.
///
/// # Errors
/// When they cannot be built, or none has such a name.
pub fn choose(filters: &[String], few: bool) -> Result<Vec<Program>> {
    let mut command = cargo(&["test", "--release", "--no-run", "--package", "stasis-tests"]);
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let line = announce(&command);
    let output = command.output().with_context(|| format!("`{line}` cannot be run"))?;
    ensure!(output.status.success(), "`{line}`: {}", output.status);
    let all = executables(&String::from_utf8_lossy(&output.stdout));
    if filters.is_empty() && few {
        let programs: Vec<Program> = all
            .into_iter()
            .filter_map(|(file, path)| {
                let (_, names) = FEW.iter().find(|(wanted, _)| *wanted == file)?;
                Some(Program { path, arguments: names.iter().map(|name| (*name).to_owned()).collect() })
            })
            .collect();
        ensure!(programs.len() == FEW.len(), "`{line}` makes no {FEW:?}");
        return Ok(programs);
    }
    let (files, names): (Vec<&String>, Vec<&String>) =
        filters.iter().partition(|filter| all.iter().any(|(file, _)| file == *filter));
    let wanted = |file: &str| match (files.is_empty(), names.is_empty()) {
        (true, true) => USUAL.contains(&file),
        (true, false) => true,
        (false, _) => files.iter().any(|wanted| *wanted == file),
    };
    let programs: Vec<Program> = all
        .into_iter()
        .filter(|(file, _)| wanted(file))
        .map(|(_, path)| Program { path, arguments: names.iter().map(|name| (*name).clone()).collect() })
        .collect();
    if programs.is_empty() {
        bail!("`{line}` makes nothing that is to be run");
    }
    Ok(programs)
}

/// The executables that cargo names, each with the name of its test file.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for line in messages.lines() {
        // The one key that is needed; no path of cargo's has anything to be unescaped in it.
        let Some((_, rest)) = line.split_once(r#""executable":""#) else { continue };
        let Some((path, _)) = rest.split_once('"') else { continue };
        let path = PathBuf::from(path);
        // incremental-581a8f4417af7756
        let file = path.file_name().and_then(|name| name.to_str()?.rsplit_once('-'));
        if let Some((name, _)) = file {
            found.push((name.to_owned(), path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_what_cargo_says() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null,"fresh":true}
{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/release/deps/other_users-84bf12","fresh":true}
{"reason":"build-finished","success":true}"#;
        let path = PathBuf::from("/t/release/deps/other_users-84bf12");
        assert_eq!(executables(messages), [("other_users".to_owned(), path)]);
    }
}
