// Children that were forked and execute nothing: one that only runs, one that has made a thread since, one that stands
// stopped, one that has given up its user, one that has forked again and ended.
#include "verify.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { PLAIN, THREADED, STOPPED, OTHER_USER, ORPHAN, COUNT };

static struct shared {
    atomic_int ticks[COUNT], in_thread, finish;
    pid_t pids[COUNT];
} *shared;

static void *tick_in_thread(void *unused) {
    for (;;) {
        atomic_fetch_add(&shared->in_thread, 1);
        sleep_ms(1);
    }
    return unused;
}

static void run(int which) {
    shared->pids[which] = getpid();
    pthread_t thread;
    if (which == THREADED)
        REQUIRE(pthread_create(&thread, NULL, tick_in_thread, NULL) == 0);
    if (which == OTHER_USER && getuid() == 0)
        REQUIRE(setgid(65534) == 0 && setuid(65534) == 0);
    if (which == STOPPED)
        raise(SIGSTOP);
    while (!atomic_load(&shared->finish)) {
        atomic_fetch_add(&shared->ticks[which], 1);
        sleep_ms(1);
    }
    CHECK(getpid() == shared->pids[which], "pid %d was %d", getpid(), shared->pids[which]);
    if (which == OTHER_USER && getuid() != 65534)
        CHECK(getuid() == geteuid() && getuid() != 0, "it is uid %d", getuid());
    _exit(atomic_load(&failures) != 0);
}

// Whether a process goes on.
static bool ticks(atomic_int *count) {
    int before = atomic_load(count);
    int64_t until = now_ns(CLOCK_MONOTONIC) + 3000000000;
    while (atomic_load(count) == before && now_ns(CLOCK_MONOTONIC) < until)
        sleep_ms(1);
    return atomic_load(count) != before;
}

static char state_of(pid_t pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    read_proc(path, text, sizeof text);
    char *end = strrchr(text, ')');
    return end ? end[2] : '?';
}

int main(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid_t children[COUNT];
    for (int which = 0; which < COUNT; which++) {
        REQUIRE((children[which] = fork()) >= 0);
        if (children[which] == 0) {
            if (which != ORPHAN || fork() == 0)
                run(which);
            _exit(0);
        }
    }
    REQUIRE(waitpid(children[ORPHAN], NULL, 0) == children[ORPHAN]);
    for (int which = 0; which < COUNT; which++)
        REQUIRE(which == STOPPED || ticks(&shared->ticks[which]));
    int status;
    REQUIRE(ticks(&shared->in_thread));
    REQUIRE(waitpid(children[STOPPED], &status, WUNTRACED) == children[STOPPED] && WIFSTOPPED(status));
    until_go();

    if (loses("process"))
        kill(shared->pids[PLAIN], SIGKILL);
    if (loses("thread"))
        kill(shared->pids[THREADED], SIGSTOP);
    if (loses("stop"))
        kill(children[STOPPED], SIGCONT), ticks(&shared->ticks[STOPPED]);
    for (int which = 0; which < COUNT; which++)
        CHECK(which == STOPPED || ticks(&shared->ticks[which]), "child %d does not go on", which);
    CHECK(ticks(&shared->in_thread), "the thread does not go on");
    CHECK(state_of(shared->pids[STOPPED]) == 'T', "the stopped child is in state %c", state_of(shared->pids[STOPPED]));
    CHECK(atomic_load(&shared->ticks[STOPPED]) == 0, "the stopped child has run for %d ms", atomic_load(&shared->ticks[STOPPED]));
    atomic_store(&shared->finish, 1);
    for (int which = 0; which < COUNT; which++)
        kill(shared->pids[which], SIGCONT);
    for (int which = 0; which < COUNT; which++) {
        status = -1;
        CHECK(waitpid(shared->pids[which], &status, 0) == shared->pids[which] && status == 0, "child %d: status %#x",
              which, status);
    }
    return verdict();
}
