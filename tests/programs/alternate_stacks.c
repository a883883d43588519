// Alternate signal stacks that are not to be used: too small for a frame, unmapped, in other use since, and one whose handler was
// left by swapcontext and goes on later.
#include "verify.h"
#include <sys/mman.h>
#include <ucontext.h>

enum { SMALL = 2048, LEN = 65536, WORDS = 300 };

static atomic_int waiting, go_on;
static char *reused, *abandoned, *unmapped;
static char scheduler_stack[LEN];
static ucontext_t handler, scheduler;

static void wait_here(void) {
    atomic_fetch_add(&waiting, 1);
    await_value(&go_on, 1);
}

static char *with_guard(void) {
    char *start = mmap(NULL, 2 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(start != MAP_FAILED && mprotect(start, LEN, PROT_NONE) == 0);
    return start + LEN;
}

static void name_stack(char *start, size_t size) {
    stack_t stack = {.ss_sp = start, .ss_size = size};
    REQUIRE(sigaltstack(&stack, NULL) == 0);
}

static void *with_small(void *unused) {
    char *start = with_guard();
    stack_t now;
    name_stack(start, SMALL);
    wait_here();
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == start && now.ss_size == SMALL && now.ss_flags == 0,
          "the small alternate stack is %p, %zu bytes, flags %d", now.ss_sp, now.ss_size, now.ss_flags);
    return unused;
}

static void *with_unmapped(void *unused) {
    stack_t now;
    unmapped = with_guard();
    name_stack(unmapped, LEN);
    munmap(unmapped - LEN, 2 * LEN);
    wait_here();
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == unmapped, "the unmapped alternate stack is %p", now.ss_sp);
    return unused;
}

static void *with_reused(void *unused) {
    reused = malloc(LEN);
    name_stack(reused, LEN);
    memset(reused, 0x5a, LEN);
    wait_here();
    int changed = 0;
    for (int i = 0; i < LEN; i++)
        changed += reused[i] != 0x5a;
    CHECK(changed == 0, "%d bytes of what was an alternate stack changed", changed);
    return unused;
}

static void leave(int signal) {
    (void)signal;
    volatile unsigned long words[WORDS];
    for (int i = 0; i < WORDS; i++)
        words[i] = i * 0x0101010101010101ul;
    swapcontext(&handler, &scheduler);
    int changed = 0;
    for (int i = 0; i < WORDS; i++)
        changed += words[i] != i * 0x0101010101010101ul;
    CHECK(changed == 0, "%d words of the handler that was left changed", changed);
}

static void schedule(void) {
    wait_here();
    setcontext(&handler);
}

static void *with_abandoned(void *unused) {
    struct sigaction action = {.sa_handler = leave, .sa_flags = SA_ONSTACK};
    sigfillset(&action.sa_mask);
    REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
    abandoned = with_guard();
    name_stack(abandoned, LEN);
    getcontext(&scheduler);
    scheduler.uc_stack = (stack_t){.ss_sp = scheduler_stack, .ss_size = LEN};
    makecontext(&scheduler, schedule, 0);
    raise(SIGUSR1);
    return unused;
}

static void ignore(int signal) { (void)signal; }

int main(void) {
    // Not all handlers of the program run on alternate stacks.
    signal(SIGUSR2, ignore);
    void *(*const bodies[])(void *) = {with_small, with_unmapped, with_reused, with_abandoned};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        threads[i] = start_thread(bodies[i], NULL);
    await_value(&waiting, 4);
    until_go();
    if (loses("memory"))
        reused[LEN - 1000] = 0;
    if (loses("handler"))
        for (int i = 0; i < 8192; i++)
            abandoned[LEN - 8192 + i] = 1;
    atomic_store(&go_on, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
