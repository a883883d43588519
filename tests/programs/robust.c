// Robust mutexes whose owner dies afterwards: the next to lock learns it, so the kernel knows the robust list.
#include "verify.h"
#include <linux/futex.h>

static pthread_mutex_t robust;
static pthread_mutex_t robust_pi;
static atomic_int held;
static atomic_int die;

static void *die_holding(void *unused) {
    REQUIRE(pthread_mutex_lock(&robust) == 0 && pthread_mutex_lock(&robust_pi) == 0);
    atomic_store(&held, 1);
    await_value(&die, 1);
    if (loses("robust-list"))
        syscall(SYS_set_robust_list, NULL, sizeof(struct robust_list_head));
    return unused;
}

static void expect_owner_dead(pthread_mutex_t *mutex, const char *name) {
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_sec += 2;
    int error = pthread_mutex_timedlock(mutex, &soon);
    CHECK(error == EOWNERDEAD, "locking the %s mutex of a dead owner gave %d", name, error);
    if (error != EOWNERDEAD)
        return;
    CHECK(pthread_mutex_consistent(mutex) == 0 && pthread_mutex_unlock(mutex) == 0, "the %s mutex stays broken", name);
}

int main(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attributes);
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&robust_pi, &attributes);
    pthread_t owner = start_thread(die_holding, NULL);
    await_value(&held, 1);
    void *head = NULL, *after = NULL;
    size_t length = 0;
    syscall(SYS_get_robust_list, 0, &head, &length);

    until_go();
    CHECK(syscall(SYS_get_robust_list, 0, &after, &length) == 0 && after == head,
          "the main thread's robust list was at %p and is at %p", head, after);
    atomic_store(&die, 1);
    pthread_join(owner, NULL);
    expect_owner_dead(&robust, "robust");
    expect_owner_dead(&robust_pi, "robust PI");
    return verdict();
}
