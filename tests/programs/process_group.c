// A session and process group of its own keep their ids, and the program can still signal its group.
#include "verify.h"

static atomic_int signalled;

static void note(int signal) {
    (void)signal;
    atomic_fetch_add(&signalled, 1);
}

int main(void) {
    // Where the program leads its group already (started by a shell), setsid is refused and not needed.
    if (getpgrp() != getpid())
        REQUIRE(setsid() == getpid());
    struct sigaction action = {.sa_handler = note};
    sigaction(SIGUSR1, &action, NULL);
    pid_t session = getsid(0), group = getpgrp();
    until_go();
    if (loses("group"))
        group++;
    CHECK(getpgrp() == group && getpgid(0) == group, "the process group was %d and is %d", group, getpgrp());
    CHECK(getsid(0) == session, "the session was %d and is %d", session, getsid(0));
    CHECK(kill(0, SIGUSR1) == 0 && signalled == 1, "a signal to the group came %d times", signalled);
    return verdict();
}
