// Threads that spin with a flag set that signal handlers inherit (EFLAGS.AC: unaligned accesses end the program), or do not
// (the direction flag): they keep it, and nothing else is harmed by it.
#include "verify.h"

#define AC 0x40000
#define DF 0x400

static atomic_int ready;
static volatile int go_on;

static void *checks_alignment(void *unused UNUSED) {
    long flags;
    atomic_fetch_add(&ready, 1);
    __asm__ volatile("pushf\n\torl %2, (%%rsp)\n\tpopf\n"
                     "1:\tmov (%1), %%eax\n\ttest %%eax, %%eax\n\tjz 1b\n"
                     "pushf\n\tpop %0\n\tpushf\n\tandl %3, (%%rsp)\n\tpopf"
                     : "=&r"(flags) : "r"(&go_on), "i"(AC), "i"(~AC) : "rax", "memory", "cc");
    CHECK(flags & AC && !loses("alignment"), "the flag for alignment is gone: %lx", flags);
    return NULL;
}

static void *goes_backwards(void *unused UNUSED) {
    long flags;
    atomic_fetch_add(&ready, 1);
    __asm__ volatile("std\n1:\tmov (%1), %%eax\n\ttest %%eax, %%eax\n\tjz 1b\n\tpushf\n\tpop %0\n\tcld"
                     : "=&r"(flags) : "r"(&go_on) : "rax", "memory", "cc");
    CHECK(flags & DF && !loses("direction"), "the flag for the direction is gone: %lx", flags);
    return NULL;
}

int main(void) {
    pthread_t threads[] = {start_thread(checks_alignment, NULL), start_thread(goes_backwards, NULL)};
    await_value(&ready, 2);
    until_go();
    go_on = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
