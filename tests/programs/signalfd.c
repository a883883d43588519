// signalfd: its mask, signals that are queued and unread, with their values.
#include "verify.h"
#include <sys/signalfd.h>

int main(void) {
    sigset_t set, other;
    struct signalfd_siginfo info;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 4);
    sigemptyset(&other);
    sigaddset(&other, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_sigmask(SIG_BLOCK, &other, NULL);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    REQUIRE(fd >= 0);
    for (int i = 0; i < 10; i++) {
        union sigval value = {.sival_int = 900 + i};
        REQUIRE(sigqueue(getpid(), SIGRTMIN + 4, value) == 0);
    }
    REQUIRE(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR2) == 0);

    until_go();
    if (loses("mask"))
        signalfd(fd, &other, 0);
    if (loses("signal"))
        CHECK(read(fd, &info, sizeof info) > 0, "read");
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(fd, F_GETFL) & O_NONBLOCK, "flags changed");
    CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1, "SIGUSR1 is lost");
    for (int i = 0; i < 10; i++) {
        memset(&info, 0, sizeof info);
        CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == (unsigned)SIGRTMIN + 4 &&
                  info.ssi_int == 900 + i && info.ssi_pid == (unsigned)getpid(),
              "queued signal %d is lost or changed: %u, %d", i, info.ssi_signo, info.ssi_int);
    }
    CHECK(read(fd, &info, sizeof info) == -1 && errno == EAGAIN, "the signalfd gives more than was sent");
    return verdict();
}
