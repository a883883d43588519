// F_SETOWN, F_SETOWN_EX and F_SETSIG: who gets which signal when a descriptor becomes ready.
#include "verify.h"
#include <sys/socket.h>

static atomic_int signalled_fd;
static atomic_int signal_number;

static void note(int signal, siginfo_t *info, void *context) {
    (void)context;
    atomic_store(&signal_number, signal);
    atomic_store(&signalled_fd, info->si_fd);
}

int main(void) {
    int ends[2], pipes[2];
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN + 5, &action, NULL);
    sigaction(SIGIO, &action, NULL);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && pipe(pipes) == 0);
    struct f_owner_ex thread = {F_OWNER_TID, gettid()}, now = {0, 0};
    REQUIRE(fcntl(ends[0], F_SETOWN_EX, &thread) == 0 && fcntl(ends[0], F_SETSIG, SIGRTMIN + 5) == 0);
    REQUIRE(fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    REQUIRE(fcntl(pipes[0], F_SETOWN, getpid()) == 0 && fcntl(pipes[0], F_SETFL, O_ASYNC) == 0);

    until_go();
    if (loses("owner"))
        fcntl(pipes[0], F_SETOWN, 0);
    if (loses("signal"))
        fcntl(ends[0], F_SETSIG, 0);
    if (loses("async"))
        fcntl(ends[0], F_SETFL, O_NONBLOCK);
    CHECK(fcntl(ends[0], F_GETOWN_EX, &now) == 0 && now.type == F_OWNER_TID && now.pid == thread.pid,
          "the socket's owner is %d (type %d)", now.pid, now.type);
    CHECK(fcntl(pipes[0], F_GETOWN) == getpid(), "the pipe's owner is %d", fcntl(pipes[0], F_GETOWN));
    CHECK(fcntl(ends[0], F_GETSIG) == SIGRTMIN + 5, "the socket's signal is %d", fcntl(ends[0], F_GETSIG));
    CHECK(fcntl(ends[0], F_GETFL) == (O_RDWR | O_ASYNC | O_NONBLOCK), "the flags are %#x", fcntl(ends[0], F_GETFL));
    CHECK(write(ends[1], "x", 1) == 1, "write");
    for (int i = 0; i < 1000 && !atomic_load(&signalled_fd); i++)
        sleep_ms(1);
    CHECK(signal_number == SIGRTMIN + 5 && signalled_fd == ends[0], "signal %d came for descriptor %d", signal_number,
          signalled_fd);
    atomic_store(&signal_number, 0);
    CHECK(write(pipes[1], "x", 1) == 1, "write");
    for (int i = 0; i < 1000 && !atomic_load(&signal_number); i++)
        sleep_ms(1);
    CHECK(signal_number == SIGIO, "signal %d came for the pipe", signal_number);
    return verdict();
}
