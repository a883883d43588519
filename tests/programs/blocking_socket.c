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

static struct iovec parts[2] = {{bytes, 10}, {bytes + 10, 10}};
static struct mmsghdr messages[2] = {{.msg_hdr = {.msg_iov = &parts[0], .msg_iovlen = 1}},
                                     {.msg_hdr = {.msg_iov = &parts[1], .msg_iovlen = 1}}};

static void make_datagrams(void) {
    REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
}

// recvmmsg(2): the timeout is looked at after each datagram only, so it cannot be what ends the call.
static void recvmmsg_by(long (*receive)(struct timespec *), struct timespec time) {
    make_datagrams();
    EXPECT(receive(&time), 1);
    CHECK(messages[0].msg_len == 3, "recvmmsg gave %u bytes", messages[0].msg_len);
    CHECK(time.tv_sec == 0 && time.tv_nsec == 0, "recvmmsg left %ld.%09ld s", (long)time.tv_sec, time.tv_nsec);
}

static long by_libc(struct timespec *time) { return recvmmsg(ends[0], messages, 2, 0, time); }
static long by_number(struct timespec *time) { return syscall(SYS_recvmmsg, ends[0], messages, 2, 0, time); }

// As a language without libc makes it.
static long without_libc(struct timespec *time) {
    register long r10 __asm__("r10") = 0, r8 __asm__("r8") = (long)time;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"((long)SYS_recvmmsg), "D"((long)ends[0]), "S"(messages), "d"(2L),
                     "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return result;
}

static void call_recvmmsg(void) { recvmmsg_by(by_libc, (struct timespec){1, 0}); }
static void call_recvmmsg_by_number(void) { recvmmsg_by(by_number, (struct timespec){1, 0}); }

// Its time counts from the first checkpoint that meets it.
static void call_recvmmsg_without_libc(void) { recvmmsg_by(without_libc, (struct timespec){0, 500000000}); }

// The first message is there, the second comes late: the signal between them is told neither now nor later.
static void call_recvmmsg_in_parts(void) {
    int error = 0;
    socklen_t size = sizeof error;
    make_datagrams();
    REQUIRE(send(ends[1], "first", 5, 0) == 5);
    EXPECT(recvmmsg(ends[0], messages, 2, 0, NULL), 2);
    CHECK(messages[0].msg_len == 5 && memcmp(bytes, "first", 5) == 0, "the first message is another");
    CHECK(messages[1].msg_len == 3 && memcmp(bytes + 10, "abc", 3) == 0, "the second message is another");
    REQUIRE(getsockopt(ends[0], SOL_SOCKET, SO_ERROR, &error, &size) == 0);
    CHECK(error == 0, "the next call is told error %d", error);
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

// In pieces of many sizes, the first of which is read in part.
static void call_send_uneven(void) {
    for (unsigned i = 0; send(ends[0], bytes, i * 2711 % 5003 + 1, MSG_DONTWAIT) > 0; i++)
        ;
    REQUIRE(errno == EAGAIN && recv(ends[1], bytes, 2000, 0) == 2000);
    fill();
    EXPECT(send(ends[0], "abc", 3, 0), 3);
}

static void call_send_datagram(void) {
    make_datagrams();
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
    {"recvmmsg-by-number", 1500, call_recvmmsg_by_number, send_abc, false},
    {"recvmmsg-without-libc", 1500, call_recvmmsg_without_libc, send_abc, false},
    {"recvmmsg-in-parts", 1500, call_recvmmsg_in_parts, send_abc, false},
    {"send", 1500, call_send, empty, false},
    {"send-uneven", 1500, call_send_uneven, empty, false},
    {"send-datagram", 1500, call_send_datagram, empty, false},
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
