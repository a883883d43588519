// epoll: targets whose numbers were closed, or stand for something else, since they were added: a duplicate keeps them in the
// list (epoll(7), question 6). An epoll that two processes have, of which each has closed what the other one kept.
#include "verify.h"
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { CLOSED, REUSED, PARENTS, CHILDS, BOTHS, TARGETS };

static int pipes[TARGETS][2];

static int reported(int epoll) {
    struct epoll_event events[TARGETS + 1];
    int set = 0, count = epoll_wait(epoll, events, TARGETS + 1, 0);
    for (int i = 0; i < count; i++)
        set |= 1 << events[i].data.u64;
    return set;
}

int main(void) {
    int epoll = epoll_create1(0), tell[2], answer[2];
    REQUIRE(pipe(tell) == 0 && pipe(answer) == 0);
    for (int i = 0; i < TARGETS; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};
        REQUIRE(pipe(pipes[i]) == 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[i][0], &event) == 0);
    }
    // The first number that is free is the one that was closed.
    int kept = dup(pipes[CLOSED][0]), other = dup(pipes[REUSED][0]);
    close(pipes[REUSED][0]);
    int reused = dup(STDIN_FILENO);
    REQUIRE(kept > 0 && other > 0 && reused == pipes[REUSED][0]);
    close(pipes[CLOSED][0]);

    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pipes[PARENTS][0]);
        close(kept);
        close(other);
        char ask;
        while (read(tell[0], &ask, 1) == 1) {
            int set = reported(epoll);
            REQUIRE(write(answer[1], &set, sizeof set) == sizeof set);
        }
        _exit(0);
    }
    close(pipes[CHILDS][0]);

    until_go();
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = BOTHS};
    if (loses("target"))
        epoll_ctl(epoll, EPOLL_CTL_DEL, pipes[BOTHS][0], NULL);
    if (loses("duplicate")) {
        dup2(kept, pipes[CLOSED][0]);
        epoll_ctl(epoll, EPOLL_CTL_DEL, pipes[CLOSED][0], NULL);
        close(pipes[CLOSED][0]);
    }
    CHECK(fcntl(pipes[CLOSED][0], F_GETFD) == -1, "the number that was closed is open");
    CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, pipes[REUSED][0], &event) == -1, "the number that was used again is a target");
    CHECK(reported(epoll) == 0, "targets are reported that have nothing");
    for (int i = 0; i < TARGETS; i++) {
        int set = 0;
        CHECK(write(pipes[i][1], "x", 1) == 1, "write");
        CHECK(reported(epoll) == (2 << i) - 1, "of %d targets, %#x are reported", i + 1, reported(epoll));
        CHECK(write(tell[1], "?", 1) == 1 && read(answer[0], &set, sizeof set) == sizeof set, "no answer");
        CHECK(set == (2 << i) - 1, "of %d targets, %#x are reported to the child", i + 1, set);
    }
    close(tell[1]);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return verdict();
}
