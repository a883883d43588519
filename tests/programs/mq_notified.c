// A POSIX message queue that a signal tells of messages, which cannot be kept; and is not lost by a refusal.
#include "verify.h"
#include <mqueue.h>

static atomic_int told;

static void on_signal(int signal) {
    atomic_fetch_add(&told, signal == SIGUSR1);
}

int main(void) {
    char name[64];
    snprintf(name, sizeof name, "/stasis-test-%d-notified", getpid());
    struct mq_attr attributes = {.mq_maxmsg = 2, .mq_msgsize = 8};
    mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    REQUIRE(queue != (mqd_t)-1 && mq_unlink(name) == 0);
    REQUIRE(signal(SIGUSR1, on_signal) != SIG_ERR && mq_notify(queue, &event) == 0);
    until_go();
    if (loses("notification"))
        mq_notify(queue, NULL);
    CHECK(atomic_load(&told) == 0, "it was told of a message that nobody has sent");
    CHECK(mq_send(queue, "message", 8, 1) == 0, "mq_send");
    for (int i = 0; i < 2000 && atomic_load(&told) == 0; i++)
        sleep_ms(1);
    CHECK(atomic_load(&told) == 1, "it was told %d times", told);
    return verdict();
}
