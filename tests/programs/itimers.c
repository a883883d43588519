// Interval timers of the three kinds: time left and interval, and they go on ticking.
#include "timers.h"

static atomic_int real_ticks, virtual_ticks, profile_ticks;

static void tick(int signal) {
    atomic_fetch_add(signal == SIGALRM ? &real_ticks : signal == SIGVTALRM ? &virtual_ticks : &profile_ticks, 1);
}

static void use_cpu_ms(int milliseconds) {
    int64_t until = now_ns(CLOCK_PROCESS_CPUTIME_ID) + milliseconds * 1000000LL;
    while (now_ns(CLOCK_PROCESS_CPUTIME_ID) < until)
        for (volatile int i = 0; i < 20000; i++)
            ;
}

int main(void) {
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    struct itimerval each_20_ms = {{0, 20000}, {0, 20000}}, off = {0};
    int signals[] = {SIGALRM, SIGVTALRM, SIGPROF};
    int timers[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
    for (int i = 0; i < 3; i++) {
        sigaction(signals[i], &action, NULL);
        REQUIRE(setitimer(timers[i], &each_20_ms, NULL) == 0);
    }
    until_go();
    for (int i = 0; i < 3; i++) {
        struct itimerval now;
        const char *const names[] = {"real", "virtual", "profile"};
        if (loses("real") && i == 0)
            setitimer(ITIMER_REAL, &off, NULL);
        if (loses("virtual") && i == 1)
            setitimer(ITIMER_VIRTUAL, &off, NULL);
        if (loses("profile") && i == 2)
            setitimer(ITIMER_PROF, &off, NULL);
        CHECK(getitimer(timers[i], &now) == 0 && now.it_interval.tv_usec == 20000 && now.it_interval.tv_sec == 0,
              "the %s timer's interval is %ld us", names[i], (long)now.it_interval.tv_usec);
        // Each time that a CPU timer is set, the kernel gives it up to a tick more (10 ms at 100 Hz).
        CHECK(now.it_value.tv_sec == 0 && now.it_value.tv_usec <= 50000, "the %s timer of 20 ms has %ld s and %ld us left", names[i],
              (long)now.it_value.tv_sec, (long)now.it_value.tv_usec);
    }
    int before[] = {real_ticks, virtual_ticks, profile_ticks};
    use_cpu_ms(300);
    int after[] = {real_ticks, virtual_ticks, profile_ticks};
    // CPU time is told per tick of the kernel, of 4 or 10 ms: virtual and profile ticks come late.
    for (int i = 0; i < 3; i++)
        CHECK(after[i] - before[i] >= 3, "timer %d of 20 ms ticked %d times in 300 ms of CPU", i, after[i] - before[i]);
    return verdict();
}
