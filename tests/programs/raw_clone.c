// Threads made by the raw clone system call, unknown to glibc: they run on, and clear their tid when they end.
#include "verify.h"
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>

enum { THREADS = 3, STACK = 65536 };

static atomic_int tids[THREADS];
static atomic_long counters[THREADS];
static atomic_int stop;

// Runs without thread-local storage of its own (it shares the creator's), so it calls nothing of glibc.
static void count(long number) {
    while (!atomic_load(&stop)) {
        atomic_fetch_add(&counters[number], 1);
        struct timespec millisecond = {0, 1000000};
        long result;
        __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_nanosleep), "D"(&millisecond), "S"(0)
                         : "rcx", "r11", "memory");
        if (result)
            atomic_store(&counters[number], -1000000);
    }
}

static void start(long number) {
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(stack != MAP_FAILED);
    long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                 CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
    register long child_tid __asm__("r10") = (long)&tids[number];
    register long tls __asm__("r8") = 0;
    long result;
    void **top = (void **)(stack + STACK - 64);
    top[0] = (void *)number;
    top[1] = (void *)count;
    __asm__ volatile("syscall\n\t"
                     "test %%eax, %%eax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov 0(%%rsp), %%rdi\n\t"
                     "mov 8(%%rsp), %%rax\n\t"
                     "call *%%rax\n\t"
                     "xor %%edi, %%edi\n\t"
                     "mov $60, %%eax\n\t"
                     "syscall\n\t"
                     "1:"
                     : "=a"(result)
                     : "0"(SYS_clone), "D"(flags), "S"(top), "d"(&tids[number]), "r"(child_tid), "r"(tls)
                     : "rcx", "r11", "memory");
    REQUIRE(result > 0);
}

int main(void) {
    pid_t before[THREADS];
    for (long i = 0; i < THREADS; i++) {
        start(i);
        before[i] = atomic_load(&tids[i]);
    }
    until_go();
    if (loses("threads"))
        atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) {
        long now = atomic_load(&counters[i]);
        // Whoever shares the processors with thousands of threads comes to run late.
        int64_t until = now_ns(CLOCK_MONOTONIC) + 2000000000;
        while (atomic_load(&counters[i]) <= now && now_ns(CLOCK_MONOTONIC) < until)
            sleep_ms(5);
        CHECK(atomic_load(&counters[i]) > now, "raw thread %d stands still", i);
        CHECK(now >= 0, "the sleep of raw thread %d was interrupted", i);
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
