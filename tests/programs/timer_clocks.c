// POSIX timers of the processor time of each of two threads, made as the thread's own; and one whose id is beyond a million.
#include "verify.h"

static atomic_int ready, spin, end;
static timer_t timers[2];

static double left(timer_t timer) {
    struct itimerspec value = {0};
    CHECK(timer_gettime(timer, &value) == 0, "a timer is gone");
    return value.it_value.tv_sec + value.it_value.tv_nsec / 1e9;
}

static timer_t make(clockid_t clock) {
    struct sigevent nothing = {.sigev_notify = SIGEV_NONE};
    struct itimerspec value = {{0, 0}, {100, 0}};
    timer_t timer;
    REQUIRE(timer_create(clock, &nothing, &timer) == 0 && timer_settime(timer, 0, &value, NULL) == 0);
    return timer;
}

static void *body(void *argument) {
    int which = *(int *)argument;
    timers[which] = make(CLOCK_THREAD_CPUTIME_ID);
    atomic_fetch_add(&ready, 1);
    await_value(&spin, 1);
    while (atomic_load(&end) == 0)
        if (which == 0)
            sleep_ms(5);
    return NULL;
}

int main(void) {
    int number[2] = {0, 1};
    pthread_t threads[2] = {start_thread(body, &number[0]), start_thread(body, &number[1])};
    await_value(&ready, 2);
    struct sigevent nothing = {.sigev_notify = SIGEV_NONE};
    int high = 0;
    // The kernel counts on with every timer that is made.
    while (high < 1000100) {
        REQUIRE(syscall(SYS_timer_create, CLOCK_MONOTONIC, &nothing, &high) == 0);
        if (high < 1000100)
            REQUIRE(syscall(SYS_timer_delete, high) == 0);
    }
    until_go();

    if (loses("clock"))
        timers[1] = make(CLOCK_THREAD_CPUTIME_ID);
    if (loses("id"))
        syscall(SYS_timer_delete, high);
    double idle = left(timers[0]), busy = left(timers[1]);
    int64_t since = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    atomic_store(&spin, 1);
    while (now_ns(CLOCK_PROCESS_CPUTIME_ID) - since < 300000000)
        sleep_ms(10);
    idle -= left(timers[0]);
    busy -= left(timers[1]);
    CHECK(idle < 0.1, "the timer of the thread that sleeps has counted %.3f s", idle);
    CHECK(busy > 0.15, "the timer of the thread that spins has counted %.3f s", busy);
    struct itimerspec value;
    CHECK(syscall(SYS_timer_gettime, high, &value) == 0, "the timer with id %d is gone", high);
    atomic_store(&end, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
