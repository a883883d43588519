// Threads that glibc knows nothing of: made by clone(2), without thread-local storage of their own.
#ifndef RAW_THREAD_H
#define RAW_THREAD_H
#include "verify.h"
#include <sched.h>

// Counts milliseconds until it is told to stop, on hardly any stack and by nothing of glibc; far below zero once a sleep was
// cut short.
static void count_sleeps(atomic_long *counter, const atomic_int *stop) {
    while (!atomic_load(stop)) {
        atomic_fetch_add(counter, 1);
        struct timespec millisecond = {0, 1000000};
        long result;
        __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_nanosleep), "D"(&millisecond), "S"(0)
                         : "rcx", "r11", "memory");
        if (result)
            atomic_store(counter, -1000000);
    }
}

// Whether a counter of count_sleeps goes on within two seconds: whoever shares the processors with thousands of threads comes
// to run late.
static bool counts(const atomic_long *counter) {
    long now = atomic_load(counter);
    int64_t until = now_ns(CLOCK_MONOTONIC) + 2000000000;
    while (atomic_load(counter) <= now && now_ns(CLOCK_MONOTONIC) < until)
        sleep_ms(5);
    return now >= 0 && atomic_load(counter) > now;
}

// Runs body(argument) in a thread whose stack ends at `end`; the kernel keeps its id in *tid until it has ended.
static void start_raw_thread(char *end, void (*body)(long), long argument, atomic_int *tid) {
    long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                 CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
    register long child_tid __asm__("r10") = (long)tid;
    register long tls __asm__("r8") = 0;
    long result;
    void **top = (void **)(((uintptr_t)end & ~15ul) - 64);
    top[0] = (void *)argument;
    top[1] = (void *)body;
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
                     : "0"(SYS_clone), "D"(flags), "S"(top), "d"(tid), "r"(child_tid), "r"(tls)
                     : "rcx", "r11", "memory");
    REQUIRE(result > 0);
}

#endif
