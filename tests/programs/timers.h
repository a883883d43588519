// What the timer workloads share: comparing times left, whether or not the program stood still meanwhile.
#ifndef TIMERS_H
#define TIMERS_H

#include "verify.h"
#include <sys/time.h>

static int64_t longest_gap_ns;
static int64_t gap_end_ns;
static int64_t stood_still_ns;

// As await_go(), and finds how long the program stood still: the longest step between two looks, and all long ones together.
UNUSED static void watch_until_go(void) {
    say_ready();
    int64_t before = now_ns(CLOCK_MONOTONIC);
    while (!told_to_go()) {
        sleep_ms(1);
        int64_t now = now_ns(CLOCK_MONOTONIC);
        if (now - before > longest_gap_ns) {
            longest_gap_ns = now - before;
            gap_end_ns = now;
        }
        if (now - before > 10000000)
            stood_still_ns += now - before;
        before = now;
    }
}

UNUSED static double seconds_of(struct timespec time) {
    return time.tv_sec + time.tv_nsec / 1e9;
}

// A relative timer keeps the time it had left: what passes while the program does not exist does not count.
UNUSED static bool near_left(double left, double set, int64_t set_at_ns) {
    double passed = (now_ns(CLOCK_MONOTONIC) - set_at_ns) / 1e9, gap = longest_gap_ns / 1e9;
    bool near = left > set - passed - 0.05 && left < set - passed + stood_still_ns / 1e9 + 0.05;
    // Standing still for long must show: a checkpoint and restart took it.
    if (gap > 0.2)
        near = near && left > set - passed + gap - 0.1;
    if (!near)
        printf("note: %.3f s left of %.3f, %.3f passed, %.3f of them standing still\n", left, set, passed,
               stood_still_ns / 1e9);
    return near;
}

#endif
