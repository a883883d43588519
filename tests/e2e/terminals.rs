//! Shells, editors and multiplexers in front of a terminal: somebody types, the computation is checkpointed, killed and
//! restarted three times, each time in front of another terminal, and what was typed goes on as if nothing had been.

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use stasis_tests::{Lab, Running, compile, find_program, lab::binary, pseudoterminal::Pseudoterminal, skip};

const KILLS: u32 = 3;

/// How long the screen may take to show something.
const PATIENCE: Duration = Duration::from_secs(30);

/// A job that says when it runs, and when it is continued: typed as it is, it does not say so.
/// What comes between two waits is not lost on it: a byte in a pipe tells.
const JOB: &str = r#"python3 -c 'import os, signal; say = lambda what, number: print("%s%d" % (what, number), flush=True)
told, tell = os.pipe(); os.set_blocking(tell, False); signal.set_wakeup_fd(tell); signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGCONT, lambda *_: say("cont", 7)); say("run", 2)
while True: os.read(told, 1)'"#;

/// Appends numbers to a file until it is ended.
const COUNTER: &str = "i=0; while sleep 0.05; do i=$((i+1)); echo $i >> count; done &";

fn path(program: &str) -> Option<String> {
    let found = find_program(program).map(|path| path.to_string_lossy().into_owned());
    if found.is_none() {
        skip(&format!("{program} is not installed"));
    }
    found
}

/// A shell that somebody types to.
struct Shell<'a> {
    lab: &'a Lab,
    terminal: Pseudoterminal,
    running: Option<Running>,
    /// It has a terminal of the computation's own: what is typed waits there.
    within: bool,
}

impl<'a> Shell<'a> {
    fn launch(lab: &'a Lab, command: &[String], within: bool) -> Self {
        fs::write(lab.work().join("rc"), "PS1='PROMPT> '\n").unwrap();
        let terminal = Pseudoterminal::new(24, 80);
        let running = lab.prepare(command).environment("TERM", "xterm").on_terminal(&terminal).start();
        Self { lab, terminal, running: Some(running), within }
    }

    fn work(&self, name: &str) -> PathBuf {
        self.lab.work().join(name)
    }

    #[track_caller]
    fn says(&mut self, text: &str) {
        self.terminal.expect(text, PATIENCE);
    }

    /// Has a job in the background that counts, and one that stands stopped.
    fn begin(&mut self) {
        self.says("PROMPT> ");
        self.terminal.type_line(COUNTER);
        self.terminal.type_line(JOB);
        self.says("run2");
        self.terminal.press("\x1a");
        self.says("Stopped");
    }

    #[track_caller]
    fn kill_and_restart(&mut self) {
        self.lab.checkpoint_kill(self.running.take().unwrap());
        self.terminal = Pseudoterminal::new(24, 80);
        let restart = self.lab.prepare_restart(["latest"]).on_terminal(&self.terminal);
        let running = restart.start();
        // What is typed before belongs to whoever has the terminal then.
        self.lab.wait_joined(&running);
        self.running = Some(running);
    }

    /// A line is typed in three parts, between which there is a checkpoint, and a restart where what was typed is the
    /// computation's.
    fn type_over_a_checkpoint(&mut self, number: u32) {
        let file = self.work(&format!("out{number}"));
        self.terminal.type_line(&format!("cat > out{number}"));
        self.running.as_ref().unwrap().wait_size(&file, 0);
        self.terminal.press("one-and-");
        self.says("one-and-");
        self.lab.checkpoint(&[]);
        self.terminal.press("a-half");
        self.says("a-half");
        if self.within {
            self.kill_and_restart();
        }
        self.terminal.press(" line\n\x04");
        self.terminal.type_line(&format!("echo mark$(({number}+40))"));
        self.says(&format!("mark{}", number + 40));
        assert_eq!(fs::read_to_string(&file).unwrap(), "one-and-a-half line\n");
        if !self.within {
            self.kill_and_restart();
        }
    }

    /// The stopped job is continued, stopped by the terminal, and ended by it in the end.
    fn continue_job(&mut self, key: &str) {
        self.terminal.type_line("fg %2");
        self.says("cont7");
        self.terminal.press(key);
    }

    fn end(mut self) {
        self.continue_job("\x03");
        self.terminal.type_line("kill %1; echo bye$((9*9)); exit");
        self.says("bye81");
        self.running.take().unwrap().expect_code(0);
        let count = fs::read_to_string(self.work("count")).unwrap();
        let expected: String = (1..=count.lines().count()).map(|number| format!("{number}\n")).collect();
        assert_eq!(count, expected);
    }
}

/// Both kinds of jobs, lines that are being typed, ^C and ^Z, over three restarts.
fn survives_three_kills(command: &[String], within: bool) {
    let lab = Lab::new();
    let mut shell = Shell::launch(&lab, command, within);
    shell.begin();
    for number in 1..=KILLS {
        shell.type_over_a_checkpoint(number);
        shell.continue_job("\x1a");
        shell.says("Stopped");
    }
    shell.end();
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn bash_with_job_control_on_the_terminal_that_it_was_launched_on() {
    let Some(bash) = path("bash") else { return };
    survives_three_kills(&words(&[&bash, "--rcfile", "rc", "-i"]), false);
}

#[test]
fn bash_in_a_terminal_of_script() {
    let (Some(script), Some(bash)) = (path("script"), path("bash")) else { return };
    let inner = format!("exec {bash} --rcfile rc -i");
    survives_three_kills(&words(&[&script, "-q", "-c", &inner, "typescript"]), true);
}

#[test]
fn bash_in_a_terminal_of_python() {
    let (Some(python), Some(bash)) = (path("python3"), path("bash")) else { return };
    let spawn = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    survives_three_kills(&words(&[&python, "-c", spawn, &bash, "--rcfile", "rc", "-i"]), true);
}

#[test]
fn bash_in_a_pane_of_tmux() {
    let (Some(tmux), Some(bash)) = (path("tmux"), path("bash")) else { return };
    let inner = format!("{bash} --rcfile rc");
    survives_three_kills(&words(&[&tmux, "-S", "socket", "-f", "/dev/null", "new-session", &inner]), true);
}

/// Typed in a shell, `stasis restart` is one of its jobs, and the program that led a session of its own is part of it.
#[test]
fn bash_that_is_restarted_by_a_shell_of_another_terminal() {
    let Some(bash) = path("bash") else { return };
    let lab = Lab::new();
    let mut shell = Shell::launch(&lab, &words(&[&bash, "--rcfile", "rc", "-i"]), false);
    shell.begin();
    for number in 1..=KILLS {
        lab.checkpoint_kill(shell.running.take().unwrap());
        shell.terminal = Pseudoterminal::new(24, 80);
        let outer = lab.native([&bash, "--norc", "-i"]).environment("PS1", "OUTER> ");
        shell.running = Some(outer.on_terminal(&shell.terminal).start());
        let stasis = stasis_tests::lab::binary("stasis");
        shell.terminal.type_line(&format!("{} restart latest; echo status$?", stasis.display()));
        shell.terminal.type_line(&format!("echo mark$(({number}+40))"));
        shell.says(&format!("mark{}", number + 40));
        shell.continue_job("\x1a");
        shell.says("Stopped");
        if number < KILLS {
            lab.checkpoint(&["--kill"]);
            shell.says("status137");
            shell.terminal.type_line("exit");
            shell.running.take().unwrap().expect_code(0);
            // For the next turn: what was killed is what the last checkpoint is of.
            shell.terminal = Pseudoterminal::new(24, 80);
            let running = lab.prepare_restart(["latest"]).on_terminal(&shell.terminal).start();
            lab.wait_joined(&running);
            shell.running = Some(running);
        }
    }
    shell.continue_job("\x03");
    shell.terminal.type_line("kill %1; exit 5");
    shell.says("status5");
    shell.terminal.type_line("exit");
    shell.running.take().unwrap().expect_code(0);
}

/// The shell tells of a job that its first process has stopped; the others do in their time.
#[track_caller]
fn wait_all_stopped(lab: &Lab) {
    let end = Instant::now() + PATIENCE;
    let is_stopped = |process: &serde_json::Value| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process["real_pid"])).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    while !lab.json(["status"])["processes"].as_array().is_some_and(|all| all.iter().all(is_stopped)) {
        assert!(Instant::now() < end, "some processes run on after {PATIENCE:?}");
    }
}

#[track_caller]
fn says(terminal: &mut Pseudoterminal, text: &str) {
    terminal.expect(text, PATIENCE);
}

/// A shell that is no part of the computation, where [`JOB`] is in the file `job`.
fn shell_outside(lab: &Lab, bash: &str) -> (Pseudoterminal, Running) {
    fs::write(lab.work().join("rc"), "PS1='PROMPT> '\n").unwrap();
    fs::write(lab.work().join("job"), JOB).unwrap();
    let mut terminal = Pseudoterminal::new(24, 80);
    let shell = [bash, "--rcfile", "rc", "-i"];
    let running = lab.native(shell).environment("TERM", "xterm").on_terminal(&terminal).start();
    says(&mut terminal, "PROMPT> ");
    (terminal, running)
}

/// ^C ends the job in its foreground, of which the shell tells, and then the shell ends.
#[track_caller]
fn interrupt(mut terminal: Pseudoterminal, shell: Running) {
    terminal.press("\x03");
    says(&mut terminal, "PROMPT> ");
    terminal.type_line("echo status$?");
    says(&mut terminal, "status130");
    terminal.type_line("exit 3");
    shell.expect_code(3);
}

/// What ^Z has stopped stands stopped again, and so does `stasis restart`: the shell's `fg` continues both.
#[test]
fn a_stopped_job_is_a_stopped_job_of_the_shell_that_restarts_it() {
    let Some(bash) = path("bash") else { return };
    let lab = Lab::new();
    let (mut terminal, running) = shell_outside(&lab, &bash);
    let stasis = binary("stasis").display().to_string();
    terminal.type_line(&format!("{stasis} launch -- sh -c \"$(cat job)\"; echo status$?"));
    says(&mut terminal, "run2");
    terminal.press("\x1a");
    says(&mut terminal, "Stopped");
    for restart in 1..=KILLS {
        wait_all_stopped(&lab);
        lab.checkpoint(&["--kill"]);
        // The shell tells when it is asked something; who stands in for the program stands still until it is continued.
        terminal.type_line(if restart > 1 { "fg" } else { "" });
        says(&mut terminal, "Killed");
        terminal.type_line(&format!("{stasis} restart; echo stopped$((40+{restart}))"));
        says(&mut terminal, "Stopped");
        terminal.type_line("fg");
        says(&mut terminal, "cont7");
        terminal.press("\x1a");
        says(&mut terminal, "Stopped");
    }
    terminal.type_line("fg");
    says(&mut terminal, "cont7");
    interrupt(terminal, running);
}

/// What had been launched in the background is in the foreground where `stasis restart` is typed there.
#[test]
fn a_job_of_the_background_is_the_foreground_s_where_it_is_restarted_there() {
    let Some(bash) = path("bash") else { return };
    let lab = Lab::new();
    let (mut terminal, running) = shell_outside(&lab, &bash);
    let stasis = binary("stasis").display().to_string();
    terminal.type_line(&format!("{stasis} launch -- sh -c \"$(cat job)\" &"));
    says(&mut terminal, "run2");
    for restart in 1..=KILLS {
        lab.checkpoint(&["--kill"]);
        terminal.type_line(&format!("wait; {stasis} restart; echo stopped$((40+{restart}))"));
        lab.wait_joined(&running);
        terminal.press("\x1a");
        says(&mut terminal, "Stopped");
        terminal.type_line("fg");
        says(&mut terminal, "cont7");
    }
    interrupt(terminal, running);
}

#[test]
fn vim_with_what_was_typed_and_what_can_be_undone() {
    let Some(vim) = path("vim") else { return };
    let lab = Lab::new();
    let mut terminal = Pseudoterminal::new(24, 80);
    let command = [&vim[..], "-u", "NONE", "-N", "file"];
    let mut running = lab.prepare(command).environment("TERM", "xterm").on_terminal(&terminal).start();
    terminal.expect("[New]", PATIENCE);
    terminal.press("ifirst\r");
    let mut text = String::from("first\n");
    for kill in 1..=KILLS {
        terminal.press(&format!("typed{kill}"));
        terminal.expect(&format!("typed{kill}"), PATIENCE);
        lab.checkpoint(&[]);
        terminal.press(&format!("-more{kill}"));
        terminal.expect(&format!("-more{kill}"), PATIENCE);
        lab.checkpoint_kill(running);
        terminal = Pseudoterminal::new(24, 80);
        running = lab.prepare_restart(["latest"]).on_terminal(&terminal).start();
        lab.wait_joined(&running);
        terminal.press("\r");
        text += &format!("typed{kill}-more{kill}\n");
    }
    let written = |terminal: &mut Pseudoterminal, keys: &str| {
        terminal.press(keys);
        terminal.press("\x1b:w\r");
        terminal.expect("written", PATIENCE);
        fs::read_to_string(lab.work().join("file")).unwrap()
    };
    assert_eq!(written(&mut terminal, "last\x1b"), format!("{text}last\n"));
    assert_eq!(written(&mut terminal, "ggdd"), format!("{}last\n", text.strip_prefix("first\n").unwrap()));
    assert_eq!(written(&mut terminal, "u"), format!("{text}last\n"));
    terminal.press(":!echo sub$((6*7))\r");
    terminal.expect("sub42", PATIENCE);
    terminal.press("\r:q\r");
    running.expect_code(0);
    assert!(!Path::new(&lab.work().join(".file.swp")).exists(), "vim has left its swap file");
}

#[test]
fn a_terminal_that_a_process_outside_has_open_is_refused_with_its_pid() {
    let lab = Lab::new();
    let running = lab.launch([compile::program("pty_master")]);
    running.wait_ready();
    let name = running.stdout().lines().next().unwrap().to_owned();
    // Nobody has opened it yet: there is nobody outside.
    lab.checkpoint(&[]);
    let outside = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&name).unwrap();
    let own = std::process::id().to_string();
    lab.try_checkpoint(&["--kill"]).expect_refusal(&[
        &name,
        "ptmx",
        "outside",
        &own,
        &running.pid().to_string(),
    ]);
    drop(outside);
    lab.checkpoint_kill(running);
    lab.restart(["latest"]).expect_ok();
}
