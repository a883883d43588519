//! Every blocking call that the kernel does not simply restart after a signal handler, and those that it does: under
//! twenty checkpoints a second none of them is seen interrupted, none ends early, none is late by more than 20 ms.

use std::{fs, thread, time::Duration};

use stasis_tests::{Lab, Workload, workload::checkpoint_steadily};

/// A machine that is busy with something else makes calls late, too: that alone may happen so often.
const ATTEMPTS: usize = 3;

/// The exit status by which a program says that only the time was wrong (`LATE` in blocking.h).
const LATE: i32 = 2;

/// Runs `attempt` (which returns exit status and output) until it is not late, and expects `ok`.
#[track_caller]
fn on_time(attempt: impl Fn() -> (Option<i32>, String)) {
    let mut late = Vec::new();
    for _ in 0..ATTEMPTS {
        let (code, stdout) = attempt();
        match code {
            Some(0) if stdout.lines().last() == Some("ok") => return,
            Some(LATE) => late.push(stdout),
            _ => panic!("exit status {code:?}\n{stdout}"),
        }
    }
    panic!("late in each of {ATTEMPTS} attempts:\n{}", late.concat());
}

fn end(running: stasis_tests::Running) -> (Option<i32>, String) {
    let files = running.files().clone();
    let status = running.wait_exit();
    (status.code(), fs::read_to_string(&files.stdout).expect("what it printed"))
}

/// The call is made natively: right as it is, and found wrong when its deadline is missed.
#[track_caller]
fn natively(program: &'static str, call: &'static str) {
    let workload = Workload { program, arguments: &[] };
    on_time(|| {
        let lab = Lab::new();
        let running = workload.native(&lab, &[call], None);
        running.go();
        end(running)
    });
    let lab = Lab::new();
    let running = workload.native(&lab, &[call], Some("deadline"));
    running.go();
    let (code, stdout) = end(running);
    assert_eq!(code, Some(LATE), "a missed deadline is not noticed:\n{stdout}");
}

/// A handler that runs in the midst of the call, as a careless checkpoint's does, is noticed.
#[track_caller]
fn interrupted_natively(program: &'static str, call: &'static str) {
    let workload = Workload { program, arguments: &[] };
    let lab = Lab::new();
    let running = workload.native(&lab, &[call], Some("interrupt"));
    running.go();
    let (code, stdout) = end(running);
    assert!(
        code == Some(1) && stdout.contains("FAIL: "),
        "an interruption is not noticed: {code:?}\n{stdout}"
    );
}

#[track_caller]
fn under_checkpoints(program: &'static str, call: &'static str) {
    let workload = Workload { program, arguments: &[] };
    on_time(|| {
        let lab = Lab::new();
        let running = workload.launch_with(&lab, &[call]);
        running.wait_ready();
        // The first checkpoint of a program takes all of its memory and starts the store: not in the call.
        lab.checkpoint(&[]);
        running.go();
        let taken = checkpoint_steadily(&lab, &running, Duration::from_millis(50));
        assert!(taken >= 5, "only {taken} checkpoints were taken during the call");
        end(running)
    });
}

/// Killed in the midst of the call and restarted, it ends after the time that it had left.
#[track_caller]
fn across_a_restart(program: &'static str, call: &'static str) {
    let workload = Workload { program, arguments: &[] };
    on_time(|| {
        let lab = Lab::new();
        let running = workload.launch_with(&lab, &[call, "restarted"]);
        running.wait_ready();
        // Starting the store waits for the disk: not in the call.
        lab.checkpoint(&[]);
        running.go();
        // Into the middle of the call.
        thread::sleep(Duration::from_millis(500));
        lab.checkpoint_kill(running);
        thread::sleep(Duration::from_millis(100));
        end(lab.restart(["latest"]))
    });
}

macro_rules! calls {
    ($program:literal, $($name:ident: $call:literal, $noticed:ident, $restarted:ident;)*) => {$(
        mod $name {
            #[test]
            fn is_right_natively() {
                super::super::natively($program, $call);
            }

            $crate::$noticed!($program, $call);

            #[test]
            fn is_on_time_under_twenty_checkpoints_a_second() {
                super::super::under_checkpoints($program, $call);
            }

            $crate::$restarted!($program, $call);
        }
    )*};
}

/// The call gives EINTR after a handler without SA_RESTART.
#[macro_export]
macro_rules! interruptible {
    ($program:literal, $call:literal) => {
        #[test]
        fn is_noticed_natively_when_interrupted() {
            super::super::interrupted_natively($program, $call);
        }
    };
}

/// glibc goes on by itself after a handler (pthread_mutex_lock(3p) and the like shall never give EINTR).
#[macro_export]
macro_rules! resumed_by_libc {
    ($program:literal, $call:literal) => {};
}

#[macro_export]
macro_rules! restartable {
    ($program:literal, $call:literal) => {
        #[test]
        fn has_its_time_left_after_a_restart() {
            super::super::across_a_restart($program, $call);
        }
    };
}

/// It waits for something outside the process (the kernel's aio context).
#[macro_export]
macro_rules! not_restartable {
    ($program:literal, $call:literal) => {};
}

mod sleeps_and_signals {
    calls! {
        "blocking_sleep",
        nanosleep: "nanosleep", interruptible, restartable;
        nanosleep_raw: "nanosleep-raw", interruptible, restartable;
        nanosleep_ended_by_a_handler: "nanosleep-ended-by-a-handler", interruptible, restartable;
        clock_nanosleep: "clock_nanosleep", interruptible, restartable;
        clock_nanosleep_realtime: "clock_nanosleep-realtime", interruptible, restartable;
        clock_nanosleep_absolute: "clock_nanosleep-absolute", interruptible, restartable;
        usleep: "usleep", interruptible, restartable;
        sleep: "sleep", interruptible, restartable;
        thrd_sleep: "thrd_sleep", interruptible, restartable;
        pause: "pause", interruptible, restartable;
        sigsuspend: "sigsuspend", resumed_by_libc, restartable;
        sigtimedwait_timeout: "sigtimedwait-timeout", interruptible, restartable;
        sigtimedwait: "sigtimedwait", interruptible, restartable;
        sigwaitinfo: "sigwaitinfo", interruptible, restartable;
        sigwait: "sigwait", resumed_by_libc, restartable;
    }
}

mod multiplexers {
    calls! {
        "blocking_wait",
        poll_timeout: "poll-timeout", interruptible, restartable;
        poll_nothing: "poll-nothing", interruptible, restartable;
        poll: "poll", interruptible, restartable;
        ppoll_timeout: "ppoll-timeout", interruptible, restartable;
        ppoll_raw: "ppoll-raw", interruptible, restartable;
        ppoll: "ppoll", interruptible, restartable;
        select_timeout: "select-timeout", interruptible, restartable;
        select: "select", interruptible, restartable;
        pselect_timeout: "pselect-timeout", interruptible, restartable;
        pselect: "pselect", interruptible, restartable;
        epoll_wait_timeout: "epoll_wait-timeout", interruptible, restartable;
        epoll_wait: "epoll_wait", interruptible, restartable;
        epoll_pwait_timeout: "epoll_pwait-timeout", interruptible, restartable;
        epoll_pwait: "epoll_pwait", interruptible, restartable;
        epoll_pwait2_timeout: "epoll_pwait2-timeout", interruptible, restartable;
        epoll_pwait2: "epoll_pwait2", interruptible, restartable;
        io_getevents_timeout: "io_getevents-timeout", interruptible, not_restartable;
        io_getevents: "io_getevents", interruptible, not_restartable;
    }
}

mod reads_and_writes {
    calls! {
        "blocking_read",
        read_pipe: "read-pipe", interruptible, restartable;
        readv_pipe: "readv-pipe", interruptible, restartable;
        write_pipe: "write-pipe", interruptible, restartable;
        writev_pipe: "writev-pipe", interruptible, restartable;
        write_pipe_in_parts: "write-pipe-in-parts", interruptible, restartable;
        splice: "splice", interruptible, restartable;
        open_fifo: "open-fifo", interruptible, restartable;
        read_terminal: "read-tty", interruptible, restartable;
        read_eventfd: "read-eventfd", interruptible, restartable;
        write_eventfd: "write-eventfd", interruptible, restartable;
        read_timerfd: "read-timerfd", interruptible, restartable;
        read_signalfd: "read-signalfd", interruptible, restartable;
        read_inotify: "read-inotify", interruptible, restartable;
    }
}

mod locks_and_futexes {
    calls! {
        "blocking_lock",
        futex: "futex", interruptible, restartable;
        futex_absolute: "futex-absolute", interruptible, restartable;
        futex_woken: "futex-woken", interruptible, restartable;
        futex_waitv: "futex_waitv", interruptible, restartable;
        sem_wait: "sem_wait", interruptible, restartable;
        sem_timedwait: "sem_timedwait", interruptible, restartable;
        sem_clockwait: "sem_clockwait", interruptible, restartable;
        pthread_cond_wait: "pthread_cond_wait", resumed_by_libc, restartable;
        pthread_cond_timedwait: "pthread_cond_timedwait", resumed_by_libc, restartable;
        pthread_cond_clockwait: "pthread_cond_clockwait", resumed_by_libc, restartable;
        pthread_mutex_lock: "pthread_mutex_lock", resumed_by_libc, restartable;
        pthread_mutex_timedlock: "pthread_mutex_timedlock", resumed_by_libc, restartable;
        pthread_mutex_lock_pi: "pthread_mutex_lock-pi", resumed_by_libc, restartable;
        pthread_mutex_timedlock_pi: "pthread_mutex_timedlock-pi", resumed_by_libc, restartable;
        pthread_rwlock_rdlock: "pthread_rwlock_rdlock", resumed_by_libc, restartable;
        pthread_rwlock_timedwrlock: "pthread_rwlock_timedwrlock", resumed_by_libc, restartable;
        pthread_barrier_wait: "pthread_barrier_wait", resumed_by_libc, restartable;
        pthread_join: "pthread_join", resumed_by_libc, restartable;
        pthread_timedjoin_np: "pthread_timedjoin_np", resumed_by_libc, restartable;
        flock: "flock", interruptible, restartable;
        fcntl_ofd_setlkw: "fcntl-ofd_setlkw", interruptible, restartable;
    }
}

mod queues_and_semaphores {
    calls! {
        "blocking_ipc",
        semop: "semop", interruptible, restartable;
        semtimedop_timeout: "semtimedop-timeout", interruptible, restartable;
        semtimedop: "semtimedop", interruptible, restartable;
        msgrcv: "msgrcv", interruptible, restartable;
        msgsnd: "msgsnd", interruptible, restartable;
        mq_receive: "mq_receive", interruptible, restartable;
        mq_timedreceive: "mq_timedreceive", interruptible, restartable;
        mq_timedsend: "mq_timedsend", interruptible, restartable;
    }
}

mod sockets {
    calls! {
        "blocking_socket",
        connect: "connect", interruptible, restartable;
        recv: "recv", interruptible, restartable;
        read_socket: "read-socket", interruptible, restartable;
        recvfrom: "recvfrom", interruptible, restartable;
        recvmsg: "recvmsg", interruptible, restartable;
        recv_timeout: "recv-timeout", interruptible, restartable;
        read_socket_timeout: "read-socket-timeout", interruptible, restartable;
        recvmsg_timeout: "recvmsg-timeout", interruptible, restartable;
        recv_waitall_timeout: "recv-waitall-timeout", interruptible, restartable;
        recvmmsg: "recvmmsg", interruptible, restartable;
        recvmmsg_by_number: "recvmmsg-by-number", interruptible, restartable;
        recvmmsg_without_libc: "recvmmsg-without-libc", interruptible, restartable;
        recvmmsg_in_parts: "recvmmsg-in-parts", interruptible, restartable;
        send: "send", interruptible, restartable;
        send_uneven: "send-uneven", interruptible, restartable;
        send_datagram: "send-datagram", interruptible, restartable;
        send_timeout: "send-timeout", interruptible, restartable;
        sendmsg_timeout: "sendmsg-timeout", interruptible, restartable;
        accept: "accept", interruptible, restartable;
        accept4: "accept4", interruptible, restartable;
        accept_timeout: "accept-timeout", interruptible, restartable;
    }
}

/// Calls that wait for a child: the program and its child are one computation, and natively they are right.
mod children {
    #[test]
    fn are_waited_for_natively() {
        for call in ["fcntl-setlkw-child", "waitpid-child", "waitid-child"] {
            super::natively("blocking_lock", call);
        }
    }
}
