// An alarm that goes off afterwards: after the time it had left, and once.
#include "timers.h"

static atomic_int alarms;
static int64_t went_off_ns;

static void on_alarm(int signal) {
    (void)signal;
    went_off_ns = now_ns(CLOCK_MONOTONIC);
    atomic_fetch_add(&alarms, 1);
}

int main(void) {
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    int64_t set_at = now_ns(CLOCK_MONOTONIC);
    alarm(3);
    watch_until_go();
    if (loses("alarm"))
        alarm(0);
    if (loses("time-left"))
        alarm(1);
    for (int i = 0; i < 5000 && !atomic_load(&alarms); i++)
        sleep_ms(1);
    CHECK(alarms == 1, "the alarm went off %d times", alarms);
    double after = (went_off_ns - set_at) / 1e9;
    // Slower machines only make it later.
    CHECK(after >= 2.99, "an alarm of 3 s went off after %.3f", after);
    CHECK(after <= 3.1 + stood_still_ns / 1e9 || gap_end_ns == 0, "an alarm of 3 s went off after %.3f, %.3f standing still",
          after, stood_still_ns / 1e9);
    sleep_ms(50);
    CHECK(alarms == 1, "the alarm went off %d times", alarms);
    return verdict();
}
