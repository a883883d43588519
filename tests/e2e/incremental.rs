//! Incremental checkpoints: each one is complete, whatever the program does to its address space between and during
//! them, and with each way of finding what has changed.

use std::{thread, time::Duration};

use stasis_tests::{Lab, Workload, compile};

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

#[test]
fn the_program_notices_natively_when_a_byte_is_lost() {
    RANDOM_MEMORY.notices_what_is_lost();
}

macro_rules! seeds {
    ($($name:ident: $seed:literal),* $(,)?) => {
        /// As the machine allows.
        mod with_the_best_tracker {
            $(#[test]
            fn $name() {
                super::random_memory($seed, "", "wp-async");
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
