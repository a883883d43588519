// SysV semaphores and messages, POSIX message queues, each named by argv[1]: on time, never interrupted.
// link: -lrt
#include "blocking.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

struct message {
    long type;
    char text[1024];
};

static int semaphores;
static int messages;
static mqd_t queue;
static struct message message = {.type = 3};
static struct timespec one_and_a_half = {1, 500000000};

static void remove_all(void) {
    semctl(semaphores, 0, IPC_RMID);
    msgctl(messages, IPC_RMID, NULL);
}

static void call_semop(void) {
    struct sembuf take = {.sem_op = -1};
    EXPECT(semop(semaphores, &take, 1), 0);
}

static void give_semaphore(void) {
    struct sembuf give = {.sem_op = 1};
    REQUIRE(semop(semaphores, &give, 1) == 0);
}

static void call_semtimedop_timeout(void) {
    struct sembuf take = {.sem_op = -1};
    EXPECT_ERROR(semtimedop(semaphores, &take, 1, &one_and_a_half), EAGAIN);
}

static void call_semtimedop(void) {
    struct sembuf take = {.sem_op = -1};
    struct timespec time = {4, 0};
    EXPECT(semtimedop(semaphores, &take, 1, &time), 0);
}

static void call_msgrcv(void) {
    struct message got = {0};
    EXPECT(msgrcv(messages, &got, sizeof got.text, 3, 0), 5);
    CHECK(got.type == 3 && memcmp(got.text, "hello", 5) == 0, "msgrcv gave another message");
}

static void send_message(void) {
    memcpy(message.text, "hello", 5);
    REQUIRE(msgsnd(messages, &message, 5, 0) == 0);
}

static int fill_messages(void) {
    int sent = 0;
    while (msgsnd(messages, &message, sizeof message.text, IPC_NOWAIT) == 0)
        sent++;
    REQUIRE(errno == EAGAIN && sent > 0);
    return sent;
}

static void call_msgsnd(void) {
    fill_messages();
    EXPECT(msgsnd(messages, &message, sizeof message.text, 0), 0);
}

static void take_message(void) {
    struct message got;
    REQUIRE(msgrcv(messages, &got, sizeof got.text, 3, 0) == 1024);
}

static void call_mq_receive(void) {
    char text[64];
    unsigned priority = 0;
    EXPECT(mq_receive(queue, text, sizeof text, &priority), 5);
    CHECK(priority == 9 && memcmp(text, "hello", 5) == 0, "mq_receive gave another message");
}

static void send_to_queue(void) {
    REQUIRE(mq_send(queue, "hello", 5, 9) == 0);
}

static void call_mq_timedreceive(void) {
    char text[64];
    struct timespec time = in_ms(CLOCK_REALTIME, 1500);
    EXPECT_ERROR(mq_timedreceive(queue, text, sizeof text, NULL, &time), ETIMEDOUT);
}

static void call_mq_timedsend(void) {
    struct timespec time = in_ms(CLOCK_REALTIME, 1500);
    send_to_queue();
    EXPECT_ERROR(mq_timedsend(queue, "more", 4, 1, &time), ETIMEDOUT);
}

static const struct call calls[] = {
    {"semop", 1500, call_semop, give_semaphore, false},
    {"semtimedop-timeout", 1500, call_semtimedop_timeout, NULL, false},
    {"semtimedop", 1500, call_semtimedop, give_semaphore, false},
    {"msgrcv", 1500, call_msgrcv, send_message, false},
    {"msgsnd", 1500, call_msgsnd, take_message, false},
    {"mq_receive", 1500, call_mq_receive, send_to_queue, false},
    {"mq_timedreceive", 1500, call_mq_timedreceive, NULL, true},
    {"mq_timedsend", 1500, call_mq_timedsend, NULL, true},
    {NULL, 0, NULL, NULL, false},
};

int main(int argc, char **argv) {
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    messages = msgget(IPC_PRIVATE, 0600);
    REQUIRE(semaphores >= 0 && messages >= 0);
    atexit(remove_all);

    char name[64];
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 64};
    snprintf(name, sizeof name, "/stasis-test-%d", getpid());
    queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    REQUIRE(queue != (mqd_t)-1 && mq_unlink(name) == 0);
    return run_call(calls, argc, argv);
}
