// The main thread has ended by pthread_exit, and a blocked signal is pending for the process; the other threads go on, and the
// last of them ends the process.
#include "verify.h"

static atomic_int waiting;

static char state_of_leader(void) {
    char text[512], path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
    read_proc(path, text, sizeof text);
    char *after_name = strrchr(text, ')');
    return after_name ? after_name[2] : '?';
}

static void *other(void *unused) {
    atomic_store(&waiting, 1);
    for (;;)
        pause();
    return unused;
}

static void *body(void *unused) {
    await_value(&waiting, 1);
    while (state_of_leader() != 'Z')
        sleep_ms(1);
    REQUIRE(kill(getpid(), SIGUSR1) == 0);
    until_go();
    sigset_t pending;
    siginfo_t info = {0};
    struct timespec none = {0, 0};
    sigemptyset(&pending);
    sigaddset(&pending, SIGUSR1);
    if (loses("signal"))
        sigtimedwait(&pending, &info, &none);
    CHECK(sigtimedwait(&pending, &info, &none) == SIGUSR1 && info.si_code == SI_USER && info.si_pid == getpid(),
          "the signal that was pending is lost or changed: code %d", info.si_code);
    char state = loses("leader") ? 'S' : state_of_leader();
    CHECK(state == 'Z', "the leader's state is %c, not Z", state);
    CHECK(gettid() != getpid(), "this thread became the leader");
    exit(verdict());
    return unused;
}

int main(void) {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    start_thread(other, NULL);
    start_thread(body, NULL);
    pthread_exit(NULL);
}
