// Pairs of sockets that are made, used and closed all the time: between threads, with descriptors sent through them, and
// between a process and children that end when they have answered.
#include "verify.h"
#include <sys/socket.h>
#include <sys/wait.h>

enum { LEAST = 30 };

static atomic_int stop;
static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};

struct note {
    long number;
    char text[100];
};

static struct note note(long number) {
    struct note note = {.number = number};
    memset(note.text, (int)('a' + number % 26), sizeof note.text);
    return note;
}

static void expect(int fd, long number, const char *where) {
    struct note got, expected = note(number);
    ssize_t size = recv(fd, &got, sizeof got, MSG_WAITALL);
    if (loses("note") && number % 20 == 19)
        got.text[50]++;
    CHECK(size == sizeof got && memcmp(&got, &expected, sizeof got) == 0, "%s: note %ld came with %zd bytes, as %ld", where,
          number, size, got.number);
}

static void give(int fd, long number) {
    struct note given = note(number);
    REQUIRE(send(fd, &given, sizeof given, MSG_NOSIGNAL) == sizeof given);
}

static void send_end(int fd, int end) {
    char control[CMSG_SPACE(sizeof end)] = {0}, byte = 'x';
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof end)};
    memcpy(CMSG_DATA(header), &end, sizeof end);
    REQUIRE(sendmsg(fd, &message, MSG_NOSIGNAL) == 1);
}

static int receive_end(int fd) {
    int end;
    char control[CMSG_SPACE(sizeof end)] = {0}, byte;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    REQUIRE(recvmsg(fd, &message, 0) == 1 && CMSG_FIRSTHDR(&message));
    memcpy(&end, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof end);
    return end;
}

static void *within(void *unused) {
    for (long number = 0; !atomic_load(&stop) && !atomic_load(&failures); number++) {
        int pair[2], sent[2];
        REQUIRE(socketpair(AF_UNIX, kinds[number % 3] | SOCK_CLOEXEC, 0, pair) == 0);
        give(pair[0], number);
        give(pair[0], number + 1);
        expect(pair[1], number, "within");
        expect(pair[1], number + 1, "within");
        if (number % 4 == 0) {
            REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sent) == 0);
            give(sent[0], number);
            send_end(pair[0], sent[1]);
            close(sent[1]);
            sent[1] = receive_end(pair[1]);
            expect(sent[1], number, "sent");
            close(sent[0]);
            close(sent[1]);
        }
        close(pair[0]);
        close(pair[1]);
    }
    return unused;
}

static void between(long number) {
    int pair[2], status;
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        close(pair[0]);
        expect(pair[1], number, "child");
        give(pair[1], number + 1);
        _exit(atomic_load(&failures) != 0);
    }
    close(pair[1]);
    give(pair[0], number);
    expect(pair[0], number + 1, "parent");
    close(pair[0]);
    CHECK(waitpid(child, &status, 0) == child && status == 0, "child %ld: wait status %#x", number, status);
}

int main(void) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        threads[i] = start_thread(within, NULL);
    say_ready();
    for (long number = 0; (number < LEAST || !told_to_go()) && !atomic_load(&failures); number++)
        between(number);
    atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return verdict();
}
