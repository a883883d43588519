// Five hundred processes in one computation, each of which counts on.
#include "verify.h"
#include <sys/mman.h>
#include <sys/wait.h>

enum { CHILDREN = 499 };

static struct shared {
    atomic_int finish;
    atomic_int ticks[CHILDREN];
} *shared;

static void count(int which) {
    pid_t own = getpid();
    while (!atomic_load(&shared->finish)) {
        atomic_fetch_add(&shared->ticks[which], 1);
        sleep_ms(50);
    }
    CHECK(getpid() == own, "pid %d was %d", getpid(), own);
    _exit(atomic_load(&failures) != 0);
}

// How many go on.
static int counting(void) {
    int before[CHILDREN], found = 0;
    for (int i = 0; i < CHILDREN; i++)
        before[i] = atomic_load(&shared->ticks[i]);
    int64_t until = now_ns(CLOCK_MONOTONIC) + 20000000000;
    while (found < CHILDREN && now_ns(CLOCK_MONOTONIC) < until) {
        sleep_ms(10);
        found = 0;
        for (int i = 0; i < CHILDREN; i++)
            found += atomic_load(&shared->ticks[i]) > before[i];
    }
    return found;
}

int main(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    pid_t children[CHILDREN];
    for (int i = 0; i < CHILDREN; i++) {
        REQUIRE((children[i] = fork()) >= 0);
        if (children[i] == 0)
            count(i);
    }
    REQUIRE(counting() == CHILDREN);
    until_go();
    if (loses("process"))
        kill(children[250], SIGSTOP);
    int found = loses("process") ? CHILDREN - 1 : counting();
    CHECK(found == CHILDREN, "%d of %d processes go on", found, CHILDREN);
    atomic_store(&shared->finish, 1);
    if (loses("process"))
        kill(children[250], SIGKILL);
    for (int i = 0; i < CHILDREN; i++) {
        int status = 0;
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0, "child %d: wait status %#x", i, status);
    }
    return verdict();
}
