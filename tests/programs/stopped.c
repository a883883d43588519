// The program stands stopped by SIGSTOP at the checkpoint; continued, it goes on where it was.
#include "verify.h"

static atomic_long beats;
static atomic_int quit;
static atomic_int continued;

static void *beat(void *unused) {
    while (!atomic_load(&quit)) {
        atomic_fetch_add(&beats, 1);
        sleep_ms(1);
    }
    return unused;
}

static void note(int signal) {
    (void)signal;
    atomic_fetch_add(&continued, 1);
}

int main(void) {
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigaction(SIGCONT, &action, NULL);
    pthread_t thread = start_thread(beat, NULL);
    // The test stops it when it is ready, and sends SIGCONT once.
    until_go();
    if (loses("SIGCONT"))
        atomic_store(&continued, 0);
    // By hand, without a test, nobody stops it.
    if (getenv("STASIS_TEST_GO") || loses("SIGCONT"))
        CHECK(continued == 1, "SIGCONT was handled %d times", continued);
    long before = atomic_load(&beats);
    sleep_ms(50);
    CHECK(atomic_load(&beats) > before, "a thread stands still");
    atomic_store(&quit, 1);
    pthread_join(thread, NULL);
    return verdict();
}
