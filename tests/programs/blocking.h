// How the blocking_*.c workloads time a call: it takes `milliseconds`, ends by timeout or by an event that
// another thread makes, is never seen interrupted, and is neither early nor late.
#ifndef BLOCKING_H
#define BLOCKING_H

#include "verify.h"

struct call {
    const char *name;
    int milliseconds;
    void (*perform)(void);
    // What another thread does after that time; NULL where the call ends by itself.
    void (*event)(void);
    // The deadline is a time of the clock, not a time left: it does not move over a restart.
    bool absolute;
};

// A call may take this much longer than asked, in milliseconds. It may not be shorter.
enum { LATE_MS = 20, ACROSS_RESTART_LATE_MS = 60, LATE = 2 };

static const struct call *performed;
static pthread_t caller;
static atomic_int performing;
static int64_t longest_gap_ns;
static int64_t gap_end_ns;

#define EXPECT(call, value)                                                                        \
    do {                                                                                           \
        errno = 0;                                                                                 \
        long outcome = (long)(call);                                                               \
        CHECK(outcome == (long)(value), "%s gave %ld instead of %ld", #call, outcome, (long)(value));\
    } while (0)

#define EXPECT_ERROR(call, error)                                                                  \
    do {                                                                                           \
        errno = 0;                                                                                 \
        long outcome = (long)(call);                                                               \
        CHECK(outcome == -1 && errno == (error), "%s gave %ld, not the error %s", #call, outcome, #error);\
    } while (0)

UNUSED static struct timespec in_ms(clockid_t clock, int64_t milliseconds) {
    int64_t time = now_ns(clock) + milliseconds * 1000000;
    return (struct timespec){time / 1000000000, time % 1000000000};
}

static void *make_event(void *unused) {
    struct timespec left = {performed->milliseconds / 1000, performed->milliseconds % 1000 * 1000000L};
    int slept = nanosleep(&left, NULL);
    CHECK(slept == 0, "the nanosleep of the thread that makes the event was interrupted");
    performed->event();
    return unused;
}

// Finds how long the program stood still: the longest step between two looks at the clock.
static void *watch_clock(void *unused) {
    int64_t before = now_ns(CLOCK_MONOTONIC);
    while (atomic_load(&performing)) {
        struct timespec millisecond = {0, 1000000};
        int slept = nanosleep(&millisecond, NULL);
        CHECK(slept == 0, "the nanosleep of a thread beside the call was interrupted");
        int64_t now = now_ns(CLOCK_MONOTONIC);
        if (now - before > longest_gap_ns) {
            longest_gap_ns = now - before;
            gap_end_ns = now;
        }
        before = now;
    }
    return unused;
}

static void ignore(int signal) {
    (void)signal;
}

// What a careless checkpoint does: a handler without SA_RESTART runs in the middle of the call.
static void *interrupt(void *unused) {
    struct sigaction action = {.sa_handler = ignore};
    sigaction(SIGURG, &action, NULL);
    sleep_ms(performed->milliseconds / 2);
    pthread_kill(caller, SIGURG);
    return unused;
}

static int list_calls(const struct call *calls) {
    for (; calls->name; calls++)
        puts(calls->name);
    return 0;
}

// argv: the call's name, or `list`; then `restarted` where the test kills and restarts meanwhile.
// Returns LATE, after saying so, where nothing is wrong but the time: a loaded machine may be the reason.
UNUSED static int run_call(const struct call *calls, int argc, char **argv) {
    REQUIRE(argc > 1);
    if (strcmp(argv[1], "list") == 0)
        return list_calls(calls);
    bool restarted = argc > 2 && strcmp(argv[2], "restarted") == 0;
    for (performed = calls; performed->name && strcmp(performed->name, argv[1]);)
        performed++;
    REQUIRE(performed->name != NULL);

    until_go();
    atomic_store(&performing, 1);
    pthread_t watch = start_thread(watch_clock, NULL), event = 0, interrupter = 0;
    int64_t start = now_ns(CLOCK_MONOTONIC);
    if (performed->event)
        event = start_thread(make_event, NULL);
    caller = pthread_self();
    if (loses("interrupt"))
        interrupter = start_thread(interrupt, NULL);
    if (loses("deadline"))
        start -= 100000000;
    performed->perform();
    int64_t end = now_ns(CLOCK_MONOTONIC);
    atomic_store(&performing, 0);
    pthread_join(watch, NULL);
    if (interrupter)
        pthread_join(interrupter, NULL);
    if (performed->event)
        pthread_join(event, NULL);

    int64_t deadline = start + performed->milliseconds * 1000000LL;
    // SO_RCVTIMEO and SO_SNDTIMEO are timers of the wheel, which rounds 1.5 s up by as much as 32 ms at 250 Hz
    // (kernel/time/timer.c).
    bool by_wheel = strstr(performed->name, "-timeout") && strstr(__BASE_FILE__, "blocking_socket");
    int64_t late = by_wheel ? LATE_MS + 40 : LATE_MS;
    if (restarted) {
        late = ACROSS_RESTART_LATE_MS;
        if (!performed->absolute)
            deadline += longest_gap_ns - 1000000;
        else if (gap_end_ns > deadline)
            deadline = gap_end_ns;
        CHECK(longest_gap_ns > 20000000, "nothing stood still for 20 ms: was the program restarted?");
    }
    double off = (end - deadline) / 1e6;
    // A restarted call's time left is known no better than the time it stood still.
    CHECK(off >= (restarted ? -(double)late : -2.0), "%s ended %.3f ms early", performed->name, -off);
    if (!atomic_load(&failures) && off > late) {
        printf("LATE: %s ended %.3f ms after its time\n", performed->name, off);
        return LATE;
    }
    return verdict();
}

#endif
