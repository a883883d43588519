// Leases on files (F_SETLEASE), for reading and for writing, with a signal of the program's own: whoever opens the file for writing
// waits until the program, which is told by the signal, has given its lease up.
#include "verify.h"
#include <sys/wait.h>

static volatile sig_atomic_t broken_fd = -1;

static void broken(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    broken_fd = info->si_fd;
}

static int leased(const char *name, int flags, int type) {
    int fd = open(name, O_CREAT | flags, 0600);
    REQUIRE(fd >= 0 && fcntl(fd, F_SETSIG, SIGRTMIN + 3) == 0 && fcntl(fd, F_SETLEASE, type) == 0);
    return fd;
}

// A child opens it for writing; the lease is to be broken by that.
static void is_broken(int fd, const char *name) {
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    broken_fd = -1;
    pid_t child = fork();
    if (child == 0)
        _exit(open(name, O_WRONLY) >= 0 ? 0 : 1);
    alarm(30);
    while (broken_fd == -1)
        sigsuspend(&before);
    alarm(0);
    CHECK(broken_fd == fd, "the signal names another descriptor");
    CHECK(waitpid(child, NULL, WNOHANG) == 0, "who opens the file did not wait for the lease");
    CHECK(fcntl(fd, F_SETLEASE, F_UNLCK) == 0, "the lease cannot be given up");
    int status = -1;
    while (waitpid(child, &status, 0) == -1 && errno == EINTR)
        ;
    CHECK(status == 0, "the file could not be opened then");
    sigprocmask(SIG_SETMASK, &before, NULL);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = broken, .sa_flags = SA_SIGINFO};
    REQUIRE(sigaction(SIGRTMIN + 3, &action, NULL) == 0);
    int reading = leased("reading", O_RDONLY, F_RDLCK), writing = leased("writing", O_RDWR, F_WRLCK);

    until_go();
    if (loses("lease"))
        fcntl(reading, F_SETLEASE, F_UNLCK);
    if (loses("signal"))
        fcntl(writing, F_SETSIG, 0);
    CHECK(fcntl(reading, F_GETLEASE) == F_RDLCK, "the lease for reading is lost");
    CHECK(fcntl(writing, F_GETLEASE) == F_WRLCK, "the lease for writing is lost");
    CHECK(fcntl(writing, F_GETSIG) == SIGRTMIN + 3, "the signal is lost");
    if (atomic_load(&failures) == 0) {
        is_broken(reading, "reading");
        is_broken(writing, "writing");
    }
    return verdict();
}
