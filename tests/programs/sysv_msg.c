// System V message queues: messages with types, in order, of all sizes; one that waits for a message, one for room.
#include "verify.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/wait.h>

enum { LONGEST = 3000, MANY = 12 };

typedef struct {
    long type;
    unsigned char text[LONGEST];
} Message;

static size_t size_of_number(int number) {
    return number == 0 ? 0 : number * 211 % LONGEST;
}

static void post(int queue, int number) {
    Message message = {.type = number % 3 + 1};
    for (size_t i = 0; i < size_of_number(number); i++)
        message.text[i] = i * 3 + number;
    REQUIRE(msgsnd(queue, &message, size_of_number(number), 0) == 0);
}

static bool is_number(const Message *message, ssize_t size, int number) {
    bool right = size == (ssize_t)size_of_number(number) && message->type == number % 3 + 1;
    for (size_t i = 0; right && i < size_of_number(number); i++)
        right = message->text[i] == (unsigned char)(i * 3 + number);
    return right;
}

int main(void) {
    key_t key = 0x4d000000 + getpid();
    int queue = msgget(key, IPC_CREAT | IPC_EXCL | 0640), full = msgget(IPC_PRIVATE, 0600);
    REQUIRE(queue >= 0 && full >= 0);
    for (int number = 0; number < MANY; number++)
        post(queue, number);
    struct msqid_ds status;
    REQUIRE(msgctl(full, IPC_STAT, &status) == 0);
    status.msg_qbytes = 500;
    REQUIRE(msgctl(full, IPC_SET, &status) == 0);
    post(full, 2);
    pid_t receiver = fork();
    REQUIRE(receiver >= 0);
    if (receiver == 0) {
        Message message;
        ssize_t size = msgrcv(queue, &message, LONGEST, 77, 0);
        _exit(size == 4 && message.type == 77 && memcmp(message.text, "late", 4) == 0 ? 0 : 1);
    }
    pid_t sender = fork();
    REQUIRE(sender >= 0);
    if (sender == 0) {
        post(full, 1);
        _exit(0);
    }
    sleep_ms(50);

    until_go();
    Message message;
    if (loses("message"))
        msgrcv(queue, &message, LONGEST, 0, 0);
    if (loses("order")) {
        ssize_t size = msgrcv(queue, &message, LONGEST, 1, 0);
        msgsnd(queue, &message, size, 0);
    }
    if (loses("room")) {
        REQUIRE(msgctl(full, IPC_STAT, &status) == 0);
        status.msg_qbytes = 16384;
        REQUIRE(msgctl(full, IPC_SET, &status) == 0);
        sleep_ms(50);
    }
    memset(&status, 0, sizeof status);
    CHECK(msgctl(queue, IPC_STAT, &status) == 0 && status.msg_qnum == MANY, "%ju messages", (uintmax_t)status.msg_qnum);
    CHECK((status.msg_perm.mode & 0777) == 0640 && msgget(key, 0) == queue, "its key or owner changed");
    // By type: the second of three comes first.
    for (int number = 1; number < MANY; number += 3) {
        ssize_t size = msgrcv(queue, &message, LONGEST, 2, IPC_NOWAIT);
        CHECK(is_number(&message, size, number), "message %d is not as it was", number);
    }
    for (int number = 0; number < MANY; number++) {
        if (number % 3 == 1)
            continue;
        ssize_t size = msgrcv(queue, &message, LONGEST, 0, IPC_NOWAIT);
        CHECK(is_number(&message, size, number), "message %d is not as it was", number);
    }
    CHECK(msgrcv(queue, &message, LONGEST, 0, IPC_NOWAIT) < 0 && errno == ENOMSG, "there is a message more");
    CHECK(msgctl(full, IPC_STAT, &status) == 0 && status.msg_qbytes == 500 && status.msg_qnum == 1,
          "%ju bytes at most, %ju messages", (uintmax_t)status.msg_qbytes, (uintmax_t)status.msg_qnum);
    CHECK(is_number(&message, msgrcv(full, &message, LONGEST, 0, 0), 2), "a message is not as it was");
    int how = -1;
    CHECK(waitpid(sender, &how, 0) == sender && how == 0, "who waited for room: %x", how);
    CHECK(is_number(&message, msgrcv(full, &message, LONGEST, 0, 0), 1), "a message is not as it was");
    Message late = {.type = 77, .text = "late"};
    CHECK(msgsnd(queue, &late, 4, 0) == 0, "msgsnd");
    CHECK(waitpid(receiver, &how, 0) == receiver && how == 0, "who waited for a message: %x", how);
    msgctl(queue, IPC_RMID, NULL);
    msgctl(full, IPC_RMID, NULL);
    return verdict();
}
