//! Restarts on a kernel with another vDSO. There is only one on a machine: `STASIS_DISABLE=same-vdso` makes a restart go the
//! way of another kernel all the same (`cargo xtask vm` and a checkpoint of it are the real thing).

use std::fs;

use stasis_tests::{Lab, Running, compile, find_program, image, script, skip};

/// The restart takes this kernel's vDSO for another than the image's.
const ANOTHER: (&str, &str) = ("STASIS_DISABLE", "same-vdso");

/// All memory comes when it is touched.
const LAZILY: (&str, &str) = ("STASIS_LAZY_FROM", "1");

/// Where a name ends a line of the maps of a process.
#[track_caller]
fn mapped(pid: u32, name: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process that runs");
    let lines = maps.lines().filter(|line| line.ends_with(name));
    lines.map(|line| line.split(' ').next().expect("a range").to_owned()).collect()
}

/// The pid of the one process that runs, once it can be checkpointed.
#[track_caller]
fn joined(lab: &Lab, running: &Running) -> u32 {
    lab.wait_joined(running);
    lab.json(["status"])["processes"][0]["real_pid"].as_u64().expect("a pid") as u32
}

/// A checkpoint that can be restarted with another vDSO: no thread of it is in that of now.
#[track_caller]
fn checkpoint_and_end(lab: &Lab, running: Running) {
    const MOST: usize = 50;
    lab.wait_joined(&running);
    for _ in 0..MOST {
        let image = image::read(lab, &lab.checkpoint(&[]));
        if image.threads.iter().all(|thread| !thread.in_vdso) {
            lab.run(["kill"]).expect_success();
            let _ = running.wait_exit();
            return;
        }
    }
    panic!("a thread is in the vDSO in each of {MOST} checkpoints");
}

/// A restart of the last checkpoint, and where the vDSO is then.
#[track_caller]
fn restarted(lab: &Lab, way: &str, another: bool) -> (Running, String) {
    let mut restart = lab.prepare_restart(["latest", way]);
    if way == "--lazy" {
        restart = restart.environment(LAZILY.0, LAZILY.1);
    }
    if another {
        restart = restart.environment(ANOTHER.0, ANOTHER.1);
    }
    let running = restart.start();
    let vdso = mapped(joined(lab, &running), "[vdso]");
    assert_eq!(vdso.len(), 1, "{vdso:?}");
    (running, vdso[0].clone())
}

/// Each generation with another vDSO than the one before, or with the same, as `others` says.
#[track_caller]
fn clocks_go_on(way: &str, others: &[bool]) {
    let lab = Lab::new();
    let mut running = lab.launch([compile::program("vdso")]);
    running.wait_ready();
    let mut before = mapped(joined(&lab, &running), "[vdso]").remove(0);
    let first = before.clone();
    for &another in others {
        checkpoint_and_end(&lab, running);
        let (next, vdso) = restarted(&lab, way, another);
        assert_eq!(vdso != before, another, "{before} became {vdso}");
        (running, before) = (next, vdso);
        let pid = joined(&lab, &running);
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
        assert!(maps.lines().any(|line| line.starts_with(&first) && line.contains(" r-xp ")), "{maps}");
        // One that it runs on after.
        lab.checkpoint(&[]);
    }
    running.expect_ok();
}

#[test]
fn clocks_go_on_with_another_vdso() {
    clocks_go_on("--eager", &[true]);
}

#[test]
fn clocks_go_on_with_one_vdso_after_another() {
    clocks_go_on("--eager", &[true, true, true]);
}

#[test]
fn clocks_go_on_with_the_same_vdso_after_another_and_with_another_after_that() {
    clocks_go_on("--eager", &[true, false, true, false]);
}

#[test]
fn clocks_go_on_with_another_vdso_and_memory_that_comes_late() {
    clocks_go_on("--lazy", &[true, false, true]);
}

#[test]
fn python_goes_on_with_one_vdso_after_another() {
    let Some(python) = find_program("python3") else { return skip("python3 is not installed") };
    let script = script::path("work.py");
    let lab = Lab::new();
    let (undisturbed, disturbed) = (lab.work().join("undisturbed"), lab.work().join("disturbed"));
    for directory in [&undisturbed, &disturbed] {
        fs::create_dir(directory).expect("a directory of the lab");
    }
    script::let_finish(&undisturbed);
    let reference = lab.native([&python, &script]).directory(&undisturbed).start();
    let expected = reference.files().stdout.clone();
    assert!(reference.wait_exit().success());
    let mut running = lab.prepare([&python, &script]).directory(&disturbed).start();
    let stdout = running.files().stdout.clone();
    for (step, way) in [(4, "--eager"), (9, "--lazy"), (14, "--eager")] {
        running.wait_line(&format!("step {step}"));
        checkpoint_and_end(&lab, running);
        running = restarted(&lab, way, true).0;
    }
    script::let_finish(&disturbed);
    running.expect_code(0);
    let text = |path| fs::read_to_string(path).expect("what it printed");
    assert_eq!(text(stdout), text(expected));
}

#[test]
fn a_thread_that_reads_clocks_all_the_time_does_not_end_in_the_vdso() {
    const TIMES: usize = 5;
    for _ in 0..TIMES {
        let lab = Lab::new();
        let running = lab.launch([compile::program("vdso")]);
        running.wait_ready();
        let image = image::read(&lab, &lab.checkpoint_kill(running));
        assert_eq!(image.threads.len(), 2);
        assert!(image.threads.iter().all(|thread| !thread.in_vdso));
    }
}
