// epoll: the interest list with its data; EPOLLONESHOT spent or not; EPOLLET seen or not; nested; dup'ed targets.
#include "verify.h"
#include <sys/epoll.h>

enum { LEVEL, SPENT_ONESHOT, FRESH_ONESHOT, SEEN_EDGE, QUIET_EDGE, DISABLED, TARGETS };

static int pipes[TARGETS][2];

static void add(int epoll, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    REQUIRE(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

// The events that are reported at once, as a set of target numbers; -1 where one came with other data.
static int reported(int epoll) {
    struct epoll_event events[32];
    int set = 0, count = epoll_wait(epoll, events, 32, 0);
    for (int i = 0; i < count; i++) {
        uint64_t target = events[i].data.u64 ^ 0xfeed000000000000;
        if (target >= TARGETS || !(events[i].events & EPOLLIN))
            return -1;
        set |= 1 << target;
    }
    return set;
}

int main(void) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), outer = epoll_create1(0);
    static const uint32_t events[] = {EPOLLIN, EPOLLIN | EPOLLONESHOT, EPOLLIN | EPOLLONESHOT, EPOLLIN | EPOLLET,
                                      EPOLLIN | EPOLLET, 0};
    for (int i = 0; i < TARGETS; i++) {
        REQUIRE(pipe(pipes[i]) == 0);
        add(epoll, pipes[i][0], events[i], 0xfeed000000000000 | i);
    }
    add(outer, epoll, EPOLLIN, 99);
    REQUIRE(write(pipes[SPENT_ONESHOT][1], "x", 1) == 1 && write(pipes[SEEN_EDGE][1], "x", 1) == 1);
    REQUIRE(write(pipes[DISABLED][1], "x", 1) == 1);
    REQUIRE(reported(epoll) == (1 << SPENT_ONESHOT | 1 << SEEN_EDGE));

    until_go();
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 0xfeed000000000000 | SPENT_ONESHOT};
    if (loses("oneshot"))
        epoll_ctl(epoll, EPOLL_CTL_MOD, pipes[SPENT_ONESHOT][0], &event);
    if (loses("target"))
        epoll_ctl(epoll, EPOLL_CTL_DEL, pipes[LEVEL][0], NULL);
    if (loses("data")) {
        event.events = EPOLLIN;
        epoll_ctl(epoll, EPOLL_CTL_MOD, pipes[LEVEL][0], &event);
    }
    if (loses("nesting"))
        epoll_ctl(outer, EPOLL_CTL_DEL, epoll, NULL);
    // A byte that was reported to an edge-triggered target may be reported once more (as by a spurious wake-up), but
    // a spent one-shot target may not.
    int at_once = reported(epoll);
    CHECK((at_once & ~(1 << SEEN_EDGE)) == 0, "without anything new the targets %#x are reported", at_once);
    CHECK(reported(epoll) == 0, "an edge is reported again and again");
    for (int i = 0; i < TARGETS; i++)
        CHECK(write(pipes[i][1], "y", 1) == 1, "write");
    CHECK(epoll_wait(outer, &event, 1, 1000) == 1 && event.data.u64 == 99, "the outer epoll does not see the inner one");
    int now = reported(epoll), expected = 1 << LEVEL | 1 << FRESH_ONESHOT | 1 << SEEN_EDGE | 1 << QUIET_EDGE;
    CHECK(now == expected, "the targets %#x are reported instead of %#x", now, expected);
    CHECK(reported(epoll) == 1 << LEVEL, "only the level-triggered target should be reported again");
    event = (struct epoll_event){.events = EPOLLIN, .data.u64 = 0xfeed000000000000 | SPENT_ONESHOT};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, pipes[SPENT_ONESHOT][0], &event) == 0, "the spent target is not in the list");
    CHECK(reported(epoll) == (1 << LEVEL | 1 << SPENT_ONESHOT), "a rearmed target is not reported");
    for (int i = 0; i < TARGETS; i++)
        CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, pipes[i][0], NULL) == 0, "target %d is not in the list", i);
    CHECK(fcntl(epoll, F_GETFD) == FD_CLOEXEC, "close-on-exec is lost");
    return verdict();
}
