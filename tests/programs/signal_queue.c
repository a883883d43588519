// Blocked signals that are pending, and queued real-time signals with their values, to a thread and to the process.
#include "verify.h"

enum { QUEUED = 100 };

static pthread_t other;
static atomic_int other_ready;
static atomic_int go_on;

// Takes the next pending signal of the set without waiting.
static int take(const sigset_t *set, siginfo_t *info) {
    struct timespec none = {0, 0};
    memset(info, 0, sizeof *info);
    // Not glibc's sigtimedwait, which says SI_USER where the kernel says SI_TKILL.
    return syscall(SYS_rt_sigtimedwait, set, info, &none, 8);
}

static void expect_queue(int signal, int base) {
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, signal);
    for (int i = 0; i < QUEUED; i++) {
        int got = take(&set, &info);
        CHECK(got == signal, "signal %d of %d queued ones is lost", i, QUEUED);
        if (got != signal)
            return;
        CHECK(info.si_value.sival_int == base + i, "signal %d came as number %d", info.si_value.sival_int - base, i);
        CHECK(info.si_code == SI_QUEUE && info.si_pid == getpid() && info.si_uid == getuid(),
              "siginfo is wrong: code %d, pid %d, uid %d", info.si_code, info.si_pid, info.si_uid);
    }
    CHECK(take(&set, &info) == -1, "a queued signal came twice");
}

static void expect_one(int signal, int code) {
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, signal);
    CHECK(take(&set, &info) == signal && info.si_code == code, "pending signal %d is lost or changed", signal);
    CHECK(take(&set, &info) == -1, "signal %d came twice", signal);
}

static void *own_queue(void *unused) {
    atomic_store(&other_ready, 1);
    await_value(&go_on, 1);
    expect_one(SIGUSR2, SI_TKILL);
    expect_queue(SIGRTMIN + 2, 5000);
    return unused;
}

int main(void) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    other = start_thread(own_queue, NULL);
    await_value(&other_ready, 1);
    for (int i = 0; i < QUEUED; i++) {
        union sigval process = {.sival_int = 1000 + i}, thread = {.sival_int = 5000 + i};
        REQUIRE(sigqueue(getpid(), SIGRTMIN, process) == 0);
        REQUIRE(sigqueue(getpid(), SIGRTMAX, process) == 0);
        REQUIRE(pthread_sigqueue(other, SIGRTMIN + 2, thread) == 0);
    }
    REQUIRE(kill(getpid(), SIGUSR1) == 0 && pthread_kill(other, SIGUSR2) == 0);
    REQUIRE(pthread_kill(pthread_self(), SIGTERM) == 0);

    until_go();

    siginfo_t info;
    sigset_t usr1, first;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigemptyset(&first);
    sigaddset(&first, SIGRTMIN);
    if (loses("pending"))
        take(&usr1, &info);
    if (loses("order")) {
        union sigval again = {.sival_int = 1000};
        take(&first, &info);
        sigqueue(getpid(), SIGRTMIN, again);
    }
    if (loses("value")) {
        take(&first, &info);
        kill(getpid(), SIGRTMIN);
    }
    if (loses("thread"))
        pthread_kill(other, SIGRTMIN + 2);
    sigset_t pending;
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGRTMIN) && !sigismember(&pending, SIGUSR2),
          "sigpending names the signals of another thread, or not its own");
    expect_one(SIGUSR1, SI_USER);
    expect_one(SIGTERM, SI_TKILL);
    expect_queue(SIGRTMIN, 1000);
    expect_queue(SIGRTMAX, 1000);
    atomic_store(&go_on, 1);
    pthread_join(other, NULL);
    return verdict();
}
