//! The measurements are taken, with small sizes, so that they do not rot. How fast they say that anything is
//! depends on the machine and is not looked at.

use std::{fs, process::Command};

use serde_json::Value;

fn benches(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stasis-benches"));
    command.args(arguments);
    command
}

#[test]
fn a_quick_run_measures_everything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("figures.json");
    let output = benches(&["--quick", "--no-peers", "--json", path.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stdout));
    assert_eq!(said, "");

    let figures: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let lines = figures["lines"].as_array().unwrap();
    let listed = benches(&["--quick", "--list"]).output().unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    for name in names.lines() {
        let of_stasis = |line: &&Value| line["measurement"] == name && line["tool"] == "stasis";
        assert!(lines.iter().any(|line| of_stasis(&line)), "nothing was measured for {name}");
    }
    for line in lines {
        let median = line["figure"]["median"].as_f64();
        assert!(median.is_some_and(f64::is_finite), "no figure: {line:#}");
        // A program may cost nothing, and pages that are there already take no room.
        let may_be_nothing = line["quantity"]
            .as_str()
            .is_some_and(|what| what.contains("program") || what.contains("identical process"));
        assert!(may_be_nothing || median > Some(0.0), "nothing takes no time and no room: {line:#}");
    }
}

#[test]
fn what_is_not_there_cannot_be_measured() {
    let output = benches(&["--only", "no-such-measurement"]).output().unwrap();
    assert!(!output.status.success());
}
