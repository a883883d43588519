// Restartable sequences: the kernel keeps writing the CPU number into each thread's registered area.
#include "verify.h"
#include <sched.h>
#include <sys/rseq.h>

static atomic_int waiting;
static atomic_int go_on;

static struct rseq *own_area(void) {
    return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static void verify(const char *thread) {
    struct rseq *area = own_area();
    if (loses("registration"))
        syscall(SYS_rseq, area, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
    int cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (int round = 0; round < 20; round++) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(round % cpus, &one);
        REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
        unsigned cpu = 0;
        syscall(SYS_getcpu, &cpu, NULL, NULL);
        CHECK(cpu == (unsigned)round % cpus, "%s did not move", thread);
        CHECK((int)*(volatile uint32_t *)&area->cpu_id == round % cpus, "rseq of %s says CPU %d, it is on %d", thread,
              (int)area->cpu_id, round % cpus);
        CHECK(sched_getcpu() == round % cpus, "sched_getcpu of %s says %d", thread, sched_getcpu());
        if (atomic_load(&failures))
            return;
    }
    // rseq(2): EBUSY for the same area and signature once more, EINVAL for others.
    CHECK(syscall(SYS_rseq, area, 32, 0, RSEQ_SIG) == -1 && errno == EBUSY, "the area of %s is not registered", thread);
}

static void *body(void *unused) {
    atomic_fetch_add(&waiting, 1);
    await_value(&go_on, 1);
    verify("a thread");
    return unused;
}

int main(void) {
    REQUIRE(__rseq_size > 0);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        threads[i] = start_thread(body, NULL);
    await_value(&waiting, 3);
    until_go();
    atomic_store(&go_on, 1);
    verify("the main thread");
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
