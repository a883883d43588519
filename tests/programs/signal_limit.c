// As many signals are queued as RLIMIT_SIGPENDING allows: a stop signal finds no room below it. With argv[1] the limit cannot be raised.
#include "verify.h"
#include <sys/resource.h>

int main(int argc, char **argv) {
    struct rlimit limit, now;
    sigset_t blocked;
    siginfo_t info;
    struct timespec none = {0, 0};
    (void)argv;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 1);
    sigaddset(&blocked, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    REQUIRE(getrlimit(RLIMIT_SIGPENDING, &limit) == 0);
    int queued = 0;
    // What else this user has pending counts, too.
    for (limit.rlim_cur = 1; queued < 5; limit.rlim_cur++) {
        if (argc > 1)
            now = (struct rlimit){limit.rlim_cur + 4096, limit.rlim_cur + 4096};
        else
            now = limit;
        REQUIRE(setrlimit(RLIMIT_SIGPENDING, &now) == 0);
        union sigval value = {.sival_int = queued};
        while (sigqueue(getpid(), SIGRTMIN + 1, value) == 0)
            value.sival_int = ++queued;
        if (argc > 1)
            break;
    }
    REQUIRE(getrlimit(RLIMIT_SIGPENDING, &limit) == 0 && kill(getpid(), SIGUSR1) == 0);
    until_go();
    if (loses("signal"))
        sigtimedwait(&blocked, &info, &none);
    for (int i = 0, got; (got = sigtimedwait(&blocked, &info, &none)) > 0 || i < queued + 1; i++) {
        REQUIRE(got > 0);
        if (i == 0)
            CHECK(got == SIGUSR1, "SIGUSR1 is lost");
        else
            CHECK(info.si_value.sival_int == i - 1, "signal %d came as number %d", info.si_value.sival_int, i - 1);
    }
    if (loses("limit")) {
        now = (struct rlimit){limit.rlim_cur + 1, limit.rlim_max};
        setrlimit(RLIMIT_SIGPENDING, &now);
    }
    CHECK(getrlimit(RLIMIT_SIGPENDING, &now) == 0 && now.rlim_cur == limit.rlim_cur && now.rlim_max == limit.rlim_max,
          "the limit was %ju and is %ju", (uintmax_t)limit.rlim_cur, (uintmax_t)now.rlim_cur);
    return verdict();
}
