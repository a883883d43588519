// Of each thread: name, CPU affinity, niceness, scheduling class, the slice of time that it asks for, and timer slack.
#include "verify.h"
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

struct expected {
    const char *name;
    int cpu;
    int nice;
    int policy;
    int slack;
};

static const struct expected all[] = {
    {"plain", -1, 0, SCHED_OTHER, 50000},   {"on-cpu-0", 0, 1, SCHED_OTHER, 60000},
    {"on-cpu-1", 1, 5, SCHED_BATCH, 70000}, {"idle-thread-15c", -1, 19, SCHED_IDLE, 80000},
    {"odd (name) 1 2", 0, 7, SCHED_BATCH, 1},  {"reset-on-fork", -1, 0, SCHED_OTHER | SCHED_RESET_ON_FORK, 90000},
};
enum { THREADS = sizeof all / sizeof *all };

// struct sched_attr (sched_setattr(2)), first version. Since Linux 6.12 `runtime` is the slice of an ordinary thread.
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

static struct attributes attributes(void) {
    struct attributes now = {0};
    REQUIRE(syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) == 0);
    return now;
}

static void ask_for_slice(uint64_t nanoseconds) {
    struct attributes wanted = attributes();
    wanted.runtime = nanoseconds;
    REQUIRE(syscall(SYS_sched_setattr, 0, &wanted, 0) == 0);
}

static atomic_int waiting;
static atomic_int go_on;

static void *body(void *argument) {
    const struct expected *mine = argument;
    struct sched_param none = {0};
    cpu_set_t set, before;
    pthread_setname_np(pthread_self(), mine->name);
    if (mine->cpu >= 0 && mine->cpu < sysconf(_SC_NPROCESSORS_ONLN)) {
        CPU_ZERO(&set);
        CPU_SET(mine->cpu, &set);
        REQUIRE(sched_setaffinity(0, sizeof set, &set) == 0);
    }
    REQUIRE(sched_setscheduler(0, mine->policy, &none) == 0);
    // Threads have a niceness of their own here (setpriority(2), C library/kernel differences).
    REQUIRE(setpriority(PRIO_PROCESS, 0, mine->nice) == 0);
    if (mine->cpu == 0)
        ask_for_slice(700000);
    uint64_t slice = attributes().runtime;
    REQUIRE(prctl(PR_SET_TIMERSLACK, mine->slack) == 0);
    REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
    atomic_fetch_add(&waiting, 1);
    await_value(&go_on, 1);

    if (loses("name"))
        pthread_setname_np(pthread_self(), "lost");
    if (loses("affinity")) {
        CPU_ZERO(&set);
        CPU_SET(mine->cpu != 0 ? 0 : 1, &set);
        sched_setaffinity(0, sizeof set, &set);
    }
    if (loses("nice"))
        setpriority(PRIO_PROCESS, 0, 3);
    if (loses("policy"))
        sched_setscheduler(0, SCHED_OTHER, &none);
    if (loses("slice"))
        ask_for_slice(400000);
    if (loses("slack"))
        prctl(PR_SET_TIMERSLACK, 55555);
    char path[64], comm[32] = "", name[32];
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", gettid());
    read_proc(path, comm, sizeof comm);
    pthread_getname_np(pthread_self(), name, sizeof name);
    CHECK(strcmp(name, mine->name) == 0 && strncmp(comm, mine->name, strlen(mine->name)) == 0,
          "thread %s is named %s (comm %s)", mine->name, name, comm);
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0 && CPU_EQUAL(&set, &before), "the affinity of %s", mine->name);
    errno = 0;
    int nice = getpriority(PRIO_PROCESS, 0);
    CHECK(nice == mine->nice, "the niceness of %s is %d", mine->name, nice);
    CHECK(sched_getscheduler(0) == mine->policy, "the scheduling class of %s is %d", mine->name, sched_getscheduler(0));
    uint64_t has = attributes().runtime;
    CHECK(has == slice, "the slice of %s is %llu", mine->name, (unsigned long long)has);
    int slack = prctl(PR_GET_TIMERSLACK);
    CHECK(slack == mine->slack, "the timer slack of %s is %d", mine->name, slack);
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        threads[i] = start_thread(body, (void *)&all[i]);
    await_value(&waiting, THREADS);
    until_go();
    atomic_store(&go_on, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
