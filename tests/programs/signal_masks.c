// Each thread's signal mask and alternate signal stack.
#include "verify.h"

enum { THREADS = 8, STACK = 32768 };

static atomic_int waiting;
static atomic_int go_on;
static char stacks[THREADS][STACK];
static __thread void *handler_sp;

static void note_stack(int signal) {
    (void)signal;
    handler_sp = __builtin_frame_address(0);
}

// The kernel's own word for it, so that no wrapper's can stand in.
static uint64_t blocked(void) {
    uint64_t mask = 0;
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, sizeof mask);
    return mask;
}

static void *body(void *argument) {
    long number = (long)argument;
    stack_t stack = {.ss_sp = stacks[number], .ss_size = STACK}, now;
    sigset_t mask;
    sigemptyset(&mask);
    for (int bit = 0; bit < 8; bit++)
        if (number >> bit & 1)
            sigaddset(&mask, SIGRTMIN + 1 + bit);
    sigaddset(&mask, SIGTERM);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    if (number % 2)
        REQUIRE(sigaltstack(&stack, NULL) == 0);
    uint64_t before = blocked();
    atomic_fetch_add(&waiting, 1);
    await_value(&go_on, 1);

    stack_t none = {.ss_flags = SS_DISABLE};
    if (loses("mask"))
        pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
    if (loses("altstack"))
        sigaltstack(&none, NULL);
    CHECK(blocked() == before, "the mask of thread %ld was %#jx and is %#jx", number, (uintmax_t)before,
          (uintmax_t)blocked());
    CHECK(sigaltstack(NULL, &now) == 0, "sigaltstack");
    if (number % 2)
        CHECK(now.ss_sp == stacks[number] && now.ss_size == STACK && now.ss_flags == 0,
              "the alternate stack of thread %ld is %p, %zu bytes, flags %d", number, now.ss_sp, now.ss_size,
              now.ss_flags);
    else
        CHECK(now.ss_flags == SS_DISABLE, "thread %ld has an alternate stack that it never made", number);
    pthread_kill(pthread_self(), SIGUSR1);
    bool inside = (char *)handler_sp > stacks[number] && (char *)handler_sp < stacks[number] + STACK;
    CHECK(handler_sp && inside == number % 2, "the handler of thread %ld ran at %p", number, handler_sp);
    return NULL;
}

int main(void) {
    struct sigaction action = {.sa_handler = note_stack, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        threads[i] = start_thread(body, (void *)i);
    await_value(&waiting, THREADS);
    until_go();
    atomic_store(&go_on, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
