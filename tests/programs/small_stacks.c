// Stacks with room for the frame of one signal and little more: the alternate stack of a thread that is in a handler on
// it, and the stack of a raw thread. Below each is memory that nobody may touch.
#include "raw_thread.h"
#include <sys/auxv.h>
#include <sys/mman.h>

// What a program that uses these stacks needs itself.
enum { OWN = 1024 };

static atomic_long counters[2];
static atomic_int in_handler, stop;

// The lower end of `size` bytes, with a page below that faults.
static char *guarded(size_t size) {
    size_t pages = (size + 4095) & ~4095ul;
    char *start = mmap(NULL, 4096 + pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(start != MAP_FAILED && mprotect(start, 4096, PROT_NONE) == 0);
    return start + 4096;
}

static void count(long number) {
    count_sleeps(&counters[number], &stop);
}

static void on_alternate_stack(int signal) {
    (void)signal;
    atomic_store(&in_handler, 1);
    count(0);
    atomic_store(&in_handler, 0);
}

static void *have_handler(void *unused) {
    size_t size = 2 * getauxval(AT_MINSIGSTKSZ) + OWN;
    stack_t stack = {.ss_sp = guarded(size), .ss_size = size};
    REQUIRE(sigaltstack(&stack, NULL) == 0);
    raise(SIGUSR1);
    return unused;
}

int main(void) {
    struct sigaction action = {.sa_handler = on_alternate_stack, .sa_flags = SA_ONSTACK};
    REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
    pthread_t thread = start_thread(have_handler, NULL);
    static atomic_int tid;
    size_t size = getauxval(AT_MINSIGSTKSZ) + OWN;
    start_raw_thread(guarded(size) + size, count, 1, &tid);
    await_value(&in_handler, 1);
    until_go();
    if (loses("threads"))
        atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++)
        CHECK(counts(&counters[i]), "thread %d stands still, or its sleep was interrupted", i);
    atomic_store(&stop, 1);
    REQUIRE(pthread_join(thread, NULL) == 0);
    CHECK(!atomic_load(&in_handler), "the handler has not returned");
    return verdict();
}
