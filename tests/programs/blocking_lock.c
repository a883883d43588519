// Locks, semaphores and futexes waited for, each named by argv[1]: on time, never interrupted.
#include "blocking.h"
#include <linux/futex.h>
#include <semaphore.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <threads.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t mine = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t semaphore;
static atomic_int word;
static atomic_int taken;
static atomic_int given;
static int lock_fd;

// Takes what the call will wait for, and gives it back when the event is made.
static void *hold_locks(void *pi_mutex) {
    REQUIRE(pthread_mutex_lock(&mutex) == 0 && pthread_mutex_lock(pi_mutex) == 0);
    REQUIRE(pthread_rwlock_wrlock(&rwlock) == 0);
    lock_fd = open("lock", O_RDWR | O_CREAT, 0600);
    struct flock all = {.l_type = F_WRLCK};
    REQUIRE(flock(lock_fd, LOCK_EX) == 0 && fcntl(lock_fd, F_OFD_SETLK, &all) == 0);
    atomic_store(&taken, 1);
    while (!atomic_load(&given))
        syscall(SYS_futex, &given, FUTEX_WAIT_PRIVATE, 0, NULL);
    pthread_mutex_unlock(&mutex);
    pthread_mutex_unlock(pi_mutex);
    pthread_rwlock_unlock(&rwlock);
    close(lock_fd);
    return NULL;
}

static pthread_mutex_t pi_mutex;
static pthread_t holder;

static void give_back(void) {
    atomic_store(&given, 1);
    syscall(SYS_futex, &given, FUTEX_WAKE_PRIVATE, 1);
}

static void call_futex(void) {
    struct timespec time = {1, 500000000};
    EXPECT_ERROR(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time), ETIMEDOUT);
}

static void call_futex_bitset(void) {
    struct timespec time = in_ms(CLOCK_MONOTONIC, 1500);
    EXPECT_ERROR(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &time, NULL, FUTEX_BITSET_MATCH_ANY), ETIMEDOUT);
}

static void call_futex_woken(void) {
    EXPECT(syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL), 0);
}

static void wake_word(void) {
    // Not changing the word: a call begun anew after the wake-up would sleep for ever.
    REQUIRE(syscall(SYS_futex, &word, FUTEX_WAKE, 1) == 1);
}

static void call_futex_waitv(void) {
    struct { uint64_t value, address; uint32_t flags, reserved; } waiter = {0, (uintptr_t)&word, 2, 0};
    struct timespec time = in_ms(CLOCK_MONOTONIC, 1500);
    EXPECT_ERROR(syscall(449, &waiter, 1, 0, &time, CLOCK_MONOTONIC), ETIMEDOUT);
}

static void call_sem_wait(void) { EXPECT(sem_wait(&semaphore), 0); }
static void post(void) { sem_post(&semaphore); }

static void call_sem_timedwait(void) {
    struct timespec time = in_ms(CLOCK_REALTIME, 1500);
    EXPECT_ERROR(sem_timedwait(&semaphore, &time), ETIMEDOUT);
}

static void call_sem_clockwait(void) {
    struct timespec time = in_ms(CLOCK_MONOTONIC, 1500);
    EXPECT_ERROR(sem_clockwait(&semaphore, CLOCK_MONOTONIC, &time), ETIMEDOUT);
}

static void call_cond_wait(void) {
    pthread_mutex_lock(&mine);
    while (!word)
        EXPECT(pthread_cond_wait(&condition, &mine), 0);
    pthread_mutex_unlock(&mine);
}

static void signal_condition(void) {
    pthread_mutex_lock(&mine);
    word = 1;
    pthread_mutex_unlock(&mine);
    pthread_cond_signal(&condition);
}

static void call_cond_timedwait(void) {
    struct timespec time = in_ms(CLOCK_REALTIME, 1500);
    pthread_mutex_lock(&mine);
    EXPECT(pthread_cond_timedwait(&condition, &mine, &time), ETIMEDOUT);
    pthread_mutex_unlock(&mine);
}

static void call_cond_clockwait(void) {
    struct timespec time = in_ms(CLOCK_MONOTONIC, 1500);
    pthread_mutex_lock(&mine);
    EXPECT(pthread_cond_clockwait(&condition, &mine, CLOCK_MONOTONIC, &time), ETIMEDOUT);
    pthread_mutex_unlock(&mine);
}

static void call_mutex_lock(void) { EXPECT(pthread_mutex_lock(&mutex), 0); }
static void call_pi_mutex_lock(void) { EXPECT(pthread_mutex_lock(&pi_mutex), 0); }

static void call_mutex_timedlock(void) {
    struct timespec time = in_ms(CLOCK_REALTIME, 1500);
    EXPECT(pthread_mutex_timedlock(&mutex, &time), ETIMEDOUT);
}

static void call_pi_mutex_timedlock(void) {
    struct timespec time = in_ms(CLOCK_REALTIME, 1500);
    EXPECT(pthread_mutex_timedlock(&pi_mutex, &time), ETIMEDOUT);
}

static void call_rdlock(void) { EXPECT(pthread_rwlock_rdlock(&rwlock), 0); }

static void call_timedwrlock(void) {
    struct timespec time = in_ms(CLOCK_REALTIME, 1500);
    EXPECT(pthread_rwlock_timedwrlock(&rwlock, &time), ETIMEDOUT);
}

static void call_barrier(void) { EXPECT(pthread_barrier_wait(&barrier) > 0, 0); }
static void reach_barrier(void) { pthread_barrier_wait(&barrier); }
static void call_join(void) { EXPECT(pthread_join(holder, NULL), 0); }

static void call_timedjoin(void) {
    struct timespec time = in_ms(CLOCK_REALTIME, 1500);
    EXPECT(pthread_timedjoin_np(holder, NULL, &time), ETIMEDOUT);
}

static void call_flock(void) { EXPECT(flock(open("lock", O_RDWR), LOCK_SH), 0); }

static void call_ofd_lock(void) {
    struct flock all = {.l_type = F_WRLCK};
    EXPECT(fcntl(open("lock", O_RDWR), F_OFD_SETLKW, &all), 0);
}

static void end_after_1500_ms(void) {
    sleep_ms(1500);
    _exit(7);
}

// Record locks conflict between processes only.
static void call_posix_lock(void) {
    struct flock all = {.l_type = F_WRLCK};
    int fd = open("record", O_RDWR | O_CREAT, 0600), ends[2];
    char byte;
    REQUIRE(pipe(ends) == 0);
    if (fork() == 0) {
        REQUIRE(fcntl(fd, F_SETLK, &all) == 0 && write(ends[1], "x", 1) == 1);
        end_after_1500_ms();
    }
    REQUIRE(read(ends[0], &byte, 1) == 1);
    EXPECT(fcntl(fd, F_SETLKW, &all), 0);
}

static void call_waitpid(void) {
    int status;
    pid_t child = fork();
    if (child == 0)
        end_after_1500_ms();
    EXPECT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the child's status is %#x", status);
}

static void call_waitid(void) {
    siginfo_t info = {0};
    pid_t child = fork();
    if (child == 0)
        end_after_1500_ms();
    EXPECT(waitid(P_PID, child, &info, WEXITED), 0);
    CHECK(info.si_pid == child && info.si_status == 7, "waitid tells of another child");
}

static const struct call calls[] = {
    {"futex", 1500, call_futex, NULL, false},
    {"futex-absolute", 1500, call_futex_bitset, NULL, true},
    {"futex-woken", 1500, call_futex_woken, wake_word, false},
    {"futex_waitv", 1500, call_futex_waitv, NULL, true},
    {"sem_wait", 1500, call_sem_wait, post, false},
    {"sem_timedwait", 1500, call_sem_timedwait, NULL, true},
    {"sem_clockwait", 1500, call_sem_clockwait, NULL, true},
    {"pthread_cond_wait", 1500, call_cond_wait, signal_condition, false},
    {"pthread_cond_timedwait", 1500, call_cond_timedwait, NULL, true},
    {"pthread_cond_clockwait", 1500, call_cond_clockwait, NULL, true},
    {"pthread_mutex_lock", 1500, call_mutex_lock, give_back, false},
    {"pthread_mutex_timedlock", 1500, call_mutex_timedlock, NULL, true},
    {"pthread_mutex_lock-pi", 1500, call_pi_mutex_lock, give_back, false},
    {"pthread_mutex_timedlock-pi", 1500, call_pi_mutex_timedlock, NULL, true},
    {"pthread_rwlock_rdlock", 1500, call_rdlock, give_back, false},
    {"pthread_rwlock_timedwrlock", 1500, call_timedwrlock, NULL, true},
    {"pthread_barrier_wait", 1500, call_barrier, reach_barrier, false},
    {"pthread_join", 1500, call_join, give_back, false},
    {"pthread_timedjoin_np", 1500, call_timedjoin, NULL, true},
    {"flock", 1500, call_flock, give_back, false},
    {"fcntl-ofd_setlkw", 1500, call_ofd_lock, give_back, false},
    {"fcntl-setlkw-child", 1500, call_posix_lock, NULL, false},
    {"waitpid-child", 1500, call_waitpid, NULL, false},
    {"waitid-child", 1500, call_waitid, NULL, false},
    {NULL, 0, NULL, NULL, false},
};

int main(int argc, char **argv) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&pi_mutex, &attributes);
    pthread_barrier_init(&barrier, NULL, 2);
    sem_init(&semaphore, 0, 0);
    holder = start_thread(hold_locks, &pi_mutex);
    await_value(&taken, 1);
    return run_call(calls, argc, argv);
}
