//! Incremental checkpoints: each one is complete, whatever the program does to its address space between and during
//! them, and with each way of finding what has changed.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use stasis_tests::{DEADLINE, Lab, Outcome, Workload, compile};

const RANDOM_MEMORY: Workload = Workload { program: "random_memory", arguments: &[] };

/// Checkpoints of one run.
const CHECKPOINTS: u64 = 8;

/// Takes one checkpoint of a program that runs on; returns its id. A moment at which the program has a child is
/// refused by name, and the next one will do.
#[track_caller]
fn checkpoint(lab: &Lab) -> String {
    for _ in 0..50 {
        let outcome = lab.try_checkpoint(&[]);
        if outcome.code() == 0 {
            return outcome.stdout.trim().to_owned();
        }
        outcome.expect_refusal(&["processes"]);
    }
    panic!("the program has children all the time");
}

/// Random steps with checkpoints in between; every checkpoint, restored, is byte for byte what it was.
#[track_caller]
fn random_memory(seed: &str, disabled: &str, tracker: &str) {
    let lab = Lab::new();
    let program = compile::program(RANDOM_MEMORY.program);
    let command = [program.to_str().expect("an ASCII path"), seed];
    let running = lab.prepare(command).environment("STASIS_DISABLE", disabled).start();
    running.wait_ready();
    let mut ids = Vec::new();
    for number in 0..CHECKPOINTS {
        // Not in step with the program: at any moment of it.
        thread::sleep(Duration::from_millis(3 + 7 * number));
        ids.push(checkpoint(&lab));
        let shown = lab.json(["show", "latest"]);
        assert_eq!(shown["checkpoint"]["processes"][0]["tracker"], tracker);
    }
    // The program itself has seen nothing of it.
    running.expect_ok();
    for id in &ids {
        lab.restart([id.as_str()]).expect_ok();
    }
}

/// What the store says of the latest checkpoint's one process: pages that it names, and pages that it was given.
fn pages(lab: &Lab) -> (u64, u64) {
    let shown = lab.json(["show", "latest"]);
    let process = &shown["checkpoint"]["processes"][0];
    let number = |key: &str| process[key].as_u64().unwrap_or_else(|| panic!("{key} in {process}"));
    (number("pages"), number("pages_received"))
}

#[test]
fn only_what_was_written_is_copied_again() {
    let lab = Lab::new();
    let idle = "import os, time\nheap = os.urandom(64 << 20)\nprint('ready', flush=True)\ntime.sleep(3600)";
    let running = lab.launch(["python3", "-c", idle]);
    running.wait_ready();
    lab.checkpoint(&[]);
    let (all, received) = pages(&lab);
    assert!(all > 16_384 && received >= all, "the first one takes everything: {received} of {all} pages");
    lab.checkpoint(&[]);
    let (all, received) = pages(&lab);
    assert!(all > 16_384 && received < all / 20, "it sleeps: {received} of {all} pages");
    let running = {
        lab.checkpoint_kill(running);
        lab.restart(["latest"])
    };
    lab.wait_joined(&running);
    lab.checkpoint(&[]);
    let (all, _) = pages(&lab);
    assert!(all > 16_384, "the one after a restart is complete: {all} pages");
    lab.checkpoint(&[]);
    let (all, received) = pages(&lab);
    assert!(received < all / 20, "it still sleeps: {received} of {all} pages");
    lab.run(["kill"]).expect_success();
    let _ = running.wait_exit();
}

/// A program with 64 MiB sleeps, is killed and restarted with these options: the next checkpoint takes little of it.
#[track_caller]
fn the_first_one_after_a_restart_is_incremental(options: &[&str]) {
    let lab = Lab::new();
    let idle = "import os, time\nheap = os.urandom(64 << 20)\nprint('ready', flush=True)\ntime.sleep(3600)";
    let running = lab.launch(["python3", "-c", idle]);
    running.wait_ready();
    lab.checkpoint_kill(running);
    let running = lab.prepare_restart(["latest"].iter().chain(options)).start();
    lab.wait_joined(&running);
    lab.checkpoint(&[]);
    let (all, received) = pages(&lab);
    assert!(all > 16_384 && received < all / 10, "it sleeps: {received} of {all} pages");
    lab.checkpoint_kill(running);
    let running = lab.restart(["latest"]);
    lab.wait_joined(&running);
    lab.run(["kill"]).expect_success();
    let _ = running.wait_exit();
}

#[test]
fn the_first_one_after_an_eager_restart_takes_what_was_written() {
    if stasis_tests::kernel::has_wp_async() {
        the_first_one_after_a_restart_is_incremental(&["--eager"]);
    }
}

#[test]
fn the_first_one_after_a_lazy_restart_takes_what_was_written() {
    if stasis_tests::kernel::has_wp_async() {
        the_first_one_after_a_restart_is_incremental(&["--lazy"]);
    }
}

/// Random steps after an eager restart, from whose first moment on writes are tracked: every checkpoint, restored, is byte for byte
/// what it was.
#[track_caller]
fn random_memory_after_a_restart(seed: &str) {
    let lab = Lab::new();
    let program = compile::program(RANDOM_MEMORY.program);
    let mut running = lab.launch([program.to_str().expect("an ASCII path"), seed]);
    running.wait_ready();
    let mut ids = vec![checkpoint(&lab)];
    for generation in 0..4 {
        lab.run(["kill"]).expect_success();
        let _ = running.wait_exit();
        let restart = lab.prepare_restart([ids[ids.len() - 1].as_str(), "--eager"]);
        running = restart.environment("STASIS_LAZY_FROM", "1").start();
        lab.wait_joined(&running);
        for number in 0..2 {
            thread::sleep(Duration::from_millis(1 + 5 * generation + 7 * number));
            ids.push(checkpoint(&lab));
        }
    }
    running.expect_ok();
    for id in &ids {
        lab.restart([id.as_str()]).expect_ok();
    }
}

/// At first too large to be tracked with its holes, for what the process has; later not.
#[test]
fn holes_stay_holes_when_there_is_more_to_track() {
    let lab = Lab::new();
    let program = "
import mmap, os, signal, time
hardly_used = mmap.mmap(-1, 112 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
hardly_used[5 << 20] = 1
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
heap = os.urandom(64 << 20)
print('more', flush=True)
time.sleep(3600)";
    let running = lab.launch(["python3", "-c", program]);
    running.wait_ready();
    lab.checkpoint(&[]);
    running.signal(Signal::SIGUSR1);
    running.wait_line("more");
    for _ in 0..2 {
        lab.checkpoint(&[]);
        let (all, received) = pages(&lab);
        assert!(all < 28_000 && received < 28_000, "holes were copied: {received} of {all} pages");
    }
    lab.run(["kill"]).expect_success();
    let _ = running.wait_exit();
}

const HOLES: Workload = Workload { program: "holes", arguments: &[] };

#[test]
fn a_store_that_was_deleted_gets_all_pages_again_and_no_holes() {
    let lab = Lab::new();
    let running = HOLES.launch(&lab);
    running.wait_ready();
    let mut all = Vec::new();
    for _ in 0..2 {
        lab.checkpoint(&[]);
        lab.checkpoint(&[]);
        all.push(pages(&lab).0);
        // The tracker goes on; the next store has nothing to compare with. At one stroke: the server may be writing.
        let deleted = lab.work().join("deleted");
        std::fs::rename(lab.store(), &deleted).unwrap();
        while std::fs::remove_dir_all(&deleted).is_err() {}
    }
    lab.checkpoint_kill(running);
    all.push(pages(&lab).0);
    assert!(all.iter().all(|all| (4096..9000).contains(all)), "holes were copied: {all:?} pages");
    assert_eq!(lab.json(["list"]).as_array().map(Vec::len), Some(1));
    lab.restart(["latest"]).expect_ok();
}

const ADVICE_CHANGES: Workload = Workload { program: "advice_changes", arguments: &[] };

/// The last checkpoint comes while what an earlier one has read of smaps would still hold. (The first one's does not: it makes
/// mappings.)
#[test]
fn advice_that_changes_between_two_checkpoints_is_in_the_second() {
    let lab = Lab::new();
    let running = lab.launch([compile::program(ADVICE_CHANGES.program)]);
    running.wait_ready();
    for _ in 0..3 {
        lab.checkpoint(&[]);
    }
    running.signal(Signal::SIGUSR1);
    running.wait_line("changed");
    let last = lab.checkpoint(&[]);
    running.expect_ok();
    lab.restart([last.as_str()]).expect_ok();
}

#[test]
fn it_notices_natively_when_its_advice_is_lost() {
    ADVICE_CHANGES.notices_what_is_lost_with(|running| {
        running.signal(Signal::SIGUSR1);
        running.wait_line("changed");
    });
}

#[test]
fn the_program_notices_natively_when_a_byte_is_lost() {
    RANDOM_MEMORY.notices_what_is_lost();
}

/// 256 MiB, overwritten in random order as fast as the processor can: faster than any disk, and than memory is copied.
const OVERWRITES: Workload = Workload { program: "overwrites", arguments: &["256", "0"] };

#[test]
fn a_program_that_writes_faster_than_it_is_copied_stands_still_in_slices_and_is_told() {
    let lab = Lab::new();
    let running = OVERWRITES.launch(&lab);
    running.wait_ready();
    for _ in 0..3 {
        lab.checkpoint(&[]);
        let shown = lab.json(["show", "latest"]);
        let status = lab.json(["status"]);
        let process = &status["processes"][0];
        let number = |key: &str| process[key].as_u64().unwrap_or_else(|| panic!("{key} in {process}"));
        let pause = number("last_pause_us");
        assert_eq!(shown["checkpoint"]["pause_us"], pause);
        assert!(number("last_stood_us") >= pause, "{process}");
        // The staging buffer, the memory of the checkpoint thread, and the backlog: no more than the program has itself.
        let memory = number("last_memory");
        assert!((64 << 20..400 << 20).contains(&memory), "{process}");
    }
    lab.checkpoint_kill(running);
    for reference in ["latest", "latest~1", "latest~2", "latest~3"] {
        let restarted = lab.restart([reference]);
        restarted.expect_ok();
    }
}

const USERFAULT: Workload = Workload { program: "userfault", arguments: &[] };

#[test]
fn a_program_uses_userfaultfd_on_memory_that_is_watched() {
    let lab = Lab::new();
    let running = USERFAULT.launch(&lab);
    running.wait_ready();
    let mut ids = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    while ids.len() < 8 {
        assert!(Instant::now() < deadline, "it has a userfaultfd all the time");
        // While it has one it is refused by name; the next one will do.
        let outcome = lab.try_checkpoint(&[]);
        if outcome.code() == 0 {
            ids.push(outcome.stdout.trim().to_owned());
        } else {
            outcome.expect_refusal(&["userfaultfd"]);
        }
        thread::sleep(Duration::from_millis(7 * ids.len() as u64));
    }
    running.expect_ok();
    for id in &ids {
        lab.restart([id.as_str()]).expect_ok();
    }
}

#[test]
fn the_program_with_a_userfaultfd_notices_natively_when_a_page_is_lost() {
    USERFAULT.notices_what_is_lost();
}

#[test]
fn the_overwriting_program_notices_natively_when_a_page_is_lost() {
    OVERWRITES.notices_what_is_lost();
}

/// What `stasis doctor` and a program, both started with this STASIS_DISABLE, say of the tracker.
#[track_caller]
fn doctor_and_program(disabled: &str) -> (String, String) {
    let lab = Lab::new();
    let mut doctor = lab.stasis();
    doctor.args(["doctor", "--json"]).env("STASIS_DISABLE", disabled);
    let outcome = Outcome::of(&mut doctor, &lab.work(), DEADLINE);
    let found: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let probes = found["probes"].as_array().expect("probes");
    let probe = probes.iter().find(|probe| probe["name"] == "write tracking").expect("a probe");
    let running = lab.prepare([compile::program("brk_heap")]).environment("STASIS_DISABLE", disabled).start();
    running.wait_ready();
    lab.checkpoint(&[]);
    let shown = lab.json(["show", "latest"]);
    let used = shown["checkpoint"]["processes"][0]["tracker"].as_str().expect("a tracker").to_owned();
    running.expect_ok();
    (probe["detail"].as_str().expect("a text").to_owned(), used)
}

#[test]
fn doctor_names_the_tracker_that_programs_use_and_why_it_is_not_a_better_one() {
    for disabled in ["", "wp-async", "soft-dirty", "wp-async,soft-dirty"] {
        let (detail, used) = doctor_and_program(disabled);
        assert!(detail.starts_with(&format!("{used}: ")), "{used} is used with {disabled:?}: {detail}");
        if disabled.starts_with("wp-async") {
            assert!(detail.contains("wp-async: STASIS_DISABLE names it"), "{detail}");
        }
        if disabled == "wp-async,soft-dirty" {
            assert!(detail.contains("soft-dirty: STASIS_DISABLE names it"), "{detail}");
        }
    }
}

macro_rules! seeds {
    ($($name:ident: $seed:literal),* $(,)?) => {
        mod with_wp_async {
            $(#[test]
            fn $name() {
                if stasis_tests::kernel::has_wp_async() {
                    super::random_memory($seed, "", "wp-async");
                }
            })*
        }

        mod with_soft_dirty {
            $(#[test]
            fn $name() {
                if stasis_tests::kernel::has_soft_dirty() {
                    super::random_memory($seed, "wp-async", "soft-dirty");
                }
            })*
        }

        mod after_a_restart {
            $(#[test]
            fn $name() {
                super::random_memory_after_a_restart($seed);
            })*
        }

        /// Every page is taken; the store finds out what is new.
        mod without_a_tracker {
            $(#[test]
            fn $name() {
                super::random_memory($seed, "wp-async,soft-dirty", "hash");
            })*
        }
    };
}

seeds! { seed_1: "1", seed_2: "2", seed_3: "3", seed_4: "4" }

/// What is copied goes to the store through a file, which was made when a longer one was allowed.
#[test]
fn a_program_lowers_its_limit_of_file_sizes_between_two_checkpoints() {
    const LOWERS: &str = "
import hashlib, os, resource, time
def wait(name):
    while not os.path.exists(name): time.sleep(0.01)
data = bytearray(os.urandom(1 << 20) * 16)
print('ready', flush=True)
wait('lower')
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
data[:] = os.urandom(1 << 20) * 16
before = hashlib.sha256(data).digest()
print('lowered', flush=True)
wait('finish')
print('whole' if hashlib.sha256(data).digest() == before else 'damaged', flush=True)
";
    let lab = Lab::new();
    let mut running = lab.prepare(["python3", "-c", LOWERS]).directory(lab.work()).start();
    running.wait_ready();
    lab.checkpoint(&[]);
    std::fs::write(lab.work().join("lower"), "").expect("a file of the lab");
    running.wait_line("lowered");
    for _ in 0..2 {
        lab.checkpoint(&[]);
    }
    lab.checkpoint_kill(running);
    running = lab.restart(["latest"]);
    std::fs::write(lab.work().join("finish"), "").expect("a file of the lab");
    running.wait_line("whole");
    running.expect_code(0);
}
