// POSIX message queues: priorities and order, one without a name, a process that waits for a message and one for room.
#include "verify.h"
#include <mqueue.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { MOST = 8, SIZE = 100 };

static mqd_t make(const char *name, int most) {
    struct mq_attr attributes = {.mq_maxmsg = most, .mq_msgsize = SIZE};
    mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0640, &attributes);
    REQUIRE(queue != (mqd_t)-1);
    return queue;
}

static void post(mqd_t queue, int number, unsigned priority) {
    char text[SIZE];
    memset(text, number, number);
    REQUIRE(mq_send(queue, text, number, priority) == 0);
}

static bool get(mqd_t queue, int number, unsigned priority) {
    char text[SIZE], expected[SIZE];
    unsigned found = 99;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 30;
    memset(expected, number, number);
    return mq_timedreceive(queue, text, SIZE, &found, &until) == number && found == priority && !memcmp(text, expected, number);
}

int main(void) {
    char name[64], other[64];
    snprintf(name, sizeof name, "/stasis-test-%d-named", getpid());
    snprintf(other, sizeof other, "/stasis-test-%d-nameless", getpid());
    mqd_t queue = make(name, MOST), nameless = make(other, 1);
    REQUIRE(mq_unlink(other) == 0);
    mqd_t reader = mq_open(name, O_RDONLY | O_NONBLOCK);
    REQUIRE(reader != (mqd_t)-1);
    static const unsigned priorities[6] = {3, 7, 3, 0, 7, 3};
    for (int number = 0; number < 6; number++)
        post(queue, number + 10, priorities[number]);
    post(nameless, 50, 1);
    pid_t sender = fork();
    REQUIRE(sender >= 0);
    if (sender == 0) {
        post(nameless, 51, 2);
        _exit(0);
    }
    mqd_t empty = make(other, MOST);
    REQUIRE(mq_unlink(other) == 0);
    pid_t receiver = fork();
    REQUIRE(receiver >= 0);
    if (receiver == 0)
        _exit(get(empty, 60, 5) ? 0 : 1);
    sleep_ms(50);

    until_go();
    static const int order[6] = {1, 4, 0, 2, 5, 3};
    struct mq_attr attributes;
    struct stat status;
    char text[SIZE];
    if (loses("message"))
        REQUIRE(mq_receive(queue, text, SIZE, NULL) > 0);
    if (loses("order")) {
        REQUIRE(mq_receive(queue, text, SIZE, NULL) == 11);
        post(queue, 11, 7);
    }
    if (loses("name"))
        mq_unlink(name);
    if (loses("flags")) {
        attributes.mq_flags = 0;
        mq_setattr(reader, &attributes, NULL);
    }
    CHECK(mq_getattr(queue, &attributes) == 0 && attributes.mq_maxmsg == MOST && attributes.mq_msgsize == SIZE &&
              attributes.mq_curmsgs == 6 && attributes.mq_flags == 0, "%ld messages of at most %ld, flags %lx",
          attributes.mq_curmsgs, attributes.mq_maxmsg, attributes.mq_flags);
    CHECK(mq_getattr(reader, &attributes) == 0 && attributes.mq_flags == O_NONBLOCK, "a description's flags changed");
    CHECK(fstat(queue, &status) == 0 && (status.st_mode & 07777) == 0640 && status.st_uid == geteuid(), "its owner changed");
    mqd_t again = mq_open(name, O_RDWR);
    CHECK(again != (mqd_t)-1, "the name is gone");
    if (failures) {
        kill(sender, SIGKILL);
        kill(receiver, SIGKILL);
        mq_unlink(name);
        return verdict();
    }
    for (int turn = 0; turn < 6 && !failures; turn++)
        CHECK(get(turn % 2 ? queue : again, order[turn] + 10, priorities[order[turn]]), "message %d is not as it was", turn);
    CHECK(mq_receive(reader, text, SIZE, NULL) < 0 && errno == EAGAIN, "there is a message more");
    CHECK(mq_send(reader, text, 1, 1) < 0 && errno == EBADF, "a queue that was open for reading is open for writing");
    CHECK(get(nameless, 50, 1), "a message in a queue without a name is lost");
    int how = -1;
    CHECK(waitpid(sender, &how, 0) == sender && how == 0, "who waited for room: %x", how);
    CHECK(get(nameless, 51, 2), "what was sent when there was room is lost");
    post(empty, 60, 5);
    CHECK(waitpid(receiver, &how, 0) == receiver && how == 0, "who waited for a message: %x", how);
    mq_unlink(name);
    return verdict();
}
