// POSIX timers with each way of notification: armed and disarmed ones keep id, time left, interval and overruns.
// link: -lrt
#include "timers.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static timer_t by_signal, by_thread_id, by_thread, by_none, disarmed, overrun;
static atomic_int signal_ticks, thread_id_ticks, thread_ticks, foreign_ticks;
static atomic_int target_ready;
static pid_t target;

static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)context;
    if (info->si_code != SI_TIMER || info->si_value.sival_int != signal)
        atomic_fetch_add(&foreign_ticks, 1);
    if (signal == SIGRTMIN)
        atomic_fetch_add(&signal_ticks, 1);
    else if (gettid() == target)
        atomic_fetch_add(&thread_id_ticks, 1);
    else
        atomic_fetch_add(&foreign_ticks, 1);
}

static void on_thread(union sigval value) {
    atomic_fetch_add(value.sival_int == 55 ? &thread_ticks : &foreign_ticks, 1);
}

static void *be_target(void *unused) {
    sigset_t all;
    sigemptyset(&all);
    sigaddset(&all, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    target = gettid();
    atomic_store(&target_ready, 1);
    for (;;)
        sleep_ms(1000);
    return unused;
}

static void make(timer_t *timer, struct sigevent event, double value, double interval) {
    struct itimerspec time = {
        .it_value = {(time_t)value, (long)((value - (time_t)value) * 1e9)},
        .it_interval = {(time_t)interval, (long)((interval - (time_t)interval) * 1e9)},
    };
    REQUIRE(timer_create(CLOCK_MONOTONIC, &event, timer) == 0 && timer_settime(*timer, 0, &time, NULL) == 0);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN, &action, NULL);
    sigaction(SIGRTMIN + 1, &action, NULL);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 2);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    start_thread(be_target, NULL);
    await_value(&target_ready, 1);

    struct sigevent signal = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = SIGRTMIN};
    struct sigevent thread_id = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 1,
                                 .sigev_value.sival_int = SIGRTMIN + 1, .sigev_notify_thread_id = target};
    struct sigevent thread = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread,
                              .sigev_value.sival_int = 55};
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct sigevent held = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2, .sigev_value.sival_int = 9};
    int64_t set_at = now_ns(CLOCK_MONOTONIC);
    make(&by_signal, signal, 0.05, 0.05);
    make(&by_thread_id, thread_id, 0.05, 0.05);
    make(&by_thread, thread, 0.05, 0.05);
    make(&by_none, none, 3600, 12.5);
    make(&disarmed, none, 0, 0);
    make(&overrun, held, 0.001, 0.001);
    sleep_ms(60);

    watch_until_go();
    struct itimerspec left, off = {0};
    if (loses("timer"))
        timer_delete(by_thread_id);
    if (loses("signal-timer"))
        timer_settime(by_signal, 0, &off, NULL);
    if (loses("thread-timer"))
        timer_settime(by_thread, 0, &off, NULL);
    if (loses("time-left")) {
        struct itimerspec whole = {.it_value = {3600, 0}, .it_interval = {12, 500000000}};
        sleep_ms(200);
        timer_settime(by_none, 0, &whole, NULL);
    }
    if (loses("pending")) {
        struct timespec zero = {0, 0};
        timer_settime(overrun, 0, &off, NULL);
        sigtimedwait(&blocked, NULL, &zero);
    }
    CHECK(timer_gettime(by_none, &left) == 0 && near_left(seconds_of(left.it_value), 3600, set_at) &&
              seconds_of(left.it_interval) == 12.5, "the silent timer's time left or interval is wrong");
    CHECK(timer_gettime(disarmed, &left) == 0 && seconds_of(left.it_value) == 0, "a disarmed timer is armed");
    CHECK(timer_gettime(by_signal, &left) == 0 && seconds_of(left.it_interval) == 0.05, "the periodic timer changed");

    struct timespec second = {1, 0};
    siginfo_t info = {0};
    CHECK(sigtimedwait(&blocked, &info, &second) == SIGRTMIN + 2 && info.si_code == SI_TIMER &&
              info.si_value.sival_int == 9, "the blocked timer's signal is lost or changed");
    CHECK(info.si_overrun >= 40, "a 1 kHz timer whose signal was blocked for 60 ms overran %d times", info.si_overrun);
    timer_settime(overrun, 0, &off, NULL);

    int before[] = {signal_ticks, thread_id_ticks, thread_ticks};
    sleep_ms(500);
    int after[] = {signal_ticks, thread_id_ticks, thread_ticks};
    const char *const names[] = {"SIGEV_SIGNAL", "SIGEV_THREAD_ID", "SIGEV_THREAD"};
    for (int i = 0; i < 3; i++)
        CHECK(after[i] - before[i] >= 7 && after[i] - before[i] <= 11, "a %s timer of 50 ms ticked %d times in 500 ms",
              names[i], after[i] - before[i]);
    CHECK(foreign_ticks == 0, "%d ticks came to the wrong thread or with another value", foreign_ticks);
    CHECK(timer_delete(by_none) == 0 && timer_delete(by_signal) == 0 && timer_delete(by_thread) == 0, "timer_delete");
    return verdict();
}
