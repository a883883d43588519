// Signals that a child queues for its parent, to the process and to a thread, and that wait there: those of before a restart
// come before those of after it.
#include "verify.h"
#include <sys/prctl.h>
#include <sys/wait.h>

// How many wait at a time.
enum { WAITING = 200 };

static atomic_int taker;
static atomic_int child_has_ended;

static sigset_t set_of(int signal) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    return set;
}

static void queue(pid_t process, pid_t thread, int signal, int value) {
    siginfo_t info = {.si_signo = signal, .si_code = SI_QUEUE};
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = value;
    if (syscall(SYS_rt_tgsigqueueinfo, process, thread, signal, &info) != 0)
        FAIL("signal %d to thread %d", signal, thread);
}

// Takes the signals in turn, one for each that the child is allowed to send.
static void take(int signal, int allow) {
    sigset_t set = set_of(signal);
    bool wrong = loses("order");
    for (int expected = 0; !told_to_go() || expected < 2 * WAITING; expected++) {
        siginfo_t info;
        int got;
        while ((got = sigwaitinfo(&set, &info)) == -1 && errno == EINTR)
            ;
        CHECK(got == signal && info.si_value.sival_int == expected + wrong,
              "signal %d came with %d instead of %d", got, info.si_value.sival_int, expected);
        if (atomic_load(&failures))
            break;
        REQUIRE(write(allow, "", 1) == 1);
    }
    close(allow);
}

static int allowances[2][2];

static void *take_own(void *unused) {
    atomic_store(&taker, syscall(SYS_gettid));
    take(SIGRTMIN + 1, allowances[1][1]);
    await_value(&child_has_ended, 1);
    return unused;
}

// In the child: sends to the process or the thread.
static void *send_all(void *which) {
    pid_t parent = getppid();
    int to_thread = which != NULL;
    char one;
    for (int value = 0;; value++) {
        if (value >= WAITING && read(allowances[to_thread][0], &one, 1) != 1)
            return NULL;
        if (to_thread)
            queue(parent, atomic_load(&taker), SIGRTMIN + 1, value);
        else if (sigqueue(parent, SIGRTMIN, (union sigval){.sival_int = value}) != 0)
            FAIL("signal %d", value);
    }
}

int main(void) {
    sigset_t first = set_of(SIGRTMIN), second = set_of(SIGRTMIN + 1);
    pthread_sigmask(SIG_BLOCK, &first, NULL);
    pthread_sigmask(SIG_BLOCK, &second, NULL);
    REQUIRE(pipe(allowances[0]) == 0 && pipe(allowances[1]) == 0);
    pthread_t thread = start_thread(take_own, NULL);
    while (!atomic_load(&taker))
        sleep_ms(1);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(allowances[0][1]);
        close(allowances[1][1]);
        pthread_t other = start_thread(send_all, &child);
        send_all(NULL);
        pthread_join(other, NULL);
        _exit(atomic_load(&failures) != 0);
    }
    close(allowances[0][0]);
    close(allowances[1][0]);
    say_ready();
    take(SIGRTMIN, allowances[0][1]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child failed");
    atomic_store(&child_has_ended, 1);
    pthread_join(thread, NULL);
    return verdict();
}
