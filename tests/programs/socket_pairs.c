// Socket pairs inside the process: stream bytes, datagram and SEQPACKET borders, half-closed, closed and reset ends, options.
#include "verify.h"
#include <sys/socket.h>

static char got[300000];

static void pair(int type, int ends[2]) {
    REQUIRE(socketpair(AF_UNIX, type, 0, ends) == 0);
}

// Of which process the next message is, as the kernel says; 0: it does not.
static pid_t sender_of_next(int socket) {
    char text[8], control[CMSG_SPACE(sizeof(struct ucred))];
    struct iovec part = {text, sizeof text};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(socket, &message, MSG_DONTWAIT) <= 0)
        return -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    return header && header->cmsg_type == SCM_CREDENTIALS ? ((struct ucred *)CMSG_DATA(header))->pid : 0;
}

int main(void) {
    static char block[60000];
    int stream[2], datagrams[2], packets[2], half[2], gone[2];
    pair(SOCK_STREAM, stream), pair(SOCK_DGRAM, datagrams), pair(SOCK_SEQPACKET | SOCK_NONBLOCK, packets);
    pair(SOCK_STREAM | SOCK_CLOEXEC, half), pair(SOCK_STREAM, gone);
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = i * 13 >> 2;
    REQUIRE(send(stream[0], block, 60000, 0) == 60000 && send(stream[1], "back", 4, 0) == 4);
    for (int i = 1; i <= 4; i++) {
        REQUIRE(send(datagrams[0], block, i * 100, 0) == i * 100);
        REQUIRE(send(packets[0], block + i, i * 1000, 0) == i * 1000);
    }
    REQUIRE(send(datagrams[0], "", 0, 0) == 0);
    REQUIRE(send(half[0], "end", 3, 0) == 3 && shutdown(half[0], SHUT_WR) == 0);
    REQUIRE(send(gone[0], "gone", 4, 0) == 4 && close(gone[0]) == 0);
    int ended[2], reset[2];
    pair(SOCK_SEQPACKET, ended), pair(SOCK_STREAM, reset);
    REQUIRE(send(ended[0], "one", 3, 0) == 3 && send(ended[0], "", 0, 0) == 0 && send(ended[0], "two", 3, 0) == 3);
    REQUIRE(close(ended[0]) == 0);
    REQUIRE(send(reset[1], "unread", 6, 0) == 6 && send(reset[0], "gone", 4, 0) == 4 && close(reset[0]) == 0);
    struct timeval timeout = {5, 250000};
    int size = 50000, on = 1;
    REQUIRE(setsockopt(stream[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) == 0);
    REQUIRE(setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    REQUIRE(setsockopt(stream[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    int known[2];
    pair(SOCK_DGRAM, known);
    REQUIRE(setsockopt(known[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    REQUIRE(send(known[0], "mine", 4, 0) == 4);

    until_go();
    struct timeval timeout_now = {0, 0};
    socklen_t length = sizeof timeout_now;
    if (loses("bytes"))
        CHECK(recv(stream[1], got, 1, 0) == 1, "recv");
    if (loses("borders"))
        CHECK(recv(packets[1], got, 10, 0) == 10, "recv");
    if (loses("shutdown")) {
        int other[2];
        pair(SOCK_STREAM | SOCK_CLOEXEC, other);
        CHECK(send(other[0], "end", 3, 0) == 3 && dup3(other[1], half[1], O_CLOEXEC) == half[1], "dup3");
    }
    if (loses("timeout"))
        setsockopt(stream[0], SOL_SOCKET, SO_RCVTIMEO, &timeout_now, sizeof timeout_now);
    CHECK(getsockopt(stream[0], SOL_SOCKET, SO_RCVTIMEO, &timeout_now, &length) == 0 && timeout_now.tv_sec == 5 &&
              timeout_now.tv_usec > 240000, "SO_RCVTIMEO is lost");
    length = sizeof size;
    CHECK(getsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &size, &length) == 0 && size == 100000, "SO_SNDBUF is %d", size);
    on = 0;
    CHECK(getsockopt(stream[1], SOL_SOCKET, SO_PASSCRED, &on, &length) == 0 && on == 1, "SO_PASSCRED is lost");
    size_t have = 0;
    ssize_t step;
    while (have < sizeof got && (step = recv(stream[1], got + have, sizeof got - have, MSG_DONTWAIT)) > 0)
        have += step;
    CHECK(have == 60000 && !memcmp(got, block, 60000), "%zu of 60000 bytes are in flight, or they changed", have);
    CHECK(recv(stream[0], got, 10, MSG_DONTWAIT) == 4 && !memcmp(got, "back", 4), "the bytes on their way back");
    for (int i = 1; i <= 4; i++) {
        CHECK(recv(datagrams[1], got, 5000, MSG_DONTWAIT) == i * 100 && !memcmp(got, block, i * 100), "datagram %d", i);
        CHECK(recv(packets[1], got, 5000, MSG_DONTWAIT) == i * 1000 && !memcmp(got, block + i, i * 1000), "packet %d", i);
    }
    CHECK(recv(datagrams[1], got, 5000, MSG_DONTWAIT) == 0, "the empty datagram is lost");
    CHECK(recv(datagrams[1], got, 10, MSG_DONTWAIT) == -1 && recv(packets[1], got, 10, 0) == -1 && errno == EAGAIN,
          "there is more than was sent");
    CHECK(fcntl(packets[0], F_GETFL) & O_NONBLOCK && fcntl(half[1], F_GETFD) == FD_CLOEXEC, "flags changed");
    CHECK(recv(half[1], got, 10, MSG_DONTWAIT) == 3 && recv(half[1], got, 10, MSG_DONTWAIT) == 0, "a half-closed pair");
    CHECK(send(half[1], "x", 1, 0) == 1 && recv(half[0], got, 10, MSG_DONTWAIT) == 1, "the open half of a half-closed pair");
    CHECK(recv(gone[1], got, 10, MSG_DONTWAIT) == 4 && recv(gone[1], got, 10, MSG_DONTWAIT) == 0, "a pair of one end");
    CHECK(send(gone[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "the lost end answers");
    if (loses("packets"))
        CHECK(recv(ended[1], got, 10, 0) == 3, "recv");
    CHECK(recv(ended[1], got, 10, 0) == 3 && recv(ended[1], got, 10, 0) == 0 && recv(ended[1], got, 10, 0) == 3 &&
              !memcmp(got, "two", 3), "a packet behind one without content");
    CHECK(recv(ended[1], got, 10, 0) == 0, "the end behind packets");
    CHECK(recv(reset[1], got, 10, 0) == 4 && !memcmp(got, "gone", 4), "what came before a reset");
    if (loses("reset"))
        CHECK(recv(reset[1], got, 10, 0) == -1, "recv");
    CHECK(recv(reset[1], got, 10, 0) == -1 && errno == ECONNRESET, "the other end has left something unread, and that is lost");
    CHECK(recv(reset[1], got, 10, 0) == 0, "the end behind a reset");
    pid_t sender = loses("sender") ? 0 : sender_of_next(known[1]);
    CHECK(sender == getpid(), "a message is of pid %d, not %d", sender, getpid());
    return verdict();
}
