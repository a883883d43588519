//! Programs that nobody here wrote, each checkpointed, killed and restarted three times in the middle of its
//! work: what they make must be what an undisturbed run makes.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use stasis_tests::{
    DEADLINE, Lab, Nobody, Running, compile, find_program, lab, requirement::is_root, script, skip,
};

/// How often each is killed.
const KILLS: u32 = 3;

/// How memory comes back after each of them; lazily, all that a pager can bring does.
const WAYS: [&str; KILLS as usize] = ["--lazy", "--eager", "--lazy"];
const ALL: &str = "STASIS_LAZY_FROM";

/// A program's work, done in a directory of its own.
struct Work<'a> {
    command: Vec<OsString>,
    /// Puts into the directory what the program needs there.
    prepare: &'a dyn Fn(&Path),
    /// Waits until the work has come to the `n`th point (from 1) where it is to be killed.
    reach: &'a dyn Fn(&Running, &Path, u32),
    /// What the work has made, given the directory.
    made: &'a dyn Fn(&Path) -> Vec<u8>,
}

impl Work<'_> {
    /// The work of a script that prints twenty steps and makes nothing besides.
    fn in_steps(command: Vec<OsString>) -> Self {
        Self { command, prepare: &|_| {}, reach: &step, made: &|_| Vec::new() }
    }

    /// Does the work twice, undisturbed and killed three times, and compares.
    #[track_caller]
    fn survives_three_kills(&self) {
        let lab = Lab::new();
        let (undisturbed, disturbed) = (lab.work().join("undisturbed"), lab.work().join("disturbed"));
        for directory in [&undisturbed, &disturbed] {
            fs::create_dir(directory).unwrap();
            (self.prepare)(directory);
        }
        script::let_finish(&undisturbed);

        let reference = lab.native(&self.command).directory(&undisturbed).start();
        let reference_files = reference.files().clone();
        assert!(reference.wait_exit().success(), "{}", fs::read_to_string(&reference_files.stderr).unwrap());

        let mut running = lab.prepare(&self.command).directory(&disturbed).start();
        let files = running.files().clone();
        for kill in 1..=KILLS {
            (self.reach)(&running, &disturbed, kill);
            lab.checkpoint_kill(running);
            running = lab.prepare_restart(["latest", WAYS[kill as usize - 1]]).environment(ALL, "1").start();
        }
        script::let_finish(&disturbed);
        running.expect_code(0);

        let stdout = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        assert_eq!(stdout(&files.stdout), stdout(&reference_files.stdout), "standard output");
        assert!((self.made)(&disturbed) == (self.made)(&undisturbed), "what it made differs");
    }
}

fn log(directory: &Path) -> Vec<u8> {
    fs::read(directory.join("log.txt")).unwrap()
}

/// Of the twenty steps that the scripts take, those after which they are killed: 4, 9, 14.
fn step(running: &Running, _: &Path, kill: u32) {
    running.wait_line(&format!("step {}", 5 * kill - 1));
}

/// A program with arguments; without the program the test is skipped by name.
fn command(program: &str, arguments: &[&str]) -> Option<Vec<OsString>> {
    let Some(program) = find_program(program) else {
        skip(&format!("{program} is not installed"));
        return None;
    };
    Some(std::iter::once(program.into()).chain(arguments.iter().map(OsString::from)).collect())
}

/// Bytes that compress to about a third, the same every time.
fn write_text(path: &Path, megabytes: usize) {
    let mut state = 1u64;
    let mut file = File::create(path).unwrap();
    for _ in 0..megabytes {
        let mut block = Vec::with_capacity(1 << 20);
        while block.len() < 1 << 20 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            write!(block, "{} word{} ", state >> 40, state >> 58).unwrap();
        }
        file.write_all(&block[..1 << 20]).unwrap();
    }
}

#[test]
fn python_with_threads_a_big_dict_and_open_files() {
    let Some(command) = command("python3", &[script::path("work.py").to_str().unwrap()]) else { return };
    Work { made: &log, ..Work::in_steps(command) }.survives_three_kills();
}

#[test]
fn python_with_processes_queues_and_shared_memory() {
    let Some(command) = command("python3", &[script::path("processes.py").to_str().unwrap()]) else { return };
    Work::in_steps(command).survives_three_kills();
}

#[test]
fn bash_with_pipelines_jobs_and_subshells() {
    let Some(command) = command("bash", &[script::path("jobs.sh").to_str().unwrap()]) else { return };
    Work { made: &log, ..Work::in_steps(command) }.survives_three_kills();
}

#[test]
fn make_with_four_compilers_at_once() {
    const FILES: usize = 24;
    let Some(command) = command("make", &["-j4", "program"]) else { return };
    Work {
        command,
        prepare: &|directory| {
            let objects: Vec<String> = (0..FILES).map(|file| format!("part{file}.o")).collect();
            let rules = "program: $(OBJECTS)\n\tcat $(OBJECTS) > $@\n%.o: %.c\n\tgcc -O2 -c -o $@ $<\n";
            fs::write(directory.join("Makefile"), format!("OBJECTS = {}\n{rules}", objects.join(" "))).unwrap();
            for file in 0..FILES {
                let functions: String = (0..60)
                    .map(|n| format!("int f{file}_{n}(int x) {{ int s = {n}; while (x--) s += x * s + {file}; return s; }}\n"))
                    .collect();
                fs::write(directory.join(format!("part{file}.c")), functions).unwrap();
            }
        },
        reach: &|running, directory, kill| running.wait_size(&directory.join(format!("part{}.o", 5 * kill)), 1),
        made: &|directory| fs::read(directory.join("program")).unwrap(),
    }
    .survives_three_kills();
}

#[test]
fn perl_with_hashes_and_open_files() {
    let Some(command) = command("perl", &[script::path("work.pl").to_str().unwrap()]) else { return };
    Work { made: &log, ..Work::in_steps(command) }.survives_three_kills();
}

#[test]
fn node_with_timers_and_worker_threads() {
    let Some(command) = command("node", &[script::path("work.js").to_str().unwrap()]) else { return };
    Work::in_steps(command).survives_three_kills();
}

#[test]
fn java_with_several_threads_and_the_g1_collector() {
    let source = script::path("Work.java");
    let Some(command) = command("java", &["-XX:+UseG1GC", "-Xmx512m", source.to_str().unwrap()]) else {
        return;
    };
    if find_program("javac").is_none() {
        skip("only a Java runtime is installed, and a program is started from its source here");
        return;
    }
    Work::in_steps(command).survives_three_kills();
}

#[test]
fn sqlite_in_the_middle_of_a_transaction() {
    let Some(command) =
        command("sqlite3", &["items.db", &format!(".read {}", script::path("transaction.sql").display())])
    else {
        return;
    };
    Work {
        reach: &|running, directory, kill| {
            // The transaction's pages reach the file long before it is committed: the cache is small.
            running.wait_size(&directory.join("items.db"), u64::from(kill) * 10_000_000);
            assert!(directory.join("items.db-journal").exists(), "the transaction is over");
        },
        made: &|directory| {
            assert!(!directory.join("items.db-journal").exists(), "the transaction is not over");
            fs::read(directory.join("items.db")).unwrap()
        },
        ..Work::in_steps(command)
    }
    .survives_three_kills();
}

#[test]
fn xz_with_two_threads() {
    let Some(command) = command("xz", &["-T2", "--block-size=1MiB", "--keep", "data"]) else { return };
    Work {
        command,
        prepare: &|directory| write_text(&directory.join("data"), 24),
        reach: &|running, directory, kill| {
            running.wait_size(&directory.join("data.xz"), u64::from(kill) * 1_500_000);
            assert!(directory.join("data").exists());
        },
        made: &|directory| fs::read(directory.join("data.xz")).unwrap(),
    }
    .survives_three_kills();
}

#[test]
fn gzip_in_a_shells_redirection() {
    if find_program("gzip").is_none() {
        skip("gzip is not installed");
        return;
    }
    let lab = Lab::new();
    let input = lab.work().join("data");
    write_text(&input, 24);
    let output = lab.work().join("data.gz");
    let shell = lab.native(["sh", "-c", "gzip -9 <data >undisturbed.gz"]).start();
    assert!(shell.wait_exit().success());

    // As typed: the redirections are the shell's, and gzip sees two descriptors without a name.
    let stasis = lab::binary("stasis");
    let mut running = lab
        .native(["sh", "-c", "exec \"$0\" launch -- gzip -9 <data >data.gz", stasis.to_str().unwrap()])
        .start();
    for kill in 1..=KILLS {
        running.wait_size(&output, u64::from(kill) * 2_000_000);
        lab.checkpoint_kill(running);
        running = lab.restart(["latest"]);
    }
    running.expect_code(0);
    assert!(fs::read(&output).unwrap() == fs::read(lab.work().join("undisturbed.gz")).unwrap());
}

#[test]
fn bc_with_its_output_in_a_file() {
    let Some(command) = command("bc", &["-q", script::path("digits.bc").to_str().unwrap()]) else { return };
    Work {
        reach: &|running, _, kill| {
            let bytes = u64::from(kill) * 12_000;
            running.wait_size(&running.files().stdout, bytes);
        },
        ..Work::in_steps(command)
    }
    .survives_three_kills();
}

#[test]
fn a_simulation_with_a_gigabyte_of_state() {
    let command = vec![compile::program("simulation").into(), "16".into()];
    Work {
        reach: &|running, _, kill| running.wait_line(&format!("step {}", 4 * kill - 2)),
        ..Work::in_steps(command)
    }
    .survives_three_kills();
}

#[test]
fn redis_with_its_benchmark() {
    if ["redis-server", "redis-benchmark", "redis-cli"].iter().any(|name| find_program(name).is_none()) {
        return skip("redis-server is not installed");
    }
    let Some(command) = command("bash", &[script::path("redis.sh").to_str().unwrap()]) else { return };
    Work::in_steps(command).survives_three_kills();
}

/// As a user without privileges: the server refuses root.
#[test]
fn postgresql_in_the_middle_of_transactions() {
    if find_program("postgres").is_none() && !Path::new("/usr/lib/postgresql").exists() {
        return skip("postgresql is not installed");
    }
    if !is_root() {
        return skip("only root becomes another user");
    }
    // In a place of its own each time: the log ends when the server has.
    let bank = |kills: u32| {
        let nobody = Nobody::new(&[]);
        let work = nobody.lab.work();
        let log = || fs::read_to_string(work.join("log.txt")).unwrap_or_default();
        let bank = nobody.binaries.join("bank.sh");
        fs::copy(script::path("bank.sh"), &bank).unwrap();
        let (mut running, pipes) = nobody.start(&["launch", "--", "bash", bank.to_str().unwrap()]);
        let mut outputs = Vec::from(pipes);
        for kill in 1..=kills {
            let (begun, step) = (Instant::now(), format!("step {}\n", 5 * kill - 1));
            while !log().contains(&step) {
                assert!(!running.has_ended() && begun.elapsed() < DEADLINE, "no {step}{}", log());
                thread::sleep(Duration::from_millis(20));
            }
            nobody.checkpoint_kill(running);
            if kill == 1 {
                // It is restarted in an IPC namespace, and nobody else would remove what it has left in this one.
                let state = fs::read_to_string(work.join("data/postmaster.pid")).unwrap();
                let id = state.lines().nth(6).and_then(|keys| keys.split_whitespace().last()?.parse().ok());
                // SAFETY: numbers only.
                unsafe { libc::shmctl(id.unwrap(), libc::IPC_RMID, std::ptr::null_mut()) };
            }
            let pipes;
            (running, pipes) = nobody.start(&["restart"]);
            outputs.extend(pipes);
            nobody.pids(&running);
        }
        script::let_finish(&work);
        running.wait_exit();
        log()
    };
    let undisturbed = bank(0);
    assert!(undisturbed.ends_with("sound\nended 0\n"), "{undisturbed}");
    assert_eq!(bank(KILLS), undisturbed);
}

/// `mpirun` with four processes that send each other checksummed messages.
#[track_caller]
fn open_mpi(transport: &[&str]) {
    if find_program("mpirun").is_none() || find_program("mpicc").is_none() {
        return skip("openmpi-bin and libopenmpi-dev are not installed");
    }
    // Pipes to its processes instead of pseudo-terminals. By env(1), so that both runs have it.
    let preload = format!("LD_PRELOAD={}", compile::shared_library("no_openpty").display());
    let own = [&preload, "mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "4"];
    let Some(mut command) = command("env", &[&own[..], transport].concat()) else { return };
    command.push(compile::program("mpi_ring").into());
    Work::in_steps(command).survives_three_kills();
}

#[test]
fn open_mpi_over_shared_memory() {
    open_mpi(&["--mca", "btl", "self,vader"]);
}

#[test]
fn open_mpi_over_tcp() {
    open_mpi(&["--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "lo"]);
}
