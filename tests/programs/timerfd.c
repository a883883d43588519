// Timer descriptors: relative, absolute, periodic with unread ticks, disarmed, and in an epoll set.
#include "timers.h"
#include <sys/epoll.h>
#include <sys/timerfd.h>

static struct itimerspec time_of(double value, double interval) {
    return (struct itimerspec){
        .it_value = {(time_t)value, (long)((value - (time_t)value) * 1e9)},
        .it_interval = {(time_t)interval, (long)((interval - (time_t)interval) * 1e9)},
    };
}

static int make(int clock, int flags, struct itimerspec time) {
    int fd = timerfd_create(clock, TFD_NONBLOCK);
    REQUIRE(fd >= 0 && timerfd_settime(fd, flags, &time, NULL) == 0);
    return fd;
}

int main(void) {
    int64_t set_at = now_ns(CLOCK_MONOTONIC);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct itimerspec later = {.it_value = {now.tv_sec + 4000, now.tv_nsec}};
    int relative = make(CLOCK_MONOTONIC, 0, time_of(1000, 2.5));
    int absolute = make(CLOCK_REALTIME, TFD_TIMER_ABSTIME, later);
    int boot = make(CLOCK_BOOTTIME, 0, time_of(2000, 0));
    int ticking = make(CLOCK_MONOTONIC, 0, time_of(0.01, 0.01));
    int once = make(CLOCK_MONOTONIC, 0, time_of(0.005, 0));
    int disarmed = make(CLOCK_MONOTONIC, 0, time_of(0, 0));
    int epoll = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN, .data.fd = ticking};
    REQUIRE(epoll_ctl(epoll, EPOLL_CTL_ADD, ticking, &interest) == 0);
    sleep_ms(105);

    watch_until_go();
    struct itimerspec left, off = {0}, whole = time_of(1000, 2.5);
    uint64_t ticks = 0;
    if (loses("time-left")) {
        sleep_ms(200);
        timerfd_settime(relative, 0, &whole, NULL);
    }
    if (loses("ticks"))
        CHECK(read(once, &ticks, 8) == 8, "read");
    if (loses("period"))
        timerfd_settime(ticking, 0, &off, NULL);
    if (loses("absolute"))
        timerfd_settime(absolute, 0, &whole, NULL);
    CHECK(timerfd_gettime(relative, &left) == 0 && near_left(seconds_of(left.it_value), 1000, set_at) &&
              seconds_of(left.it_interval) == 2.5, "the relative timer's time left or interval is wrong");
    CHECK(timerfd_gettime(boot, &left) == 0 && near_left(seconds_of(left.it_value), 2000, set_at),
          "the CLOCK_BOOTTIME timer's time left is wrong");
    // An absolute time does not move: the time left is what the clock says.
    clock_gettime(CLOCK_REALTIME, &now);
    CHECK(timerfd_gettime(absolute, &left) == 0, "timerfd_gettime");
    double until = seconds_of(later.it_value) - seconds_of(now);
    CHECK(seconds_of(left.it_value) > until - 0.05 && seconds_of(left.it_value) < until + 0.05,
          "the absolute timer has %.3f s left instead of %.3f", seconds_of(left.it_value), until);
    CHECK(timerfd_gettime(disarmed, &left) == 0 && seconds_of(left.it_value) == 0, "a disarmed timer is armed");
    CHECK(read(once, &ticks, 8) == 8 && ticks == 1, "the unread tick of a timer that is done is lost or doubled");
    CHECK(read(once, &ticks, 8) == -1 && errno == EAGAIN, "a timer that was done ticked again");
    double passed = (now_ns(CLOCK_MONOTONIC) - set_at) / 1e9;
    CHECK(read(ticking, &ticks, 8) == 8 && ticks >= 9 && ticks <= passed * 100 + 2,
          "%ju unread ticks of 10 ms after %.3f s", (uintmax_t)ticks, passed);
    CHECK(fcntl(ticking, F_GETFL) & O_NONBLOCK, "O_NONBLOCK is lost");
    struct epoll_event event;
    CHECK(epoll_wait(epoll, &event, 1, 1000) == 1 && event.data.fd == ticking, "the timer no longer wakes its epoll set");
    return verdict();
}
