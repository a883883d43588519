// link: -lrt
// Counts in its own memory, in System V shared memory, a semaphore, a message queue and a POSIX one: all say the same.
#include "verify.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

typedef struct {
    long type, count;
} Message;

int main(void) {
    int memory = shmget(IPC_PRIVATE, 4096, 0600), set = semget(IPC_PRIVATE, 1, 0600);
    int queue = msgget(0x43000000 + getpid(), IPC_CREAT | IPC_EXCL | 0600);
    REQUIRE(memory >= 0 && set >= 0 && queue >= 0);
    long *shared = shmat(memory, NULL, 0);
    REQUIRE(shared != (long *)-1);
    char name[64];
    snprintf(name, sizeof name, "/stasis-test-%d", getpid());
    struct mq_attr attributes = {.mq_maxmsg = 2, .mq_msgsize = sizeof(long)};
    mqd_t posix = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    REQUIRE(posix != (mqd_t)-1);
    Message message = {1, 0};
    REQUIRE(msgsnd(queue, &message, sizeof(long), 0) == 0 && mq_send(posix, (char *)&message.count, sizeof(long), 1) == 0);

    long own = 0, end = 0;
    while (end == 0 || own < end) {
        if (end == 0 && own >= 20 && told_to_go())
            end = own + 20;
        long got = -1;
        if (end && loses("memory"))
            *shared += 1;
        if (end && loses("semaphore"))
            semctl(set, 0, SETVAL, own - 1);
        CHECK(*shared == own, "the segment has come to %ld, this process to %ld", *shared, own);
        CHECK(semctl(set, 0, GETVAL) == own, "the semaphore has come to %d, this process to %ld",
              semctl(set, 0, GETVAL), own);
        CHECK(msgrcv(queue, &message, sizeof(long), 0, IPC_NOWAIT) == sizeof(long) && message.count == own,
              "the message tells %ld, this process has come to %ld", message.count, own);
        CHECK(mq_receive(posix, (char *)&got, sizeof got, NULL) == sizeof got && got == own,
              "the POSIX queue tells %ld, this process has come to %ld", got, own);
        own++;
        (*shared)++;
        message.count = own + (end && loses("message") ? 1 : 0);
        got = own + (end && loses("posix") ? 1 : 0);
        struct sembuf up = {0, 1, 0};
        CHECK(semop(set, &up, 1) == 0 && msgsnd(queue, &message, sizeof(long), IPC_NOWAIT) == 0, "it cannot count on");
        CHECK(mq_send(posix, (char *)&got, sizeof got, 1) == 0, "it cannot count on");
        if (failures)
            break;
        if (own == 20)
            say_ready();
        sleep_ms(1);
    }
    shmctl(memory, IPC_RMID, NULL);
    semctl(set, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    mq_unlink(name);
    return verdict();
}
