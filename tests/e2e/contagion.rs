//! Whatever a program makes or executes belongs to its computation.

use std::{fs, path::Path, thread, time::Duration};

use stasis_tests::{
    Lab, Nobody,
    compile::{program, shared_library},
    find_program,
    lab::binary,
    skip,
};

#[test]
fn every_way_to_make_or_execute_a_program_takes_the_library_along() {
    let lab = Lab::new();
    let running = lab.launch([program("contagion")]);
    let files = running.files().clone();
    let status = running.wait_exit();
    let said = fs::read_to_string(&files.stdout).unwrap() + &fs::read_to_string(&files.stderr).unwrap();
    assert!(status.success() && said.ends_with("ok\n"), "{status}: {said}");
}

/// The user's own comes behind ours, is all that the program sees of LD_PRELOAD, and is passed what the program executes.
#[test]
fn a_library_that_the_user_preloads_is_kept_and_ours_is_not_seen() {
    const SCRIPT: &str = "env env; sh -c 'grep -c libstasis.so /proc/self/maps; exec cat executed'";
    let lab = Lab::new();
    let library = shared_library("interposer");
    let launch = lab.prepare(["sh", "-c", SCRIPT]).environment("LD_PRELOAD", &library);
    let running = launch.environment("EXECUTED", "executed").start();
    let stdout = running.files().stdout.clone();
    running.expect_code(0);
    let said = fs::read_to_string(stdout).unwrap();
    let preloads: Vec<_> = said.lines().filter(|line| line.starts_with("LD_PRELOAD=")).collect();
    assert_eq!(preloads, [format!("LD_PRELOAD={}", library.display())]);
    // Four parts of the file are mapped, in grep, too.
    assert!(said.lines().any(|line| line == "4"), "{said}");
    for name in ["/env", "/sh", "/grep", "/cat"] {
        assert!(said.lines().any(|line| line.starts_with('/') && line.ends_with(name)), "no {name}: {said}");
    }
}

/// While processes come and go by the hundred, checkpoints are taken or refused, and what they do comes out right.
#[test]
fn processes_that_come_and_go_are_not_disturbed_by_checkpoints() {
    const ROUNDS: u32 = 150;
    let script = format!(
        "sum=0; i=0; while [ $i -lt {ROUNDS} ]; do i=$((i+1)); n=$(echo $i | cat); \
         /bin/true || echo failed; (exit 3); [ $? = 3 ] || echo lost; sum=$((sum+n)); done; echo sum $sum"
    );
    let lab = Lab::new();
    let running = lab.prepare(["bash", "-c", &script]).start();
    lab.wait_joined(&running);
    let mut taken = 0;
    while !running.has_ended() {
        let outcome = lab.try_checkpoint(&[]);
        // It may have ended meanwhile: nothing is left to be checkpointed then.
        if outcome.status.success() {
            taken += 1;
        } else {
            assert!(
                outcome.stderr.contains("has no process") || outcome.stderr.contains("ended, or executed"),
                "after {taken} checkpoints: {outcome}"
            );
        }
    }
    let files = running.files().clone();
    running.expect_code(0);
    assert_eq!(fs::read_to_string(&files.stdout).unwrap(), format!("sum {}\n", ROUNDS * (ROUNDS + 1) / 2));
    assert!(taken > 2, "{taken} checkpoints");
}

/// It has the library, and has not got as far as to say hello: a machine may be so busy that this takes long.
#[test]
fn a_program_that_is_being_loaded_is_waited_for() {
    /// Longer than one is waited for that does not look as if it came.
    const LONG: Duration = Duration::from_millis(2500);
    let lab = Lab::new();
    let (loading, finish) = (lab.work().join("loading"), lab.work().join("loaded"));
    let script = format!(
        "LD_PRELOAD=$LD_PRELOAD:{} SLOW_CONSTRUCTOR={} sleep 1000 & echo ready; wait",
        shared_library("slow_constructor").display(),
        finish.display()
    );
    let running = lab.launch(["bash", "-c", &script]);
    running.wait_ready();
    while !loading.exists() {
        thread::yield_now();
    }
    let asking = thread::spawn({
        let lab = lab.clone();
        move || lab.try_checkpoint(&[])
    });
    thread::sleep(LONG);
    assert!(!asking.is_finished());
    fs::write(&finish, "").unwrap();
    asking.join().unwrap().expect_success();
    assert_eq!(lab.json(["status"])["processes"].as_array().map(Vec::len), Some(2));
    lab.run(["kill"]).expect_success();
    running.wait_exit();
}

/// Nobody could restart the interpreter, which is a static program; what it interprets runs as without Stasis.
#[test]
fn a_program_under_valgrind_runs_and_is_not_checkpointed() {
    let Some(valgrind) = find_program("valgrind") else { return skip("valgrind is needed") };
    let lab = Lab::new();
    let running = lab.launch([valgrind.as_path(), Path::new("--quiet"), &program("heap")]);
    running.wait_ready();
    lab.try_checkpoint(&[]).expect_refusal(&["has no process"]);
    running.expect_ok();
}

#[test]
fn a_child_under_valgrind_is_named_and_runs_on() {
    let Some(valgrind) = find_program("valgrind") else { return skip("valgrind is needed") };
    let lab = Lab::new();
    let script = format!("{} --quiet {}; echo ended$?", valgrind.display(), program("heap").display());
    let running = lab.launch(["bash", "-c", &script]);
    running.wait_ready();
    lab.try_checkpoint(&[]).expect_refusal(&["interprets it"]);
    let files = running.files().clone();
    fs::write(&files.go, "").unwrap();
    running.expect_code(0);
    assert_eq!(fs::read_to_string(&files.stdout).unwrap().lines().last(), Some("ended0"));
}

/// Shells and Perl fork, and then execute the command.
#[test]
fn a_script_takes_its_own_checkpoints() {
    let stasis = binary("stasis");
    let take = format!("{} checkpoint || exit 9", stasis.display());
    let perl = format!("system('{}', 'checkpoint') == 0 or exit 9;", stasis.display());
    for command in [
        ["bash", "-c", &format!("for i in 1 2 3; do {take}; sleep 0.01 & {take}; wait; done; echo done")],
        ["sh", "-c", &format!("({take}); {take}; echo done")],
        ["perl", "-e", &format!("{perl} fork() or do {{ {perl} exit }}; wait; {perl} print qq(done\\n)")],
    ] {
        let lab = Lab::new();
        let running = lab.launch(command);
        let files = running.files().clone();
        running.expect_code(0);
        assert!(fs::read_to_string(&files.stdout).unwrap().ends_with("done\n"), "{command:?}");
        // The command that took it has ended well then.
        let running = lab.restart(["latest"]);
        running.expect_code(0);
    }
}

#[test]
fn what_is_executed_as_another_user_is_named() {
    if !stasis_tests::requirement::is_root() {
        return skip("only root becomes another user");
    }
    // Where another user can reach the library.
    let Nobody { lab, binaries, .. } = &Nobody::new(&[]);
    let script =
        "setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'echo ready; exec sleep 1000'; exit 3";
    let stasis = binaries.join("stasis");
    let running = lab.native([stasis.to_str().unwrap(), "launch", "--", "bash", "-c", script]).start();
    running.wait_ready();
    lab.try_checkpoint(&[]).expect_refusal(&["uid 65534", "cannot join"]);
    lab.run(["kill"]).expect_success();
    running.wait_exit();
}
