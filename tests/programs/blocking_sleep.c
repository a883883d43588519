// Sleeps, and waits for signals, each named by argv[1]: on time, and never interrupted by a checkpoint.
#include "blocking.h"
#include <threads.h>

static atomic_int handled;
static pthread_t waiter;
static sigset_t usr2;

static void count(int signal) {
    (void)signal;
    atomic_fetch_add(&handled, 1);
}

static void call_nanosleep(void) {
    struct timespec time = {1, 500000000};
    EXPECT(nanosleep(&time, &time), 0);
}

static void call_nanosleep_raw(void) {
    struct timespec time = {1, 500000000};
    EXPECT(syscall(SYS_nanosleep, &time, &time), 0);
}

static void call_clock_nanosleep(void) {
    struct timespec time = {1, 500000000};
    EXPECT(clock_nanosleep(CLOCK_MONOTONIC, 0, &time, &time), 0);
}

static void call_clock_nanosleep_realtime(void) {
    struct timespec time = {1, 500000000};
    EXPECT(clock_nanosleep(CLOCK_REALTIME, 0, &time, &time), 0);
}

static void call_clock_nanosleep_absolute(void) {
    struct timespec time = in_ms(CLOCK_MONOTONIC, 1500);
    EXPECT(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL), 0);
}

static void call_usleep(void) {
    EXPECT(usleep(1500000), 0);
}

static void call_sleep(void) {
    EXPECT(sleep(2), 0);
}

static void call_thrd_sleep(void) {
    struct timespec time = {1, 500000000};
    EXPECT(thrd_sleep(&time, &time), 0);
}

static void send_usr1(void) {
    pthread_kill(waiter, SIGUSR1);
}

static void send_usr2(void) {
    union sigval value = {.sival_int = 4711};
    pthread_sigqueue(waiter, SIGUSR2, value);
}

// pause(2) and sigsuspend(2) end with EINTR, but after a handler of the program only.
static void call_pause(void) {
    EXPECT_ERROR(pause(), EINTR);
    CHECK(atomic_load(&handled) == 1, "pause ended though no handler of the program ran");
}

static void call_sigsuspend(void) {
    sigset_t mask, blocked, after;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    sigfillset(&mask);
    sigdelset(&mask, SIGUSR1);
    EXPECT_ERROR(sigsuspend(&mask), EINTR);
    CHECK(atomic_load(&handled) == 1, "sigsuspend ended though no handler of the program ran");
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    CHECK(sigismember(&after, SIGUSR1) && !sigismember(&after, SIGTERM), "sigsuspend left a wrong mask");
}

// A sleep that the program's own handler ends: the time left is told.
static void call_nanosleep_ended(void) {
    struct timespec time = {4, 0}, left = {0, 0};
    EXPECT_ERROR(nanosleep(&time, &left), EINTR);
    double seconds = left.tv_sec + left.tv_nsec / 1e9;
    CHECK(seconds > 2.4 && seconds <= 2.5, "nanosleep says that %.3f s of 2.5 are left", seconds);
}

static void call_sigtimedwait_timeout(void) {
    struct timespec time = {1, 500000000};
    EXPECT_ERROR(sigtimedwait(&usr2, NULL, &time), EAGAIN);
}

static void call_sigtimedwait(void) {
    struct timespec time = {4, 0};
    siginfo_t info = {0};
    EXPECT(sigtimedwait(&usr2, &info, &time), SIGUSR2);
    CHECK(info.si_value.sival_int == 4711, "the signal's value is %d", info.si_value.sival_int);
}

static void call_sigwaitinfo(void) {
    siginfo_t info = {0};
    EXPECT(sigwaitinfo(&usr2, &info), SIGUSR2);
    CHECK(info.si_value.sival_int == 4711, "the signal's value is %d", info.si_value.sival_int);
}

static void call_sigwait(void) {
    int signal = 0;
    EXPECT(sigwait(&usr2, &signal), 0);
    CHECK(signal == SIGUSR2, "sigwait gave signal %d", signal);
}

static const struct call calls[] = {
    {"nanosleep", 1500, call_nanosleep, NULL, false},
    {"nanosleep-raw", 1500, call_nanosleep_raw, NULL, false},
    {"nanosleep-ended-by-a-handler", 1500, call_nanosleep_ended, send_usr1, false},
    {"clock_nanosleep", 1500, call_clock_nanosleep, NULL, false},
    {"clock_nanosleep-realtime", 1500, call_clock_nanosleep_realtime, NULL, false},
    {"clock_nanosleep-absolute", 1500, call_clock_nanosleep_absolute, NULL, true},
    {"usleep", 1500, call_usleep, NULL, false},
    {"sleep", 2000, call_sleep, NULL, false},
    {"thrd_sleep", 1500, call_thrd_sleep, NULL, false},
    {"pause", 1500, call_pause, send_usr1, false},
    {"sigsuspend", 1500, call_sigsuspend, send_usr1, false},
    {"sigtimedwait-timeout", 1500, call_sigtimedwait_timeout, NULL, false},
    {"sigtimedwait", 1500, call_sigtimedwait, send_usr2, false},
    {"sigwaitinfo", 1500, call_sigwaitinfo, send_usr2, false},
    {"sigwait", 1500, call_sigwait, send_usr2, false},
    {NULL, 0, NULL, NULL, false},
};

int main(int argc, char **argv) {
    waiter = pthread_self();
    struct sigaction action = {.sa_handler = count};
    sigaction(SIGUSR1, &action, NULL);
    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &usr2, NULL);
    return run_call(calls, argc, argv);
}
