// Children made by clone(3), on a stack of their own, and one that the program's first thread forks at once: glibc puts its own
// handler of signal 33 in while that thread is being made, and a child that was forked meanwhile keeps it.
#include "verify.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { CLONED, GRANDCHILD, FORKED, COUNT };

static struct shared {
    atomic_int ticks[COUNT], finish;
    pid_t pids[COUNT];
} *shared;

static char stacks[2][65536];

static int run(int which) {
    shared->pids[which] = getpid();
    while (!atomic_load(&shared->finish)) {
        atomic_fetch_add(&shared->ticks[which], 1);
        sleep_ms(1);
    }
    CHECK(getpid() == shared->pids[which], "pid %d was %d", getpid(), shared->pids[which]);
    return atomic_load(&failures) ? 1 : 10 + which;
}

static int run_last(void *which) { return run(*(int *)which); }

static int clone_again(void *unused) {
    (void)unused;
    int last = GRANDCHILD, status = -1;
    pid_t child = clone(run_last, stacks[1] + sizeof stacks[1], SIGCHLD, &last);
    REQUIRE(child > 0);
    int code = run(CLONED);
    CHECK(waitpid(child, &status, 0) == child && status == (10 + GRANDCHILD) << 8, "the grandchild: status %#x", status);
    return atomic_load(&failures) ? 1 : code;
}

static void *fork_at_once(void *child) {
    *(pid_t *)child = fork();
    if (*(pid_t *)child == 0)
        _exit(run(FORKED));
    return NULL;
}

static bool ticks(int which) {
    int before = atomic_load(&shared->ticks[which]);
    int64_t until = now_ns(CLOCK_MONOTONIC) + 3000000000;
    while (atomic_load(&shared->ticks[which]) == before && now_ns(CLOCK_MONOTONIC) < until)
        sleep_ms(1);
    return atomic_load(&shared->ticks[which]) != before;
}

int main(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    pid_t forked = 0, cloned = clone(clone_again, stacks[0] + sizeof stacks[0], SIGCHLD, NULL);
    REQUIRE(cloned > 0);
    // On this processor, and before this thread: where that may be asked for.
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
    pthread_attr_t first;
    struct sched_param urgent = {.sched_priority = 1};
    pthread_attr_init(&first);
    pthread_attr_setinheritsched(&first, PTHREAD_EXPLICIT_SCHED);
    pthread_attr_setschedpolicy(&first, SCHED_FIFO);
    pthread_attr_setschedparam(&first, &urgent);
    pthread_t thread;
    if (pthread_create(&thread, &first, fork_at_once, &forked) != 0)
        REQUIRE(pthread_create(&thread, NULL, fork_at_once, &forked) == 0);
    pthread_join(thread, NULL);
    for (int which = 0; which < COUNT; which++)
        REQUIRE(ticks(which));
    until_go();

    if (loses("clone"))
        kill(shared->pids[CLONED], SIGKILL);
    if (loses("fork"))
        kill(shared->pids[FORKED], SIGKILL);
    for (int which = 0; which < COUNT; which++)
        CHECK(ticks(which), "child %d does not go on", which);
    atomic_store(&shared->finish, 1);
    int status = -1;
    CHECK(waitpid(cloned, &status, 0) == cloned && status == (10 + CLONED) << 8, "clone(3): status %#x", status);
    CHECK(waitpid(forked, &status, 0) == forked && status == (10 + FORKED) << 8, "fork(3): status %#x", status);
    return verdict();
}
