// Threads made by the raw clone system call, unknown to glibc: they run on, and clear their tid when they end.
#include "raw_thread.h"
#include <linux/futex.h>
#include <sys/mman.h>

enum { THREADS = 3, STACK = 65536 };

static atomic_int tids[THREADS];
static atomic_long counters[THREADS];
static atomic_int stop;

static void count(long number) {
    count_sleeps(&counters[number], &stop);
}

int main(void) {
    pid_t before[THREADS];
    for (long i = 0; i < THREADS; i++) {
        char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(stack != MAP_FAILED);
        start_raw_thread(stack + STACK, count, i, &tids[i]);
        before[i] = atomic_load(&tids[i]);
    }
    until_go();
    if (loses("threads"))
        atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) {
        CHECK(counts(&counters[i]), "raw thread %d stands still, or its sleep was interrupted", i);
        CHECK(tids[i] == before[i] && syscall(SYS_tgkill, getpid(), before[i], 0) == 0, "raw thread %d is not %d", i,
              before[i]);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) {
        struct timespec second = {1, 0};
        // The kernel clears the word and wakes one waiter (set_tid_address(2)).
        while (atomic_load(&tids[i]) == before[i] &&
               (syscall(SYS_futex, &tids[i], FUTEX_WAIT, before[i], &second) == 0 || errno == EAGAIN))
            ;
        CHECK(tids[i] == 0, "raw thread %d did not end, or its tid was not cleared", i);
    }
    return verdict();
}
