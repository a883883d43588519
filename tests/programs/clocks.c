// Clocks: monotonic ones never go back, real time is today's, CPU times are not lost while the program runs on.
#include "verify.h"

static const struct { const char *name; clockid_t clock; } clocks[] = {
    {"CLOCK_MONOTONIC", CLOCK_MONOTONIC},         {"CLOCK_MONOTONIC_RAW", CLOCK_MONOTONIC_RAW},
    {"CLOCK_MONOTONIC_COARSE", CLOCK_MONOTONIC_COARSE}, {"CLOCK_BOOTTIME", CLOCK_BOOTTIME},
    {"CLOCK_REALTIME", CLOCK_REALTIME},           {"CLOCK_TAI", CLOCK_TAI},
};
enum { COUNT = sizeof clocks / sizeof *clocks };

int main(void) {
    int64_t before[COUNT], start = now_ns(CLOCK_REALTIME) - now_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < COUNT; i++)
        before[i] = now_ns(clocks[i].clock);
    until_go();
    if (loses("monotony"))
        before[0] += 3600000000000;
    for (int i = 0; i < COUNT; i++) {
        int64_t now = now_ns(clocks[i].clock), kernel;
        struct timespec time;
        CHECK(now >= before[i], "%s went back by %jd ns", clocks[i].name, (intmax_t)(before[i] - now));
        CHECK(now - before[i] < 600000000000, "%s jumped by %jd s", clocks[i].name,
              (intmax_t)((now - before[i]) / 1000000000));
        syscall(SYS_clock_gettime, clocks[i].clock, &time);
        kernel = time.tv_sec * 1000000000LL + time.tv_nsec;
        CHECK(kernel >= now && kernel - now < 100000000, "%s: the kernel says %jd ns more", clocks[i].name,
              (intmax_t)(kernel - now));
    }
    int64_t drift = now_ns(CLOCK_REALTIME) - now_ns(CLOCK_MONOTONIC) - start + (loses("real-time") ? 1000000000 : 0);
    CHECK(llabs(drift) < 500000000, "real time and monotonic time moved apart by %jd ns", (intmax_t)drift);
    int64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID), thread = now_ns(CLOCK_THREAD_CPUTIME_ID);
    for (volatile int i = 0; i < 50000000; i++)
        ;
    CHECK(now_ns(CLOCK_PROCESS_CPUTIME_ID) > cpu && now_ns(CLOCK_THREAD_CPUTIME_ID) > thread, "CPU time stands still");
    return verdict();
}
