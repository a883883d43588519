// A child that its parent stops and continues all the time: continued, both of its threads go on. A checkpoint that begins in that
// moment stops it again: it is continued until it does.
#include "verify.h"
#include <sys/mman.h>
#include <sys/wait.h>

static struct shared {
    atomic_long beats[2];
} *shared;

static void *beat(void *which) {
    for (;;) {
        atomic_fetch_add(&shared->beats[(long)which], 1);
        sleep_ms(1);
    }
    return NULL;
}

static bool goes_on(pid_t child) {
    int64_t until = now_ns(CLOCK_MONOTONIC) + 10000000000;
    for (int which = 0; which < 2; which++) {
        long before = atomic_load(&shared->beats[which]);
        while (atomic_load(&shared->beats[which]) < before + 3) {
            if (now_ns(CLOCK_MONOTONIC) > until || kill(child, SIGCONT))
                return false;
            sleep_ms(1);
        }
    }
    return true;
}

int main(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        start_thread(beat, (void *)1);
        beat(NULL);
    }
    say_ready();
    for (int turn = 0; !told_to_go() || turn < 3; turn++) {
        REQUIRE(kill(child, SIGSTOP) == 0);
        int status = 0;
        while (!WIFSTOPPED(status))
            REQUIRE(waitpid(child, &status, WUNTRACED) == child);
        sleep_ms(turn * 7 % 40);
        if (!goes_on(child)) {
            FAIL("turn %d: it does not go on", turn);
            break;
        }
    }
    kill(child, SIGKILL);
    return verdict();
}
