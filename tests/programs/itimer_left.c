// One-shot timers that are far from done keep the time they have left: alarm(2), setitimer(2), timer of CPU time.
// link: -lrt
#include "timers.h"

int main(void) {
    struct itimerval far = {{7, 500000}, {3000, 0}}, left;
    timer_t cpu_timer;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct itimerspec cpu_time = {.it_value = {50, 0}}, cpu_left;
    int64_t set_at = now_ns(CLOCK_MONOTONIC);
    REQUIRE(setitimer(ITIMER_REAL, &far, NULL) == 0 && setitimer(ITIMER_PROF, &far, NULL) == 0);
    REQUIRE(timer_create(CLOCK_PROCESS_CPUTIME_ID, &none, &cpu_timer) == 0);
    REQUIRE(timer_settime(cpu_timer, 0, &cpu_time, NULL) == 0);

    watch_until_go();
    if (loses("time-left")) {
        sleep_ms(200);
        setitimer(ITIMER_REAL, &far, NULL);
    }
    if (loses("cpu-timer")) {
        struct itimerspec off = {0};
        timer_settime(cpu_timer, 0, &off, NULL);
    }
    CHECK(getitimer(ITIMER_REAL, &left) == 0, "getitimer");
    CHECK(near_left(left.it_value.tv_sec + left.it_value.tv_usec / 1e6, 3000, set_at) && left.it_interval.tv_sec == 7 &&
              left.it_interval.tv_usec == 500000, "the real timer's time left or interval is wrong");
    CHECK(getitimer(ITIMER_PROF, &left) == 0 && left.it_value.tv_sec >= 2990 && left.it_interval.tv_sec == 7,
          "the profiling timer's time left or interval is wrong");
    CHECK(timer_gettime(cpu_timer, &cpu_left) == 0 && seconds_of(cpu_left.it_value) > 40 &&
              seconds_of(cpu_left.it_value) <= 50.1, "the CPU timer has %.3f s left", seconds_of(cpu_left.it_value));
    unsigned seconds = alarm(5000);
    CHECK(seconds >= 2900 && seconds <= 3001, "alarm found %u s left", seconds);
    CHECK(alarm(0) == 5000, "alarm");
    return verdict();
}
