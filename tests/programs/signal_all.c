// The program has its own handler for every signal that can have one, and sends itself each of them.
#include "verify.h"

static atomic_int handled[65];
static atomic_int with_value[65];

static void count(int signal, siginfo_t *info, void *context) {
    (void)context;
    atomic_fetch_add(&handled[signal], 1);
    if (info->si_code == SI_QUEUE && info->si_value.sival_int == 100 + signal)
        atomic_fetch_add(&with_value[signal], 1);
}

// SIGKILL and SIGSTOP can have no handler; glibc keeps the first two real-time signals (nptl(7)).
static bool usable(int signal) {
    return signal != SIGKILL && signal != SIGSTOP && (signal < 32 || (signal >= SIGRTMIN && signal <= SIGRTMAX));
}

static int flags_of(int signal) {
    static const int variants[] = {0, SA_RESTART, SA_NODEFER, SA_RESTART | SA_NOCLDSTOP};
    return SA_SIGINFO | variants[signal % 4];
}

int main(void) {
    for (int signal = 1; signal <= SIGRTMAX; signal++) {
        if (!usable(signal))
            continue;
        struct sigaction action = {.sa_sigaction = count, .sa_flags = flags_of(signal)};
        sigaddset(&action.sa_mask, signal % 31 + 1);
        REQUIRE(sigaction(signal, &action, NULL) == 0);
    }
    until_go();
    if (loses("handler"))
        signal(SIGRTMAX - 1, SIG_IGN);
    if (loses("mask")) {
        struct sigaction action = {.sa_sigaction = count, .sa_flags = flags_of(SIGUSR1)};
        sigaction(SIGUSR1, &action, NULL);
    }
    for (int signal = 1; signal <= SIGRTMAX; signal++) {
        if (!usable(signal))
            continue;
        struct sigaction action;
        REQUIRE(sigaction(signal, NULL, &action) == 0);
        // glibc adds SA_RESTORER, and tells of it.
        CHECK(action.sa_sigaction == count && (action.sa_flags & ~0x04000000) == flags_of(signal), "the action of signal %d changed",
              signal);
        for (int masked = 1; masked < 32; masked++)
            CHECK(sigismember(&action.sa_mask, masked) == (masked == signal % 31 + 1) || !usable(masked),
                  "the action of signal %d masks, or no longer masks, %d", signal, masked);
        union sigval value = {.sival_int = 100 + signal};
        CHECK(raise(signal) == 0, "raise of signal %d", signal);
        CHECK(sigqueue(getpid(), signal, value) == 0, "sigqueue of signal %d", signal);
        CHECK(handled[signal] == 2 && with_value[signal] == 1, "signal %d was handled %d times, %d with its value",
              signal, handled[signal], with_value[signal]);
    }
    return verdict();
}
