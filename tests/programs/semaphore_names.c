// Semaphores that one process has made and another has opened by their names, one of which is gone since.
#include "verify.h"
#include <semaphore.h>
#include <sys/wait.h>

// Executed, since a child of fork(2) would be given its parent's mappings.
static int opener(char **names) {
    sem_t *there = sem_open(names[0], 0), *back = sem_open(names[1], 0);
    REQUIRE(there != SEM_FAILED && back != SEM_FAILED && sem_post(back) == 0);
    REQUIRE(sem_wait(there) == 0 && sem_post(back) == 0);
    return 0;
}

static bool is_posted(sem_t *semaphore) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    return sem_timedwait(semaphore, &until) == 0;
}

int main(int argc, char **argv) {
    if (argc == 3)
        return opener(argv + 1);
    char kept[64], removed[64];
    snprintf(kept, sizeof kept, "/stasis-test-%d-kept", getpid());
    snprintf(removed, sizeof removed, "/stasis-test-%d-removed", getpid());
    sem_t *there = sem_open(kept, O_CREAT | O_EXCL, 0600, 0), *back = sem_open(removed, O_CREAT | O_EXCL, 0600, 0);
    REQUIRE(there != SEM_FAILED && back != SEM_FAILED);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "opener", kept, removed, (char *)NULL);
        _exit(1);
    }
    REQUIRE(is_posted(back) && sem_unlink(removed) == 0);

    until_go();
    int value = -1, status;
    CHECK(sem_getvalue(back, &value) == 0 && value == 0, "the value is %d", value);
    if (loses("semaphore"))
        kill(pid, SIGKILL);
    CHECK(sem_post(there) == 0, "sem_post");
    CHECK(is_posted(back), "the other process has another semaphore");
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    CHECK(sem_open(kept, 0) != SEM_FAILED, "the name is gone");
    sem_unlink(kept);
    return verdict();
}
