// Handlers with and without SA_RESTART: a read is interrupted by them as often as they say, and by nothing else.
#include "verify.h"

enum { SIGNALS = 200 };

struct reader {
    int signal;
    int flags;
    int fds[2];
    pthread_t thread;
    atomic_int handled;
    atomic_int interrupted;
    atomic_int failed;
};

static struct reader restarting = {.signal = SIGUSR1, .flags = SA_RESTART};
static struct reader interrupting = {.signal = SIGUSR2, .flags = 0};

static void count(int signal) {
    atomic_fetch_add(&(signal == SIGUSR1 ? &restarting : &interrupting)->handled, 1);
}

static void *read_bytes(void *argument) {
    struct reader *reader = argument;
    char byte;
    for (;;) {
        ssize_t got = read(reader->fds[0], &byte, 1);
        if (got == 1 && byte == 'q')
            return NULL;
        if (got == -1 && errno == EINTR)
            atomic_fetch_add(&reader->interrupted, 1);
        else if (got != 1)
            atomic_fetch_add(&reader->failed, 1);
    }
}

static void begin(struct reader *reader) {
    struct sigaction action = {.sa_handler = count, .sa_flags = reader->flags};
    REQUIRE(sigaction(reader->signal, &action, NULL) == 0 && pipe(reader->fds) == 0);
    reader->thread = start_thread(read_bytes, reader);
}

static void send_signals(struct reader *reader, int signals) {
    for (int i = 0; i < signals; i++) {
        int before = atomic_load(&reader->handled);
        pthread_kill(reader->thread, reader->signal);
        while (atomic_load(&reader->handled) == before)
            sleep_ms(1);
    }
}

static void finish(struct reader *reader) {
    REQUIRE(write(reader->fds[1], "q", 1) == 1);
    pthread_join(reader->thread, NULL);
    CHECK(reader->failed == 0, "%d reads failed", reader->failed);
}

int main(void) {
    begin(&restarting);
    begin(&interrupting);
    say_ready();
    // Signals come before and after, and in the midst of checkpoints.
    int rounds = 0;
    do {
        send_signals(&restarting, 20);
        send_signals(&interrupting, 20);
        rounds++;
    } while (!told_to_go() || rounds * 20 < SIGNALS);
    if (loses("SA_RESTART")) {
        struct sigaction action = {.sa_handler = count};
        sigaction(restarting.signal, &action, NULL);
        sleep_ms(10);
        send_signals(&restarting, 20);
    }
    if (loses("silence"))
        for (int i = 0; i < 50; i++) {
            // A handler that nobody counts, as a stop signal's would be.
            atomic_fetch_sub(&interrupting.handled, 1);
            pthread_kill(interrupting.thread, interrupting.signal);
            sleep_ms(1);
        }
    finish(&restarting);
    finish(&interrupting);
    CHECK(restarting.interrupted == 0, "%d reads gave EINTR in spite of SA_RESTART", restarting.interrupted);
    CHECK(interrupting.interrupted > 0, "a handler without SA_RESTART never interrupted a read");
    CHECK(interrupting.interrupted <= interrupting.handled, "%d reads were interrupted by %d handlers",
          interrupting.interrupted, interrupting.handled);
    return verdict();
}
