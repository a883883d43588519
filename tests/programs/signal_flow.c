// A stream of queued signals under a 1 kHz timer: each value once and in order, the timer never silent.
#include "verify.h"
#include <sys/time.h>

static atomic_int next_value;
static atomic_int disorder;
static atomic_long ticks;
static atomic_int sent;
static atomic_int stop;

static void take_value(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    if (info->si_value.sival_int != atomic_load(&next_value) || info->si_code != SI_QUEUE)
        atomic_fetch_add(&disorder, 1);
    atomic_store(&next_value, info->si_value.sival_int + 1);
}

static void tick(int signal) {
    (void)signal;
    atomic_fetch_add(&ticks, 1);
}

static void *send_values(void *receiver) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (int value = 0; !atomic_load(&stop); value++) {
        union sigval carried = {.sival_int = value};
        if (loses("value") && value == 500)
            continue;
        while (pthread_sigqueue(*(pthread_t *)receiver, SIGRTMIN + 3, carried) == EAGAIN)
            sleep_ms(1);
        atomic_store(&sent, value + 1);
        if (value % 8 == 7)
            sleep_ms(1);
    }
    return NULL;
}

int main(void) {
    struct sigaction on_value = {.sa_sigaction = take_value, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct sigaction on_tick = {.sa_handler = tick, .sa_flags = SA_RESTART};
    struct itimerval millisecond = {{0, 1000}, {0, 1000}}, off = {0};
    pthread_t self = pthread_self();
    sigaction(SIGRTMIN + 3, &on_value, NULL);
    sigaction(SIGALRM, &on_tick, NULL);
    setitimer(ITIMER_REAL, &millisecond, NULL);
    pthread_t sender = start_thread(send_values, &self);

    until_go();
    if (loses("timer"))
        setitimer(ITIMER_REAL, &off, NULL);
    long ticks_at_go = atomic_load(&ticks);
    int sent_at_go = atomic_load(&sent);
    sleep_ms(500);
    CHECK(atomic_load(&ticks) - ticks_at_go > 100, "the timer ticked only %ld times in 500 ms after",
          atomic_load(&ticks) - ticks_at_go);
    CHECK(atomic_load(&sent) > sent_at_go, "the sender stands still");
    atomic_store(&stop, 1);
    pthread_join(sender, NULL);
    setitimer(ITIMER_REAL, &off, NULL);
    CHECK(disorder == 0, "%d signals were lost, doubled or out of order", disorder);
    CHECK(next_value == sent, "%d signals were sent, the last that came is %d", sent, next_value - 1);
    return verdict();
}
