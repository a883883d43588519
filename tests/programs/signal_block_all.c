// All threads block every signal with sigfillset: the program must be stopped all the same, and its mask stay.
#include "verify.h"

static atomic_int waiting;
static atomic_int go_on;

static void *body(void *unused) {
    sigset_t mask, fill;
    sigfillset(&fill);
    atomic_fetch_add(&waiting, 1);
    await_value(&go_on, 1);
    if (loses("mask"))
        pthread_sigmask(SIG_UNBLOCK, &fill, NULL);
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    for (int signal = 1; signal <= SIGRTMAX; signal++)
        if (signal != SIGKILL && signal != SIGSTOP && (signal < 32 || signal >= SIGRTMIN))
            CHECK(sigismember(&mask, signal), "signal %d is no longer blocked", signal);
    return unused;
}

int main(void) {
    sigset_t fill;
    sigfillset(&fill);
    pthread_sigmask(SIG_SETMASK, &fill, NULL);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        threads[i] = start_thread(body, NULL);
    await_value(&waiting, 3);
    until_go();
    atomic_store(&go_on, 1);
    body(NULL);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
