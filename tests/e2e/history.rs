//! The life of checkpoints after they were taken: deleted, collected, moved to another store; what is left restarts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use stasis_tests::{Lab, Running, find_program, skip, slowness};

/// Prints steps, and at the end whether 8 MiB that change all the time are right.
const PROGRAM: &str = r#"
import hashlib, sys, time
blocks = [hashlib.sha256(b"%d" % i).digest() * 128 for i in range(2048)]
for step in range(int(sys.argv[1])):
    for i in range(0, 2048, 7):
        at = (i + step) % 2048
        blocks[at] = hashlib.sha256(blocks[at]).digest() * 128
    print("step", step, flush=True)
    time.sleep(0.05)
total = hashlib.sha256(b"".join(blocks)).hexdigest()
print("sum", total)
print("ok", flush=True)
"#;

/// Every checkpoint is 6 steps further than the one before, or more where it takes longer.
const STEPS: u32 = 40;

fn program(lab: &Lab) -> Option<Vec<PathBuf>> {
    let Some(python) = find_program("python3") else {
        skip("python3 is not installed");
        return None;
    };
    let script = lab.work().join("steps.py");
    fs::write(&script, PROGRAM).unwrap();
    Some(vec![python, script, (STEPS * slowness()).to_string().into()])
}

#[track_caller]
fn undisturbed(lab: &Lab, program: &[PathBuf]) -> String {
    let running = lab.native(program).start();
    let files = running.files().clone();
    running.expect_ok();
    fs::read_to_string(files.stdout).unwrap()
}

/// Takes five checkpoints and ends the program; returns their ids.
#[track_caller]
fn five(lab: &Lab, program: &[PathBuf]) -> (Vec<String>, PathBuf) {
    let running = lab.launch(program);
    let stdout = running.files().stdout.clone();
    let mut ids = Vec::new();
    for at in 1..=4 {
        running.wait_line(&format!("step {}", 6 * at));
        ids.push(lab.checkpoint(&["--label", &format!("at-{at}")]));
    }
    running.wait_line("step 30");
    ids.push(lab.checkpoint_kill(running));
    (ids, stdout)
}

/// Restarts a checkpoint and compares what it prints with `expected`.
#[track_caller]
fn restarts(lab: &Lab, id: &str, stdout: &Path, expected: &str) {
    let running: Running = lab.restart([id]);
    running.expect_code(0);
    assert_eq!(fs::read_to_string(stdout).unwrap(), expected, "{id}");
}

#[test]
fn what_prune_and_gc_leave_restarts() {
    let lab = Lab::new();
    let Some(program) = program(&lab) else { return };
    let expected = undisturbed(&lab, &program);
    let (ids, stdout) = five(&lab, &program);

    let would = lab.json(["prune", "--keep-last", "1", "--labels", "--dry-run"]);
    assert_eq!((would["removed"].as_array().unwrap().len(), would["kept"].as_u64()), (4, Some(1)));
    let kept = lab.json(["prune", "--keep-last", "1"]);
    assert!(kept["removed"].as_array().unwrap().is_empty(), "all others have a label: {kept:#}");
    let same = lab.json(["diff", &ids[0], "at-1"]);
    assert!(same["processes"][0]["mappings"].as_array().unwrap().is_empty(), "{same:#}");
    let diff = lab.json(["diff", "at-1", "at-2"]);
    let changed = diff["processes"][0]["mappings"].as_array().unwrap().iter();
    let changed: u64 = changed.map(|mapping| mapping["changed_bytes"].as_u64().unwrap()).sum();
    // Six steps further or, where the first took long, fewer: each changes more than a MiB.
    assert!(changed > 1 << 20, "no step is between them: {diff:#}");
    let du = lab.json(["du"]);
    let own = |at: usize| du["checkpoints"][at]["own_bytes"].as_u64().unwrap();
    assert!((0..5).all(|at| own(at) > 1 << 20 && own(at) < 16 << 20), "{du:#}");
    let pruned = lab.json(["prune", "at-2", &ids[3]]);
    assert_eq!(pruned["removed"].as_array().unwrap().len(), 2, "{pruned:#}");
    assert!(pruned["gc"]["nodes_removed"].as_u64().unwrap() > 0, "{pruned:#}");
    let log = lab.run(["log"]).expect_success().stdout;
    assert!(log.contains(&format!("goes back to {}, which is not in this store", ids[1])), "{log}");
    for id in [&ids[0], &ids[2], &ids[4]] {
        restarts(&lab, id, &stdout, &expected);
    }
    let pruned = lab.json(["prune", &ids[0], &ids[4]]);
    assert!(pruned["gc"]["freed_bytes"].as_u64().is_some(), "{pruned:#}");
    restarts(&lab, "at-3", &stdout, &expected);
    lab.run(["verify"]).expect_success();
    lab.run(["gc"]).expect_success();
    restarts(&lab, &ids[2], &stdout, &expected);
}

#[test]
fn a_program_goes_on_when_all_its_checkpoints_are_deleted() {
    let lab = Lab::new();
    let Some(program) = program(&lab) else { return };
    let expected = undisturbed(&lab, &program);
    let running = lab.launch(&program);
    let stdout = running.files().stdout.clone();
    for at in [5, 10, 15] {
        running.wait_line(&format!("step {at}"));
        let id = lab.checkpoint(&[]);
        lab.run(["prune", &id]).expect_success();
    }
    running.wait_line("step 20");
    let id = lab.checkpoint_kill(running);
    restarts(&lab, &id, &stdout, &expected);
}

#[test]
fn checkpoints_restart_from_another_store() {
    let lab = Lab::new();
    let Some(program) = program(&lab) else { return };
    let expected = undisturbed(&lab, &program);
    let (ids, stdout) = five(&lab, &program);
    let other = lab.with_store(&lab.work().join("other-store"));
    let stream = lab.work().join("stream");
    let mut export = lab.stasis();
    export.args(["export", "at-1", &ids[4], "--quiet"]).stdout(fs::File::create(&stream).unwrap());
    assert!(export.status().unwrap().success());
    let mut import = other.stasis();
    let output = import.arg("import").stdin(fs::File::open(&stream).unwrap()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n{}\n", ids[0], ids[4]));
    // The first store is not needed any more.
    let stopped = lab.json(["store", "--stop"]);
    assert!(stopped["server_pid"].as_u64().is_some(), "{stopped:#}");
    fs::remove_dir_all(lab.store()).unwrap();
    let other = other.with_coordinator("other");
    for reference in ["at-1", "latest"] {
        restarts(&other, reference, &stdout, &expected);
    }
}

#[test]
fn an_export_and_an_import_without_standard_streams_say_so() {
    let lab = Lab::new();
    let Some(program) = program(&lab) else { return };
    let running = lab.launch(&program);
    running.wait_line("step 5");
    lab.checkpoint_kill(running);
    for (command, closed) in [("export latest", ">&-"), ("import", "<&-")] {
        let stasis = lab.stasis();
        let mut shell = Command::new("timeout");
        shell.args(["60", "sh", "-c", &format!("exec \"$0\" {command} {closed}")]).arg(stasis.get_program());
        shell.envs(stasis.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = shell.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 5)), "{command}: {output:?}");
        assert!(
            said.contains("Bad file descriptor") || said.contains("nothing was imported"),
            "{command}: {said}"
        );
    }
    lab.run(["verify"]).expect_success();
}
