//! The command line is an interface: a change of it shows as a change of a file in `tests/snapshots`.
//! UPDATE_SNAPSHOTS=1 writes them anew.

use std::{fs, path::Path, process::Command};

use crate::peers::STASIS;

#[test]
fn help_is_what_the_snapshots_say() {
    let commands = [
        "",
        "launch",
        "checkpoint",
        "restart",
        "status",
        "list",
        "log",
        "show",
        "verify",
        "diff",
        "du",
        "prune",
        "export",
        "import",
        "gc",
        "kill",
        "coordinator",
        "store",
        "trace",
        "top",
        "doctor",
    ];
    for command in commands {
        let mut help = Command::new(STASIS);
        help.args(Some(command).filter(|command| !command.is_empty())).arg("--help");
        let output = help.env("COLUMNS", "100").output().unwrap();
        assert!(output.status.success());
        let name = if command.is_empty() { "stasis" } else { command };
        compare(name, &String::from_utf8(output.stdout).unwrap());
    }
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.help"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, kept, "{} (UPDATE_SNAPSHOTS=1 writes it anew)", path.display());
}
