// What every workload shares: say `ready`, wait to be told to go on, verify, say `ok`.
//
// A workload sets up state, calls until_go(), and then looks whether all is as it was. Between `ready` and
// the appearance of the file that STASIS_TEST_GO names, the test may checkpoint, kill and restart it.
// With STASIS_TEST_LOSE=what, the workload damages that part of its own state as a bad restart would;
// it must then fail. The test finds the names by the loses("what") in the source.
#ifndef VERIFY_H
#define VERIFY_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static atomic_int failures;

#define FAIL(...)                                                                                  \
    do {                                                                                           \
        int error_number = errno;                                                                  \
        flockfile(stdout);                                                                         \
        printf("FAIL: ");                                                                          \
        printf(__VA_ARGS__);                                                                       \
        printf(" (%s:%d: errno %d, %s)\n", __FILE__, __LINE__, error_number, strerror(error_number));\
        fflush(stdout);                                                                            \
        funlockfile(stdout);                                                                       \
        atomic_fetch_add(&failures, 1);                                                            \
    } while (0)

// Notes a failure and goes on, so that one run shows all that was lost.
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            FAIL(__VA_ARGS__);                                                                     \
    } while (0)

// Ends the program when what everything after it depends on does not hold.
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            FAIL("%s", #condition);                                                                \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

#define UNUSED __attribute__((unused))

// Nanoseconds on the given clock.
UNUSED static int64_t now_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

// Sleeps all of the time, whatever signals the program has handlers for.
UNUSED static void sleep_ms(int64_t milliseconds) {
    int64_t deadline = now_ns(CLOCK_MONOTONIC) + milliseconds * 1000000;
    struct timespec until = {deadline / 1000000000, deadline % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

// Reads a file of /proc as a string; returns its length.
UNUSED static size_t read_proc(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t length = 0;
    ssize_t got;
    while (fd >= 0 && length < size - 1 && (got = read(fd, text + length, size - 1 - length)) > 0)
        length += got;
    text[length] = 0;
    if (fd >= 0)
        close(fd);
    return length;
}

// Whether the test asks this run to lose the named part of its state.
UNUSED static bool loses(const char *what) {
    const char *lost = getenv("STASIS_TEST_LOSE");
    return lost && strcmp(lost, what) == 0;
}

// Whether the test has told the program to go on. Without STASIS_TEST_GO it need not wait.
UNUSED static bool told_to_go(void) {
    const char *path = getenv("STASIS_TEST_GO");
    return !path || access(path, F_OK) == 0;
}

UNUSED static void say_ready(void) {
    puts("ready");
    fflush(stdout);
}

UNUSED static void await_go(void) {
    struct timespec millisecond = {0, 1000000};
    while (!told_to_go())
        nanosleep(&millisecond, NULL);
    // Going on is not a call whose errno anything should see.
    errno = 0;
}

UNUSED static void until_go(void) {
    say_ready();
    await_go();
}

// The exit status, after saying `ok` where nothing failed.
UNUSED static int verdict(void) {
    if (atomic_load(&failures))
        return 1;
    puts("ok");
    fflush(stdout);
    return 0;
}

UNUSED static pthread_t start_thread(void *(*body)(void *), void *argument) {
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, body, argument) == 0);
    return thread;
}

// Waits, without a system call that a signal could end, until a word has a value that another thread gives it.
UNUSED static void await_value(atomic_int *word, int value) {
    while (atomic_load(word) != value)
        sleep_ms(1);
}

UNUSED static void *wait_for_ever(void *tid) {
    atomic_store((atomic_int *)tid, syscall(SYS_gettid));
    for (;;)
        pause();
    return NULL;
}

// Starts a thread that does nothing; its id.
UNUSED static pid_t start_waiting_thread(void) {
    static atomic_int tid;
    atomic_store(&tid, 0);
    start_thread(wait_for_ever, &tid);
    while (!atomic_load(&tid))
        sleep_ms(1);
    return atomic_load(&tid);
}

#endif
