// getpid, gettid and what glibc and the kernel remember of them are the same; new threads can be made.
#include "verify.h"
#include <sys/prctl.h>

static atomic_int waiting;
static atomic_int go_on;

static void *body(void *number) {
    pid_t tid = gettid(), pid = getpid();
    int *clear = NULL, *clear_after = NULL;
    prctl(PR_GET_TID_ADDRESS, &clear);
    atomic_fetch_add(&waiting, 1);
    await_value(&go_on, 1);
    if (loses("tid") && number)
        tid++;
    if (loses("tid-address"))
        syscall(SYS_set_tid_address, &waiting);
    CHECK(gettid() == tid && syscall(SYS_gettid) == tid, "tid %d is now %d (kernel: %ld)", tid, gettid(),
          syscall(SYS_gettid));
    CHECK(getpid() == pid && syscall(SYS_getpid) == pid, "pid %d is now %d (kernel: %ld)", pid, getpid(),
          syscall(SYS_getpid));
    CHECK(prctl(PR_GET_TID_ADDRESS, &clear_after) == 0 && clear_after == clear,
          "the address that is cleared at a thread's end was %p and is %p", (void *)clear, (void *)clear_after);
    return number;
}

static void *return_tid(void *unused) {
    (void)unused;
    return (void *)(long)gettid();
}

int main(void) {
    pthread_t threads[4];
    char link[64] = "", path[64];
    for (long i = 0; i < 4; i++)
        threads[i] = start_thread(body, (void *)(i + 1));
    await_value(&waiting, 4);
    pid_t pid = getpid();

    until_go();
    atomic_store(&go_on, 1);
    for (int i = 0; i < 4; i++)
        if (!loses("tid-address"))
            pthread_join(threads[i], NULL);
        else
            await_value(&failures, 4);
    atomic_fetch_add(&waiting, 1);
    body((void *)1);
    CHECK(readlink("/proc/self", link, sizeof link - 1) > 0 && atoi(link) == pid, "/proc/self is %s", link);
    snprintf(path, sizeof path, "/proc/%d/task/%d", pid, pid);
    CHECK(access(path, F_OK) == 0, "%s does not exist", path);
    void *tid = NULL;
    pthread_t later = start_thread(return_tid, NULL);
    CHECK(pthread_join(later, &tid) == 0 && (long)tid > 0 && (long)tid != pid, "a new thread");
    return verdict();
}
