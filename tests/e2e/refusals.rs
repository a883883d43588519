//! What cannot be checkpointed is refused by name, with reason and remedy, before anything starts or stops.

use std::{
    fs,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use stasis_tests::{Lab, Outcome, compile, find_program, requirement::is_root, skip};

#[track_caller]
fn launch(lab: &Lab, program: &Path) -> Outcome {
    let outcome = lab.run(["launch".as_ref(), "--".as_ref(), program.as_os_str()]);
    assert!(!outcome.stdout.contains("ran"), "the program was started: {outcome}");
    outcome
}

/// A copy of a program that the test may change.
fn copy(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.work().join(name);
    fs::copy(compile::program("trivial"), &path).unwrap();
    path
}

#[test]
fn what_is_refused_here_runs_when_nothing_is_wrong_with_it() {
    let lab = Lab::new();
    let path = copy(&lab, "plain");
    let outcome = lab.run(["launch".as_ref(), "--".as_ref(), path.as_os_str()]).expect_success();
    assert_eq!(outcome.stdout, "ran\n");
}

#[test]
fn a_static_binary() {
    let lab = Lab::new();
    let path = compile::program_with("trivial", &["-static"]);
    launch(&lab, &path).expect_refusal(&["static", path.to_str().unwrap()]);
}

#[test]
fn a_static_position_independent_binary() {
    let lab = Lab::new();
    let path = compile::program_with("trivial", &["-static-pie"]);
    launch(&lab, &path).expect_refusal(&["static", path.to_str().unwrap()]);
}

#[test]
fn a_set_uid_binary() {
    let lab = Lab::new();
    let path = copy(&lab, "privileged");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    launch(&lab, &path).expect_refusal(&["set-uid", path.to_str().unwrap()]);
}

#[test]
fn a_set_gid_binary() {
    let lab = Lab::new();
    let path = copy(&lab, "privileged");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
    launch(&lab, &path).expect_refusal(&["set-gid", path.to_str().unwrap()]);
}

#[test]
fn a_binary_with_file_capabilities() {
    let setcap = ["/usr/sbin/setcap".into()]
        .into_iter()
        .chain(find_program("setcap"))
        .find(|path: &PathBuf| path.exists());
    let (Some(setcap), true) = (setcap, is_root()) else { return skip("setcap and root are needed") };
    let lab = Lab::new();
    let path = copy(&lab, "privileged");
    let marked =
        lab.native([setcap.as_os_str(), "cap_net_raw+ep".as_ref(), path.as_os_str()]).start().wait_exit();
    if !marked.success() {
        return skip("the file system keeps no capabilities");
    }
    launch(&lab, &path).expect_refusal(&["capabilities", path.to_str().unwrap()]);
}

#[test]
fn a_binary_of_another_libc() {
    let lab = Lab::new();
    let path = compile::program_with("trivial", &["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"]);
    launch(&lab, &path).expect_refusal(&["musl", path.to_str().unwrap()]);
}

#[test]
fn a_binary_of_another_architecture() {
    let lab = Lab::new();
    let path = copy(&lab, "foreign");
    // e_machine of an ELF header (elf(5)): EM_AARCH64.
    fs::File::options().write(true).open(&path).unwrap().write_all_at(&183u16.to_le_bytes(), 18).unwrap();
    launch(&lab, &path).expect_refusal(&["x86-64", path.to_str().unwrap()]);
}

#[test]
fn a_script_whose_interpreter_is_refused() {
    let lab = Lab::new();
    let interpreter = compile::program_with("trivial", &["-static"]);
    let path = lab.work().join("script");
    fs::write(&path, format!("#!{}\n", interpreter.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    launch(&lab, &path).expect_refusal(&["static", interpreter.to_str().unwrap()]);
}

#[test]
fn a_program_that_is_not_there() {
    let lab = Lab::new();
    launch(&lab, Path::new("/nowhere/at-all")).expect_refusal(&["/nowhere/at-all"]);
}

#[test]
fn a_file_that_is_no_program() {
    let lab = Lab::new();
    let path = lab.work().join("text");
    fs::write(&path, "text").unwrap();
    launch(&lab, &path).expect_refusal(&[path.to_str().unwrap()]);
}

#[test]
fn an_io_uring_in_use_and_the_program_runs_on() {
    let lab = Lab::new();
    let running = lab.launch([compile::program("io_uring")]);
    running.wait_output("whether there is io_uring here", |text| text.ends_with('\n'));
    let said = running.stdout();
    let Some(descriptor) = said.strip_prefix("descriptor ") else { return skip(said.trim()) };
    let descriptor = descriptor.lines().next().unwrap().to_owned();
    running.wait_ready();
    let pid = running.pid().to_string();
    for arguments in [&["checkpoint"][..], &["checkpoint", "--kill"]] {
        lab.run(arguments).expect_refusal(&["io_uring", &format!("fd {descriptor}"), &pid]);
    }
    running.expect_ok();
}

#[test]
fn namespaces_that_the_program_has_made_and_it_runs_on() {
    if !is_root() || find_program("unshare").is_none() {
        return skip("root and unshare are needed");
    }
    for (namespace, what) in
        [(&["--mount"][..], "mounts"), (&["--pid", "--fork"], "process ids"), (&["--uts"], "host name")]
    {
        let lab = Lab::new();
        let program = compile::program("rseq");
        let own = [&["unshare"], namespace, &[program.to_str().unwrap()]].concat();
        let running = lab.launch(own);
        running.wait_ready();
        for arguments in [&["checkpoint"][..], &["checkpoint", "--kill"]] {
            lab.run(arguments).expect_refusal(&["namespaces of its own", what]);
        }
        running.expect_ok();
    }
}

#[test]
fn a_reference_that_names_no_checkpoint() {
    let lab = Lab::new();
    let running = lab.launch([compile::program("counter").as_os_str(), "300".as_ref(), "1".as_ref()]);
    running.wait_ready();
    lab.checkpoint(&[]);
    running.expect_ok();
    lab.run(["restart", "no-such-label"]).expect_refusal(&["no-such-label"]);
}

#[test]
fn a_checkpoint_where_no_coordinator_listens() {
    let lab = Lab::new();
    let outcome = lab.try_checkpoint(&[]).expect_refusal(&["coordinator"]);
    assert_eq!(outcome.code(), 3, "{outcome}");
}

#[test]
fn the_first_process_of_a_pid_namespace() {
    if !is_root() {
        return skip("a pid namespace without a user namespace takes root");
    }
    let lab = Lab::new();
    let launch = lab.stasis().get_program().to_owned();
    let (launch, program) = (launch.to_str().unwrap(), compile::program("cwd_in_proc"));
    let program = program.to_str().unwrap();
    let unshare = ["unshare", "--pid", "--kill-child", "--mount-proc"];
    let running = lab.native(unshare.iter().chain(&[launch, "launch", "--", program])).start();
    running.wait_ready();
    lab.try_checkpoint(&[]).expect_refusal(&["pid 1", "first process", "--init"]);
    running.expect_ok();
}

#[test]
fn a_store_that_cannot_be_one_before_anything_is_launched() {
    let lab = Lab::new();
    let (file, full) = (lab.work().join("file"), lab.work().join("full"));
    fs::write(&file, "").unwrap();
    fs::create_dir(&full).unwrap();
    fs::write(full.join("letter"), "").unwrap();
    let program = compile::program("trivial");
    for (store, why) in [
        (&file, "is not a directory"),
        (&file.join("store"), "cannot be made"),
        (&full, "is not a store: it holds \"letter\""),
    ] {
        let lab = lab.with_store(store);
        let refused = launch(&lab, &program).expect_refusal(&[store.to_str().unwrap(), why, "; "]);
        assert_eq!(refused.code(), 5, "{refused}");
        let refused = lab.run(["coordinator", "--interval", "1"]).expect_refusal(&[why]);
        assert_eq!(refused.code(), 5, "{refused}");
        assert_eq!(lab.run(["status"]).code(), 3, "a coordinator was started");
    }
    // Where one listens, it is its store that matters, unless another is named.
    lab.run(["coordinator"]).expect_success();
    let mut elsewhere = lab.with_store(&file).stasis();
    let home = elsewhere.env_remove("STASIS_STORE").env("XDG_DATA_HOME", &file);
    let launched = home.arg("launch").arg("--").arg(&program).output().unwrap();
    assert_eq!(String::from_utf8(launched.stdout).unwrap(), "ran\n");
}

#[test]
fn a_lease_that_is_being_broken() {
    const SCRIPT: &str = "
import fcntl, os, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fcntl.fcntl(os.open('leased', os.O_CREAT | os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
print('ready', flush=True)
time.sleep(1000)
";
    let lab = Lab::new();
    let running = lab.launch(["/usr/bin/python3", "-c", SCRIPT]);
    running.wait_ready();
    let opened = fs::File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(lab.work().join("leased"))
        .map_err(|error| error.kind());
    assert_eq!(opened.err(), Some(std::io::ErrorKind::WouldBlock));
    lab.try_checkpoint(&[]).expect_refusal(&[
        "leased",
        "a lease (F_SETLEASE) that is being broken",
        "given it up",
    ]);
}

#[test]
fn a_process_without_the_library_says_what_the_tracer_would_be_good_for() {
    if find_program("busybox").is_none() {
        return skip("a static busybox is needed");
    }
    let lab = Lab::new();
    let running = lab.launch(["sh", "-c", "busybox sleep 1000 & echo ready; wait"]);
    running.wait_ready();
    let refused = lab.try_checkpoint(&[]).expect_refusal(&["busybox", "(--on-escape)", "start the tracer"]);
    assert!(!refused.stderr.contains("--on-escape does nothing"), "{refused}");
    for policy in ["warn", "refuse"] {
        lab.try_checkpoint(&["--on-escape", policy])
            .expect_refusal(&["--on-escape does nothing without the tracer", "busybox"]);
    }
}
