// Timer descriptors of short periods whose ticks nobody has read: such a timer stands still until somebody asks, and may expire again
// while a checkpoint does. All of them tick on.
#include "verify.h"
#include <poll.h>
#include <sys/timerfd.h>

enum { TIMERS = 200 };

int main(void) {
    int timers[TIMERS];
    for (int i = 0; i < TIMERS; i++) {
        // From 5 microseconds to a millisecond; the last one is disarmed, though it has a period.
        struct itimerspec time = {.it_interval.tv_nsec = 5000 * (i + 1), .it_value.tv_nsec = i < TIMERS - 1 ? 5000 * (i + 1) : 0};
        timers[i] = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        REQUIRE(timers[i] >= 0 && timerfd_settime(timers[i], 0, &time, NULL) == 0);
    }

    until_go();
    struct itimerspec off = {0};
    if (loses("period"))
        timerfd_settime(timers[7], 0, &off, NULL);
    for (int i = 0; i < TIMERS - 1; i++) {
        struct pollfd ready = {.fd = timers[i], .events = POLLIN};
        uint64_t ticks = 0;
        CHECK(read(timers[i], &ticks, 8) == 8 && ticks > 0, "the ticks of timer %d are lost", i);
        CHECK(poll(&ready, 1, 1000) == 1 && read(timers[i], &ticks, 8) == 8, "timer %d has stopped", i);
    }
    uint64_t ticks;
    CHECK(read(timers[TIMERS - 1], &ticks, 8) == -1 && errno == EAGAIN, "a disarmed timer ticks");
    return verdict();
}
