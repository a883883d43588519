// Interval timers that were stopped by a value of zero alone: two of the three keep an interval, and none ticks.
#include "verify.h"
#include <sys/time.h>

static atomic_int ticks;

static void tick(int signal) {
    (void)signal;
    atomic_fetch_add(&ticks, 1);
}

int main(void) {
    const int signals[] = {SIGALRM, SIGVTALRM, SIGPROF}, timers[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
    struct itimerval on = {{0, 10000}, {0, 10000}}, off = {{0, 10000}, {0, 0}}, before[3], now;
    for (int i = 0; i < 3; i++) {
        signal(signals[i], tick);
        REQUIRE(setitimer(timers[i], &on, NULL) == 0 && setitimer(timers[i], &off, NULL) == 0);
        REQUIRE(getitimer(timers[i], &before[i]) == 0);
    }
    until_go();
    atomic_store(&ticks, 0);
    if (loses("real"))
        setitimer(ITIMER_REAL, &on, NULL);
    if (loses("virtual"))
        setitimer(ITIMER_VIRTUAL, &on, NULL);
    if (loses("profile"))
        setitimer(ITIMER_PROF, &on, NULL);
    for (int i = 0; i < 3; i++) {
        CHECK(getitimer(timers[i], &now) == 0 && now.it_value.tv_sec == 0 && now.it_value.tv_usec == 0,
              "timer %d is armed", i);
        CHECK(now.it_interval.tv_usec == before[i].it_interval.tv_usec, "timer %d has another interval", i);
    }
    int64_t until = now_ns(CLOCK_PROCESS_CPUTIME_ID) + 100000000;
    while (now_ns(CLOCK_PROCESS_CPUTIME_ID) < until)
        ;
    CHECK(atomic_load(&ticks) == 0, "timers that were off ticked %d times", atomic_load(&ticks));
    return verdict();
}
