//! Checkpoints that this Stasis cannot read, or this machine not run, are refused by name, with the remedy, before
//! anything starts.

use stasis_protocol::image::{IMAGE_VERSION, Machine, ProcessImage};
use stasis_tests::{Lab, compile, image, kernel, skip};

/// A lab with a checkpoint of `tests/programs/brk_heap.c`, which has been ended.
fn checkpointed() -> (Lab, String) {
    let lab = Lab::new();
    let running = lab.launch([compile::program("brk_heap")]);
    running.wait_ready();
    let id = lab.checkpoint_kill(running);
    (lab, id)
}

/// `stasis restart` refuses it with all of `words`, and nothing of it runs.
#[track_caller]
fn expect_refused(lab: &Lab, id: &str, words: &[&str]) {
    let outcome = lab.run(["restart", id]).expect_refusal(words);
    // Refused by name; what ran goes on running (stasis --help).
    assert_eq!(outcome.code(), 4, "{outcome}");
    assert_eq!(outcome.stdout, "", "{outcome}");
    for name in ["brk_heap", "stasis-restorer"] {
        assert!(lab.processes(name).is_empty(), "{name} runs: {outcome}");
    }
}

#[test]
fn an_image_of_a_newer_format_is_refused_by_restart_and_show() {
    let (lab, id) = checkpointed();
    // The version is the first field, a varint: the second of these takes two bytes.
    for (version, bytes) in [(IMAGE_VERSION + 1, &[IMAGE_VERSION as u8 + 1][..]), (300, &[0xac, 0x02])] {
        let newer = image::with_record(&lab, &id, |record| [bytes, &record[1..]].concat());
        let words =
            [&newer, &format!("format {version},"), &format!("format {IMAGE_VERSION};"), "newer version"];
        let words = words.map(|word| word as &str);
        expect_refused(&lab, &newer, &words);
        let outcome = lab.run(["show", &newer]).expect_refusal(&words);
        assert_eq!(outcome.code(), 4, "{outcome}");
        // What tells of a checkpoint without its image does.
        assert_eq!(lab.json(["list"]).as_array().map(Vec::len), Some(2));
        lab.run(["prune", &newer]).expect_success();
    }
    lab.restart([&id]).expect_ok();
}

#[test]
fn an_image_of_an_older_format_is_refused_with_another_remedy() {
    let (lab, id) = checkpointed();
    let older = image::changed(&lab, &id, |image| image.version = IMAGE_VERSION - 1);
    expect_refused(&lab, &older, &[&format!("format {},", IMAGE_VERSION - 1), "older version", "anew"]);
    lab.restart([&id]).expect_ok();
}

/// A checkpoint of a machine that differs from this one by `change` is refused with all of `words`; the same one
/// without the change is not.
#[track_caller]
fn expect_machine_refused(change: impl FnOnce(&mut Machine), words: &[&str]) {
    let (lab, id) = checkpointed();
    let foreign = image::changed(&lab, &id, |image| change(&mut image.machine));
    expect_refused(&lab, &foreign, words);
    let same = image::changed(&lab, &id, |_| ());
    lab.restart([&same]).expect_ok();
}

#[test]
fn a_processor_without_the_programs_instructions() {
    // CPUID 1, EDX: bits 10 and 20 are reserved, so no processor has them (Intel SDM 2A).
    let reserved = 1 << 10 | 1 << 20;
    let words = ["processor", "lacks", "cpuid word 1 bit 10", "cpuid word 1 bit 20", "with these features"];
    expect_machine_refused(|machine| machine.cpuid[1] |= reserved, &words);
}

#[test]
fn a_processor_without_the_programs_registers() {
    // XCR0's bit 63 is reserved for its own extension (Intel SDM 1, 13.3).
    let words = ["processor", "register state", "XCR0 0x80000000", "with these features"];
    expect_machine_refused(|machine| machine.xcr0 |= 1 << 63, &words);
}

#[test]
fn a_processor_with_less_register_state_than_a_frame_of_the_program_has() {
    let words = ["processor", "register state", "1000000 bytes", "with these features"];
    expect_machine_refused(|machine| machine.xsave_size = 1_000_000, &words);
}

#[test]
fn a_processor_that_keeps_registers_elsewhere() {
    let words = ["processor", "bit 2 of XCR0", "byte 16", "same maker"];
    expect_machine_refused(|machine| machine.xsave_offsets = vec![(2, 16)], &words);
}

#[test]
fn another_vdso_than_the_one_that_a_thread_stands_in() {
    let (lab, id) = checkpointed();
    let elsewhere = |image: &mut ProcessImage| {
        image.machine.kernel = "1.2.3-other".into();
        image.machine.vdso_sum ^= 1;
    };
    let inside = image::changed(&lab, &id, |image| {
        elsewhere(image);
        image.threads[0].in_vdso = true;
    });
    expect_refused(
        &lab,
        &inside,
        &["thread", "vDSO of kernel 1.2.3-other", "another checkpoint", "with that kernel"],
    );
    let outside = image::changed(&lab, &id, elsewhere);
    lab.restart([&outside]).expect_ok();
}

#[test]
fn a_threads_id_that_is_higher_than_any_here_is_had_in_a_namespace() {
    let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let limit: i32 = limit.trim().parse().unwrap();
    /// PID_MAX_LIMIT (include/linux/threads.h).
    const HIGHEST: i32 = 4 << 20;
    if !kernel::has_id_limits_of_namespaces() {
        return;
    }
    if limit >= HIGHEST {
        return skip("no namespace has higher ids than there are here (kernel.pid_max)");
    }
    let lab = Lab::new();
    let running = lab.launch([compile::program("made_with_settings")]);
    running.wait_ready();
    let id = lab.checkpoint_kill(running);
    let higher = image::changed(&lab, &id, |image| {
        let pid = image.ids.pid;
        let thread = image.threads.iter_mut().find(|thread| thread.tid != pid).expect("another thread");
        thread.tid = limit;
    });
    lab.restart([&higher]).expect_ok();
}
