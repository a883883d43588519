// Sleeps that are to leave what is left of them in place of what was asked for: one that a checkpoint came into has slept
// all of its time and leaves nothing; one that a handler ended leaves what is left.
#include "verify.h"
#include <threads.h>

enum { KINDS = 4 };

static const struct timespec ASKED = {0, 30000000};
static atomic_int sleeping = KINDS;

static int by_number(struct timespec *time) {
    return syscall(SYS_nanosleep, time, time);
}

static int by_function(struct timespec *time) {
    return nanosleep(time, time);
}

static int by_clock(struct timespec *time) {
    return clock_nanosleep(CLOCK_MONOTONIC, 0, time, time);
}

static int by_thread(struct timespec *time) {
    return thrd_sleep(time, time);
}

static int (*const kinds[KINDS])(struct timespec *) = {by_number, by_function, by_clock, by_thread};

static bool is_as_asked(const struct timespec *time) {
    return time->tv_sec == ASKED.tv_sec && time->tv_nsec == ASKED.tv_nsec;
}

static void *sleep_until_go(void *kind) {
    struct timespec time = ASKED;
    if (loses("asked"))
        time.tv_nsec--;
    while (!told_to_go() && is_as_asked(&time)) {
        int64_t start = now_ns(CLOCK_MONOTONIC);
        int result = kinds[(intptr_t)kind](&time);
        int64_t slept = now_ns(CLOCK_MONOTONIC) - start;
        CHECK(result == 0, "sleep %ld gave %d", (long)(intptr_t)kind, result);
        CHECK(slept >= ASKED.tv_nsec, "sleep %ld ended after %ld ns", (long)(intptr_t)kind, (long)slept);
    }
    CHECK(is_as_asked(&time), "sleep %ld left %ld.%09ld", (long)(intptr_t)kind, time.tv_sec, time.tv_nsec);
    atomic_fetch_sub(&sleeping, 1);
    return NULL;
}

static void ignore(int signal) {
    (void)signal;
}

static void *sleep_until_interrupted(void *kind) {
    struct timespec time = {100, 0};
    int result = kinds[(intptr_t)kind](&time);
    CHECK(result != 0, "sleep %ld did not end early", (long)(intptr_t)kind);
    if (loses("left"))
        time.tv_sec = 100;
    CHECK(time.tv_sec < 100 && time.tv_sec > 50, "sleep %ld left %ld s", (long)(intptr_t)kind, time.tv_sec);
    atomic_fetch_sub(&sleeping, 1);
    return NULL;
}

int main(void) {
    struct sigaction action = {.sa_handler = ignore};
    sigaction(SIGUSR1, &action, NULL);
    pthread_t threads[KINDS], interrupted[KINDS];
    for (intptr_t kind = 0; kind < KINDS; kind++) {
        threads[kind] = start_thread(sleep_until_go, (void *)kind);
        interrupted[kind] = start_thread(sleep_until_interrupted, (void *)kind);
    }
    until_go();
    for (int kind = 0; kind < KINDS; kind++)
        pthread_join(threads[kind], NULL);
    // A signal that comes before a thread sleeps ends nothing.
    atomic_store(&sleeping, KINDS);
    while (atomic_load(&sleeping)) {
        for (int kind = 0; kind < KINDS; kind++)
            pthread_kill(interrupted[kind], SIGUSR1);
        sleep_ms(10);
    }
    for (int kind = 0; kind < KINDS; kind++)
        pthread_join(interrupted[kind], NULL);
    return verdict();
}
