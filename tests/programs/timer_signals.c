// Timers and sigqueue that share a blocked signal: one timer has expired, one is far off, one was never set. And a periodic timer
// whose signal is blocked counts what it could not tell (with argv[1]: from the restart on).
// link: -lrt
#include "verify.h"

static timer_t make(int signal, int value, struct itimerspec time) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal, .sigev_value.sival_int = value};
    timer_t timer;
    REQUIRE(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &time, NULL) == 0);
    return timer;
}

static void take(int signal, char *text, size_t size) {
    struct timespec zero = {0};
    sigset_t set;
    siginfo_t info;
    size_t at = 0;
    sigemptyset(&set);
    sigaddset(&set, signal);
    text[0] = 0;
    while (sigtimedwait(&set, &info, &zero) > 0 && at < size)
        at += snprintf(text + at, size - at, "%d:%d ", info.si_code, info.si_value.sival_int);
}

static int least_ticks = 300;

static void take_ticks(int signal, const char *name, int64_t since) {
    struct timespec zero = {0};
    sigset_t set;
    siginfo_t info;
    int64_t ticks = 0, most = (now_ns(CLOCK_MONOTONIC) - since) / 1000000 + 2;
    sigemptyset(&set);
    sigaddset(&set, signal);
    for (int i = 0; i < 5 && sigtimedwait(&set, &info, &zero) > 0; i++)
        ticks += 1 + info.si_overrun;
    CHECK(ticks >= least_ticks && ticks <= most, "%s: %jd ticks of at least %d and at most %jd", name, (intmax_t)ticks,
          least_ticks, (intmax_t)most);
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1)
        least_ticks = 10;
    const int shared = SIGRTMIN + 1, standard = SIGALRM, periodic = SIGRTMIN + 2;
    const int signals[] = {shared, standard, periodic, SIGUSR2};
    struct itimerspec soon = {.it_value = {0, 1000000}}, far = {.it_value = {1000, 0}}, never = {0};
    struct itimerspec each_ms = {{0, 1000000}, {0, 1000000}};
    union sigval values[] = {{.sival_int = 5}, {.sival_int = 6}};
    sigset_t blocked;
    sigemptyset(&blocked);
    for (int i = 0; i < 4; i++)
        sigaddset(&blocked, signals[i]);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    timer_t off[2], expired[2], waits[2];
    for (int i = 0; i < 2; i++) {
        expired[i] = make(signals[i], 100, soon);
        waits[i] = make(signals[i], 101, far);
        off[i] = make(signals[i], 102, never);
    }
    sleep_ms(20);
    for (int i = 0; i < 2; i++)
        REQUIRE(sigqueue(getpid(), shared, values[i]) == 0);
    int64_t since = now_ns(CLOCK_MONOTONIC);
    make(periodic, 9, each_ms);
    make(SIGUSR2, 9, each_ms);
    sleep_ms(310);
    until_go();
    if (loses("signal"))
        sigqueue(getpid(), shared, values[0]);
    if (loses("timer"))
        timer_settime(off[0], 0, &far, NULL);
    if (loses("expiry"))
        timer_settime(waits[1], 0, &soon, NULL);
    if (loses("ticks")) {
        char text[300];
        take(periodic, text, sizeof text);
    }
    sleep_ms(50);
    char text[300];
    take(shared, text, sizeof text);
    CHECK(strcmp(text, "-2:100 -1:5 -1:6 ") == 0, "of the shared signal came %s", text);
    take(standard, text, sizeof text);
    CHECK(strcmp(text, "-2:100 ") == 0, "of the timers' signal came %s", text);
    for (int i = 0; i < 2; i++) {
        struct itimerspec left[3];
        timer_gettime(off[i], &left[0]);
        timer_gettime(expired[i], &left[1]);
        timer_gettime(waits[i], &left[2]);
        CHECK(left[0].it_value.tv_sec == 0 && left[0].it_value.tv_nsec == 0, "a timer that was never set is armed");
        CHECK(left[1].it_value.tv_sec == 0 && left[1].it_value.tv_nsec == 0, "a timer that has expired is armed");
        CHECK(left[2].it_value.tv_sec > 900, "a timer that is far off has %ld s left", left[2].it_value.tv_sec);
    }
    take_ticks(periodic, "a real-time signal's timer", since);
    take_ticks(SIGUSR2, "a standard signal's timer", since);
    return verdict();
}
