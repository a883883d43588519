//! The workloads of `tests/programs` that say with `loses("what")` which part of their state they can lose on
//! demand: how they are started, and what must become of them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{DEADLINE, Lab, Launch, compile, running::Running};

/// How many checkpoints [`Workload::goes_on_after_checkpoints`] takes before the program verifies its state.
const CHECKPOINTS: usize = 5;

/// A program and its arguments.
#[derive(Clone, Copy)]
pub struct Workload {
    pub program: &'static str,
    pub arguments: &'static [&'static str],
}

impl Workload {
    fn command(&self, further: &[&str]) -> Vec<String> {
        let program = compile::program(self.program).to_str().expect("an ASCII path").to_owned();
        let arguments = self.arguments.iter().chain(further);
        std::iter::once(program).chain(arguments.map(|&argument| argument.to_owned())).collect()
    }

    fn with_surroundings(&self, lab: &Lab, launch: Launch) -> Launch {
        match self.program {
            "tls" => launch.environment("STASIS_TEST_MODULE", compile::shared_library("tls_module")),
            "early" => launch.environment("LD_PRELOAD", compile::shared_library("early_constructor")),
            "allocates" => launch.environment("LD_PRELOAD", compile::shared_library("strict_malloc")),
            // Who has given up being root must still see the file that tells it to go on.
            "credentials" | "drop_root" => {
                let directory = lab.work().parent().expect("the lab's directory").to_owned();
                for path in [directory, lab.work()] {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                        .expect("the lab's own directory");
                }
                launch
            }
            _ => launch,
        }
    }

    /// Starts it under Stasis.
    #[track_caller]
    pub fn launch(&self, lab: &Lab) -> Running {
        self.launch_with(lab, &[])
    }

    /// Starts it under Stasis with further arguments.
    #[track_caller]
    pub fn launch_with(&self, lab: &Lab, further: &[&str]) -> Running {
        self.with_surroundings(lab, lab.prepare(self.command(further))).start()
    }

    /// Starts it without Stasis, with further arguments; it loses what `loss` names.
    #[track_caller]
    pub fn native(&self, lab: &Lab, further: &[&str], loss: Option<&str>) -> Running {
        let mut launch = self.with_surroundings(lab, lab.native(self.command(further)));
        if let Some(loss) = loss {
            launch = launch.environment("STASIS_TEST_LOSE", loss);
        }
        launch.start()
    }

    /// Without Stasis: it finds its state right, and wrong when any part of it is lost. Else no other test of it
    /// proves anything.
    #[track_caller]
    pub fn notices_what_is_lost(&self) {
        self.notices_what_is_lost_with(|_| {});
    }

    /// The same, with something done to it once it is ready.
    #[track_caller]
    pub fn notices_what_is_lost_with(&self, disturb: impl Fn(&Running)) {
        let run = |loss: Option<&str>| {
            let lab = Lab::new();
            let running = self.native(&lab, &[], loss);
            running.wait_ready();
            disturb(&running);
            running.go();
            let files = running.files().clone();
            let status = running.wait_exit();
            (status, fs::read_to_string(&files.stdout).expect("what it printed"))
        };
        let (status, stdout) = run(None);
        assert!(
            status.success() && stdout.lines().last() == Some("ok"),
            "{} by itself: {status}\n{stdout}",
            self.program
        );
        let losses = losses(self.program);
        assert!(!losses.is_empty(), "{}.c names nothing that it can lose", self.program);
        for loss in losses {
            let (status, stdout) = run(Some(&loss));
            assert!(
                !status.success() && stdout.contains("FAIL: "),
                "{} lost `{loss}` and did not notice: {status}\n{stdout}",
                self.program
            );
        }
    }

    /// Checkpoints without an end of the program are not seen by it.
    #[track_caller]
    pub fn goes_on_after_checkpoints(&self) {
        let lab = Lab::new();
        let running = self.launch(&lab);
        running.wait_ready();
        for _ in 0..CHECKPOINTS {
            lab.checkpoint(&[]);
        }
        running.expect_ok();
    }

    /// After so many times of `checkpoint --kill` and `restart`, all is as it was.
    #[track_caller]
    pub fn comes_back(&self, generations: usize) {
        let lab = Lab::new();
        let mut running = self.launch(&lab);
        running.wait_ready();
        for _ in 0..generations {
            lab.checkpoint_kill(running);
            running = lab.restart(["latest"]);
            wait_joined(&lab);
        }
        running.expect_ok();
    }

    /// The same from a checkpoint after which the program ran on, and was ended otherwise.
    #[track_caller]
    pub fn comes_back_from_what_ran_on(&self) {
        let lab = Lab::new();
        let running = self.launch(&lab);
        running.wait_ready();
        lab.checkpoint(&[]);
        lab.run(["kill"]).expect_success();
        running.wait_exit();
        lab.restart(["latest"]).expect_ok();
    }

    /// `checkpoint --kill` is refused with these words, and the program has not noticed that it was asked for.
    #[track_caller]
    pub fn is_refused(&self, words: &[&str]) {
        let lab = Lab::new();
        let running = self.launch(&lab);
        running.wait_ready();
        let pid = running.pid().to_string();
        let words: Vec<&str> = words.iter().copied().chain([pid.as_str()]).collect();
        lab.try_checkpoint(&["--kill"]).expect_refusal(&words);
        running.expect_ok();
    }

    /// Either of both: [`Workload::comes_back`] or [`Workload::is_refused`]. What may not be is anything else.
    #[track_caller]
    pub fn comes_back_or_is_refused(&self, words: &[&str]) {
        let lab = Lab::new();
        let running = self.launch(&lab);
        running.wait_ready();
        let outcome = lab.try_checkpoint(&["--kill"]);
        if outcome.status.success() {
            running.wait_exit();
            lab.restart(["latest"]).expect_ok();
        } else {
            outcome.expect_refusal(words);
            running.expect_ok();
        }
    }
}

/// Waits until a restarted process has joined its coordinator, from when on it can be checkpointed; returns the pid
/// that the kernel knows it by. Its output tells nothing of that, and `stasis status` tells only when it is asked.
///
/// # Panics
/// When no process has joined after [`DEADLINE`].
#[track_caller]
pub fn wait_joined(lab: &Lab) -> u32 {
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        if let Some(pid) = lab.json(["status"])["processes"][0]["real_pid"].as_u64() {
            return pid as u32;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no restarted process has joined after {DEADLINE:?}{}", lab.evidence());
}

/// The names in the `loses("name")` of a program's source, each once.
fn losses(program: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("programs/{program}.c"));
    let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut names: Vec<String> = source
        .split("loses(\"")
        .skip(1)
        .filter_map(|rest| rest.split_once("\")"))
        .map(|(name, _)| name.to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Takes checkpoints at a steady pace until the program ends; returns how many.
///
/// # Panics
/// When one of them fails while the program runs.
#[track_caller]
pub fn checkpoint_steadily(lab: &Lab, running: &Running, period: Duration) -> usize {
    let program =
        crate::process::ProcessHandle::open(running.pid()).expect("a child that is not collected yet");
    let mut next = Instant::now();
    let mut taken = 0;
    while !program.wait_ended(next.saturating_duration_since(Instant::now())) {
        let outcome = lab.try_checkpoint(&[]);
        if outcome.status.success() {
            taken += 1;
        } else {
            // It may have ended in the midst of the checkpoint, which then has nothing to take.
            let ended = program.wait_ended(Duration::from_millis(100));
            assert!(ended, "a checkpoint failed while the program runs: {outcome}{}", lab.evidence());
        }
        next = (next + period).max(Instant::now());
    }
    taken
}
