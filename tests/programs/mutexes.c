// Mutexes of every kind, held across: they still know their owner, depth and waiters.
#include "verify.h"

enum { NORMAL, RECURSIVE, ERROR_CHECKING, ROBUST, PI, ROBUST_PI, KINDS };

static const char *const names[] = {"normal", "recursive", "error-checking", "robust", "PI", "robust PI"};
static pthread_mutex_t mutexes[KINDS];
static atomic_int waiting;
static atomic_int acquired;

static void set_up(int kind) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    if (kind == RECURSIVE)
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    if (kind == ERROR_CHECKING)
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    if (kind == ROBUST || kind == ROBUST_PI)
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (kind == PI || kind == ROBUST_PI)
        pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    REQUIRE(pthread_mutex_init(&mutexes[kind], &attributes) == 0);
}

static void *wait_for_lock(void *mutex) {
    atomic_fetch_add(&waiting, 1);
    int error = pthread_mutex_lock(mutex);
    CHECK(error == 0, "a waiter got the error %d", error);
    atomic_fetch_add(&acquired, 1);
    CHECK(pthread_mutex_unlock(mutex) == 0, "a waiter cannot unlock");
    return NULL;
}

static void *try_as_stranger(void *unused) {
    for (int kind = 0; kind < KINDS; kind++) {
        CHECK(pthread_mutex_trylock(&mutexes[kind]) == EBUSY, "the %s mutex is free", names[kind]);
        // A normal and a PI mutex do not look at who unlocks them.
        if (kind != NORMAL && kind != PI)
            CHECK(pthread_mutex_unlock(&mutexes[kind]) == EPERM, "a stranger unlocks the %s mutex", names[kind]);
    }
    return unused;
}

int main(void) {
    pthread_t waiters[KINDS];
    for (int kind = 0; kind < KINDS; kind++) {
        set_up(kind);
        REQUIRE(pthread_mutex_lock(&mutexes[kind]) == 0);
        waiters[kind] = start_thread(wait_for_lock, &mutexes[kind]);
    }
    for (int depth = 1; depth < 5; depth++)
        REQUIRE(pthread_mutex_lock(&mutexes[RECURSIVE]) == 0);
    await_value(&waiting, KINDS);
    sleep_ms(20);

    until_go();
    if (loses("lock"))
        pthread_mutex_unlock(&mutexes[NORMAL]);
    if (loses("depth"))
        pthread_mutex_unlock(&mutexes[RECURSIVE]);
    // As if the mutex remembered a thread that is no more; the waiter stays, and is told so.
    if (loses("owner"))
        mutexes[ERROR_CHECKING].__data.__owner = 1;
    CHECK(acquired == 0, "%d waiters got mutexes that were never unlocked", acquired);
    pthread_join(start_thread(try_as_stranger, NULL), NULL);
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_sec += 2;
    CHECK(pthread_mutex_timedlock(&mutexes[ERROR_CHECKING], &soon) == EDEADLK, "the error-checking mutex forgot its owner");
    for (int depth = 1; depth < 5; depth++)
        CHECK(pthread_mutex_unlock(&mutexes[RECURSIVE]) == 0, "the recursive mutex lost its depth");
    if (atomic_load(&failures))
        return 1;
    for (int kind = 0; kind < KINDS; kind++) {
        CHECK(pthread_mutex_unlock(&mutexes[kind]) == 0, "its owner cannot unlock the %s mutex", names[kind]);
        pthread_join(waiters[kind], NULL);
    }
    CHECK(acquired == KINDS, "only %d of %d waiters got their mutex", acquired, KINDS);
    return verdict();
}
