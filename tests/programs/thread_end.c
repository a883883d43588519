// Afterwards threads are joined, cancelled, signalled and detached, and one has ended that nobody joined yet.
#include "verify.h"

static atomic_int waiting;
static atomic_int go_on;
static atomic_int cleaned;
static atomic_int signalled;
static int end_of_pipe[2];

static void clean(void *unused) {
    (void)unused;
    atomic_fetch_add(&cleaned, 1);
}

static void note(int signal) {
    (void)signal;
    atomic_store(&signalled, gettid());
}

static void *wait_to_be_cancelled(void *unused) {
    char byte;
    pthread_cleanup_push(clean, NULL);
    atomic_fetch_add(&waiting, 1);
    ssize_t got = read(end_of_pipe[0], &byte, 1);
    CHECK(false, "a read that was to be cancelled gave %zd", got);
    pthread_cleanup_pop(1);
    return unused;
}

static void *spin_to_be_cancelled(void *unused) {
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    pthread_cleanup_push(clean, NULL);
    atomic_fetch_add(&waiting, 1);
    for (;;)
        __asm__ volatile("pause");
    pthread_cleanup_pop(1);
    return unused;
}

static void *wait_to_return(void *argument) {
    *(pid_t *)argument = gettid();
    atomic_fetch_add(&waiting, 1);
    await_value(&go_on, 1);
    return (void *)12345;
}

static void *return_at_once(void *unused) {
    (void)unused;
    return (void *)777;
}

int main(void) {
    pid_t tid = 0;
    void *result;
    REQUIRE(pipe(end_of_pipe) == 0);
    pthread_t blocked = start_thread(wait_to_be_cancelled, NULL);
    pthread_t spinning = start_thread(spin_to_be_cancelled, NULL);
    pthread_t returning = start_thread(wait_to_return, &tid);
    pthread_t ended = start_thread(return_at_once, NULL);
    struct sigaction action = {.sa_handler = note};
    sigaction(SIGUSR1, &action, NULL);
    await_value(&waiting, 3);
    until_go();

    if (loses("thread")) {
        atomic_store(&go_on, 1);
        sleep_ms(20);
    }
    CHECK(pthread_kill(returning, 0) == 0, "the thread is gone");
    CHECK(pthread_tryjoin_np(returning, &result) == EBUSY, "a running thread can be joined");
    CHECK(pthread_kill(returning, SIGUSR1) == 0, "pthread_kill");
    for (int i = 0; i < 1000 && !atomic_load(&signalled); i++)
        sleep_ms(1);
    CHECK(signalled == tid, "pthread_kill reached thread %d instead of %d", signalled, tid);
    signalled = 0;
    CHECK(raise(SIGUSR1) == 0 && signalled == getpid(), "raise reached thread %d", signalled);
    CHECK(pthread_join(ended, &result) == 0 && result == (void *)777, "joining a thread that had ended");
    CHECK(pthread_cancel(blocked) == 0 && pthread_cancel(spinning) == 0, "pthread_cancel");
    if (loses("cleanup"))
        atomic_fetch_sub(&cleaned, 1);
    CHECK(pthread_join(blocked, &result) == 0 && result == PTHREAD_CANCELED, "joining a cancelled reader");
    CHECK(pthread_join(spinning, &result) == 0 && result == PTHREAD_CANCELED, "joining a cancelled spinner");
    CHECK(cleaned == 2, "%d of 2 clean-up handlers ran", cleaned);
    atomic_store(&go_on, 1);
    CHECK(pthread_join(returning, &result) == 0 && result == (void *)12345, "joining a thread that returned");
    return verdict();
}
