// What Linux lets a thread have for itself: working directory, umask, ids, no_new_privs, execution domain, priority of its
// input and output, a deadline (SCHED_DEADLINE), not being allowed to read the processor's clock.
#include "verify.h"
#include <sched.h>
#include <setjmp.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>

// ioprio_set(2) and sched_setattr(2): glibc 2.36 has no names for them.
#define IOPRIO_WHO_PROCESS 1
#define BEST_EFFORT_6 (2 << 13 | 6)
#define POLICY_DEADLINE 6

struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

static atomic_int ready, go_on;
static __thread sigjmp_buf back;

static void fault(int signal) {
    siglongjmp(back, signal);
}

static bool may_read_clock(void) {
    if (sigsetjmp(back, 1))
        return false;
    __builtin_ia32_rdtsc();
    return true;
}

static void wait_here(void) {
    struct timespec millisecond = {0, 1000000};
    atomic_fetch_add(&ready, 1);
    while (atomic_load(&go_on) == 0)
        nanosleep(&millisecond, NULL);
}

static void *directory(void *unused UNUSED) {
    char path[256];
    REQUIRE(unshare(CLONE_FS) == 0 && chdir("/usr") == 0);
    umask(loses("directory") ? 022 : 071);
    wait_here();
    CHECK(getcwd(path, sizeof path) && strcmp(path, "/usr") == 0, "the directory is %s", path);
    CHECK(umask(0) == 071, "the umask");
    return NULL;
}

static void *ids(void *unused UNUSED) {
    // By the system call: glibc's function would change all threads.
    REQUIRE(syscall(SYS_setresuid, loses("ids") ? 1 : 1234, 1234, 0) == 0);
    wait_here();
    uid_t real, effective, saved;
    REQUIRE(getresuid(&real, &effective, &saved) == 0);
    CHECK(real == 1234 && effective == 1234 && saved == 0, "ids %d, %d, %d", real, effective, saved);
    return NULL;
}

static void *privileges(void *unused UNUSED) {
    REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    REQUIRE(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, loses("priority") ? 0 : BEST_EFFORT_6) == 0);
    REQUIRE(personality(loses("domain") ? 0 : READ_IMPLIES_EXEC | UNAME26) >= 0);
    wait_here();
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no_new_privs");
    CHECK(syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) == BEST_EFFORT_6, "the priority of input and output");
    CHECK(personality(0xffffffff) == (READ_IMPLIES_EXEC | UNAME26), "the execution domain");
    return NULL;
}

static void *clock_reader(void *unused UNUSED) {
    if (!loses("clock"))
        REQUIRE(prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0);
    wait_here();
    CHECK(!may_read_clock(), "the thread may read the processor's clock");
    REQUIRE(prctl(PR_SET_TSC, PR_TSC_ENABLE) == 0);
    return NULL;
}

static void *deadline(void *unused UNUSED) {
    struct attributes wanted = {sizeof wanted, POLICY_DEADLINE, 0, 0, 0, 2000000, 10000000, 10000000}, got = {0};
    REQUIRE(syscall(SYS_sched_setattr, 0, &wanted, 0) == 0);
    wait_here();
    if (loses("deadline"))
        wanted.runtime++;
    REQUIRE(syscall(SYS_sched_getattr, 0, &got, sizeof got, 0) == 0);
    CHECK(got.policy == POLICY_DEADLINE && got.runtime == wanted.runtime && got.period == wanted.period,
          "policy %u, runtime %lu, period %lu", got.policy, (long)got.runtime, (long)got.period);
    return NULL;
}

int main(void) {
    void *(*bodies[])(void *) = {directory, ids, privileges, clock_reader, deadline};
    enum { THREADS = sizeof bodies / sizeof *bodies };
    pthread_t threads[THREADS];
    char before[256], after[256];
    signal(SIGSEGV, fault);
    for (int i = 0; i < THREADS; i++)
        threads[i] = start_thread(bodies[i], NULL);
    await_value(&ready, THREADS);
    REQUIRE(getcwd(before, sizeof before));
    until_go();
    atomic_store(&go_on, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(getcwd(after, sizeof after) && strcmp(before, after) == 0, "the process' directory is %s", after);
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 && syscall(SYS_geteuid) == 0, "the main thread has what others had");
    CHECK(may_read_clock(), "the main thread may not read the processor's clock");
    return verdict();
}
