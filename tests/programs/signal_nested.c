// A checkpoint inside a handler that runs inside a handler, on a small alternate stack; then both return.
#include "verify.h"
#include <sys/auxv.h>
#include <ucontext.h>

static volatile int depth;
static volatile int seen_depth;
static int error_after;

static void inner(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    ucontext_t *interrupted = context;
    CHECK(sigismember(&interrupted->uc_sigmask, SIGUSR1), "the outer handler did not block its own signal");
    depth = 2;
    until_go();
    seen_depth = depth;
    depth = 1;
}

static void outer(int signal) {
    int error = errno;
    (void)signal;
    depth = 1;
    raise(SIGUSR2);
    CHECK(depth == 1 && seen_depth == 2, "the inner handler did not return to the outer one");
    if (loses("mask")) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
    }
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    CHECK(sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGUSR2), "the outer handler's mask changed");
    stack_t stack;
    sigaltstack(NULL, &stack);
    CHECK(stack.ss_flags & SS_ONSTACK, "the kernel forgot that the outer handler is on the alternate stack");
    errno = error;
}

int main(void) {
    // The least that a frame needs on this machine, and a little for what printf does in the handlers.
    size_t size = getauxval(AT_MINSIGSTKSZ) * 3 + 16384;
    stack_t stack = {.ss_sp = malloc(size), .ss_size = size}, after;
    struct sigaction on_usr1 = {.sa_handler = outer, .sa_flags = SA_ONSTACK};
    struct sigaction on_usr2 = {.sa_sigaction = inner, .sa_flags = SA_ONSTACK | SA_SIGINFO};
    REQUIRE(sigaltstack(&stack, NULL) == 0);
    sigaction(SIGUSR1, &on_usr1, NULL);
    sigaction(SIGUSR2, &on_usr2, NULL);
    errno = 4242;
    raise(SIGUSR1);
    error_after = errno;
    CHECK(error_after == 4242, "errno became %d over a handler", error_after);
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    CHECK(!sigismember(&mask, SIGUSR1), "the signal stayed blocked after its handler");
    sigaltstack(NULL, &after);
    CHECK(after.ss_flags == 0, "the kernel thinks that the program is still on the alternate stack");
    return verdict();
}
