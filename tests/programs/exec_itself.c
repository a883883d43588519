// A program that a thread of its own executes again every few milliseconds; signals that are blocked and pending come along.
#include "verify.h"

enum { QUEUED = 5, LEAST = 20 };

static char **own_arguments;
static int generation;

static sigset_t signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    return set;
}

static void expect_queued(void) {
    sigset_t set = signals();
    struct timespec none = {0, 0};
    siginfo_t info;
    if (loses("pending"))
        sigtimedwait(&set, &info, &none);
    for (int i = 0; i < QUEUED; i++) {
        int got = sigtimedwait(&set, &info, &none);
        CHECK(got == SIGRTMIN + 1 && info.si_value.sival_int == generation * QUEUED + i,
              "generation %d: signal %d is lost or changed", generation, i);
    }
    CHECK(sigtimedwait(&set, &info, &none) == -1, "generation %d: a signal came twice", generation);
}

static void *execute(void *unused) {
    char next[16];
    char *arguments[] = {own_arguments[0], next, NULL};
    snprintf(next, sizeof next, "%d", generation + 1);
    sleep_ms(3);
    execv("/proc/self/exe", arguments);
    FAIL("it cannot be executed");
    _exit(1);
    return unused;
}

int main(int argc, char **argv) {
    sigset_t set = signals();
    own_arguments = argv;
    generation = argc > 1 ? atoi(argv[1]) : 0;
    if (generation > 0)
        expect_queued();
    if (atomic_load(&failures) || (generation > LEAST && told_to_go()))
        return verdict();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (generation == 0)
        say_ready();
    for (int i = 0; i < QUEUED; i++)
        REQUIRE(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = (generation + 1) * QUEUED + i}) == 0);
    start_waiting_thread();
    start_thread(execute, NULL);
    for (;;)
        pause();
}
