// Socket calls that block, each named by argv[1]: on time, all of the bytes, never interrupted.
#include "blocking.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

static int ends[2];
static int listener;
static struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
static char bytes[1 << 20];
static struct timeval one_and_a_half = {1, 500000};

static void send_abc(void) {
    REQUIRE(send(ends[1], "abc", 3, 0) == 3);
}

static void set_timeout(int option) {
    REQUIRE(setsockopt(ends[0], SOL_SOCKET, option, &one_and_a_half, sizeof one_and_a_half) == 0);
}

static void call_recv(void) {
    EXPECT(recv(ends[0], bytes, 10, 0), 3);
    CHECK(memcmp(bytes, "abc", 3) == 0, "recv gave other bytes");
}

static void call_read(void) { EXPECT(read(ends[0], bytes, 10), 3); }
static void call_recvfrom(void) { EXPECT(recvfrom(ends[0], bytes, 10, 0, NULL, NULL), 3); }

static void call_recvmsg(void) {
    struct iovec part = {bytes, 10};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    EXPECT(recvmsg(ends[0], &message, 0), 3);
}

static void call_recv_timeout(void) {
    set_timeout(SO_RCVTIMEO);
    EXPECT_ERROR(recv(ends[0], bytes, 10, 0), EAGAIN);
}

static void call_read_timeout(void) {
    set_timeout(SO_RCVTIMEO);
    EXPECT_ERROR(read(ends[0], bytes, 10), EAGAIN);
}

static void call_recvmsg_timeout(void) {
    struct iovec part = {bytes, 10};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    set_timeout(SO_RCVTIMEO);
    EXPECT_ERROR(recvmsg(ends[0], &message, 0), EAGAIN);
}

// Half of what is asked comes at once; the rest never. MSG_WAITALL tells how much came.
static void call_recv_all_timeout(void) {
    set_timeout(SO_RCVTIMEO);
    send_abc();
    EXPECT(recv(ends[0], bytes, 6, MSG_WAITALL), 3);
}

// recvmmsg(2): the timeout is looked at after each datagram only, so it cannot be what ends the call.
static void call_recvmmsg(void) {
    struct iovec parts[2] = {{bytes, 10}, {bytes + 10, 10}};
    struct mmsghdr messages[2] = {{.msg_hdr = {.msg_iov = &parts[0], .msg_iovlen = 1}},
                                  {.msg_hdr = {.msg_iov = &parts[1], .msg_iovlen = 1}}};
    struct timespec time = {1, 0};
    REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
    EXPECT(recvmmsg(ends[0], messages, 2, 0, &time), 1);
    CHECK(messages[0].msg_len == 3, "recvmmsg gave %u bytes", messages[0].msg_len);
}

static void fill(void) {
    while (send(ends[0], bytes, 4096, MSG_DONTWAIT) > 0)
        ;
    REQUIRE(errno == EAGAIN);
}

static void empty(void) {
    while (recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
}

static void call_send(void) {
    fill();
    EXPECT(send(ends[0], "abc", 3, 0), 3);
}

static void call_send_timeout(void) {
    set_timeout(SO_SNDTIMEO);
    fill();
    EXPECT_ERROR(send(ends[0], "abc", 3, 0), EAGAIN);
}

static void call_sendmsg_timeout(void) {
    struct iovec part = {"abc", 3};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    set_timeout(SO_SNDTIMEO);
    fill();
    EXPECT_ERROR(sendmsg(ends[0], &message, 0), EAGAIN);
}

static void bind_listener(int backlog) {
    unlink(address.sun_path);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    REQUIRE(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, backlog) == 0);
}

static void connect_once(void) {
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    REQUIRE(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
}

static void call_accept(void) {
    bind_listener(5);
    errno = 0;
    CHECK(accept(listener, NULL, NULL) >= 0, "accept failed");
}

static void call_accept4(void) {
    bind_listener(5);
    errno = 0;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC, "accept4 failed");
}

static void call_accept_timeout(void) {
    bind_listener(5);
    REQUIRE(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &one_and_a_half, sizeof one_and_a_half) == 0);
    EXPECT_ERROR(accept(listener, NULL, NULL), EAGAIN);
}

// A unix listener's full backlog makes the next connect wait until somebody accepts.
static void call_connect(void) {
    bind_listener(0);
    connect_once();
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    EXPECT(connect(client, (struct sockaddr *)&address, sizeof address), 0);
}

static void accept_one(void) {
    REQUIRE(accept(listener, NULL, NULL) >= 0);
}

static const struct call calls[] = {
    {"recv", 1500, call_recv, send_abc, false},
    {"read-socket", 1500, call_read, send_abc, false},
    {"recvfrom", 1500, call_recvfrom, send_abc, false},
    {"recvmsg", 1500, call_recvmsg, send_abc, false},
    {"recv-timeout", 1500, call_recv_timeout, NULL, false},
    {"read-socket-timeout", 1500, call_read_timeout, NULL, false},
    {"recvmsg-timeout", 1500, call_recvmsg_timeout, NULL, false},
    {"recv-waitall-timeout", 1500, call_recv_all_timeout, NULL, false},
    {"recvmmsg", 1500, call_recvmmsg, send_abc, false},
    {"send", 1500, call_send, empty, false},
    {"send-timeout", 1500, call_send_timeout, NULL, false},
    {"sendmsg-timeout", 1500, call_sendmsg_timeout, NULL, false},
    {"accept", 1500, call_accept, connect_once, false},
    {"accept4", 1500, call_accept4, connect_once, false},
    {"accept-timeout", 1500, call_accept_timeout, NULL, false},
    {"connect", 1500, call_connect, accept_one, false},
    {NULL, 0, NULL, NULL, false},
};

int main(int argc, char **argv) {
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    return run_call(calls, argc, argv);
}
