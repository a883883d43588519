// Calls that have done a part of their work and wait for the rest: none gives less than it would have without a signal.
#include "verify.h"
#include <linux/aio_abi.h>
#include <pty.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <termios.h>

enum { BIG = 1 << 20, PARTS = 100, LEAST = 10 };

struct call {
    const char *name;
    // What it makes, in ends[0] and ends[1]; the call, on ends[0]; what it gives.
    void (*make)(int ends[2]);
    long (*perform)(int fd, char *bytes);
    long expected;
    // What is done for it to end, on ends[1].
    void (*end)(int fd);
    bool receives;

    int ends[2];
    char bytes[200];
    pthread_t thread;
    atomic_long result;
};

static char big[BIG];
static aio_context_t aio;

static void make_stream(int ends[2]) { REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0); }
static void make_datagrams(int ends[2]) { REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0); }

static void make_least(int ends[2]) {
    int least = LEAST;
    make_stream(ends);
    REQUIRE(setsockopt(ends[0], SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least) == 0);
}

static void make_pipe(int ends[2]) {
    int made[2];
    REQUIRE(pipe(made) == 0);
    ends[0] = made[1], ends[1] = made[0];
}

static void make_terminal(int ends[2]) {
    struct termios modes;
    REQUIRE(openpty(&ends[1], &ends[0], NULL, NULL, NULL) == 0 && tcgetattr(ends[0], &modes) == 0);
    cfmakeraw(&modes);
    modes.c_cc[VMIN] = LEAST;
    REQUIRE(tcsetattr(ends[0], TCSANOW, &modes) == 0);
}

static void submit(int fd) {
    static char read_into[64];
    struct iocb request = {.aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uintptr_t)read_into,
                           .aio_nbytes = sizeof read_into};
    struct iocb *requests[] = {&request};
    REQUIRE(syscall(SYS_io_submit, aio, 1, requests) == 1);
}

static void make_aio(int ends[2]) {
    ends[0] = ends[1] = memfd_create("read", 0);
    REQUIRE(ftruncate(ends[0], 4096) == 0 && syscall(SYS_io_setup, 8, &aio) == 0);
    submit(ends[0]);
}

static void divide(struct iovec parts[PARTS]) {
    for (int i = 0; i < PARTS; i++)
        parts[i] = (struct iovec){big + i * (BIG / PARTS), i + 1 < PARTS ? BIG / PARTS : BIG - i * (BIG / PARTS)};
}

static long send_message(int fd, char *bytes) {
    struct iovec parts[PARTS];
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = PARTS};
    (void)bytes;
    divide(parts);
    return sendmsg(fd, &message, 0);
}

static long send_messages(int fd, char *bytes) {
    static struct mmsghdr messages[1000];
    struct iovec part = {big, 100};
    (void)bytes;
    for (int i = 0; i < 1000; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
    return sendmmsg(fd, messages, 1000, 0);
}

static long write_parts(int fd, char *bytes) {
    struct iovec parts[PARTS];
    (void)bytes;
    divide(parts);
    return writev(fd, parts, PARTS);
}

static long write_parts_at(int fd, char *bytes) {
    struct iovec parts[PARTS];
    (void)bytes;
    divide(parts);
    return pwritev2(fd, parts, PARTS, -1, 0);
}

static long receive_message(int fd, char *bytes, size_t len, int flags) {
    struct iovec parts[] = {{bytes, 2}, {bytes + 2, len - 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    return recvmsg(fd, &message, flags);
}

static long receive_all(int fd, char *bytes) { return receive_message(fd, bytes, LEAST, MSG_WAITALL); }
static long receive_least(int fd, char *bytes) { return receive_message(fd, bytes, 100, 0); }
static long recv_least(int fd, char *bytes) { return recv(fd, bytes, 100, 0); }
static long read_least(int fd, char *bytes) { return read(fd, bytes, 100); }

static long readv_least(int fd, char *bytes) {
    struct iovec parts[] = {{bytes, 4}, {bytes + 4, 96}};
    return readv(fd, parts, 2);
}

static long get_events(int fd, char *bytes) {
    struct io_event events[2] = {0};
    struct timespec hour = {3600, 0};
    (void)fd, (void)bytes;
    long got = syscall(SYS_io_getevents, aio, 2, 2, events, &hour);
    return got == 2 && events[0].res == 64 && events[1].res == 64 ? 2 : -1;
}

static void drain(int fd) {
    static char got[BIG];
    for (size_t at = 0; at < BIG;) {
        ssize_t part = read(fd, got + at, BIG - at);
        REQUIRE(part > 0);
        at += part;
    }
    CHECK(memcmp(got, big, BIG) == 0, "other bytes came than were sent");
    memset(got, 0, BIG);
}

static void drain_messages(int fd) {
    char got[200];
    for (int i = 0; i < 1000; i++)
        CHECK(read(fd, got, sizeof got) == 100, "a datagram of another length");
}

static void type_more(int fd) {
    sleep_ms(20);
    REQUIRE(write(fd, "defg", 4) == 4);
    sleep_ms(20);
    REQUIRE(write(fd, "hij", 3) == 3);
}

static struct call calls[] = {
    {"sendmsg", make_stream, send_message, BIG, drain, false},
    {"sendmmsg", make_datagrams, send_messages, 1000, drain_messages, false},
    {"writev", make_pipe, write_parts, BIG, drain, false},
    {"pwritev2", make_pipe, write_parts_at, BIG, drain, false},
    {"recvmsg with MSG_WAITALL", make_stream, receive_all, LEAST, type_more, true},
    {"recvmsg with SO_RCVLOWAT", make_least, receive_least, LEAST, type_more, true},
    {"recv with SO_RCVLOWAT", make_least, recv_least, LEAST, type_more, true},
    {"read with SO_RCVLOWAT", make_least, read_least, LEAST, type_more, true},
    {"readv with SO_RCVLOWAT", make_least, readv_least, LEAST, type_more, true},
    {"read with VMIN", make_terminal, read_least, LEAST, type_more, true},
    {"readv with VMIN", make_terminal, readv_least, LEAST, type_more, true},
    {"io_getevents", make_aio, get_events, 2, submit, false},
};
enum { CALLS = sizeof calls / sizeof *calls };

static void *perform(void *argument) {
    struct call *call = argument;
    long result = call->perform(call->ends[0], call->bytes);
    atomic_store(&call->result, result == -1 ? -errno : result);
    return NULL;
}

int main(void) {
    for (int i = 0; i < BIG; i++)
        big[i] = i * 31 + i / 4096;
    for (int i = 0; i < CALLS; i++) {
        struct call *call = &calls[i];
        call->make(call->ends);
        REQUIRE(!call->receives || write(call->ends[1], "abc", 3) == 3);
        atomic_store(&call->result, -1000);
        call->thread = start_thread(perform, call);
    }
    sleep_ms(100);
    until_go();
    if (loses("wait"))
        calls[4].end(calls[4].ends[1]);
    sleep_ms(50);
    for (int i = 0; i < CALLS; i++) {
        struct call *call = &calls[i];
        CHECK(atomic_load(&call->result) == -1000, "%s ended early and gave %ld", call->name, call->result);
        if (atomic_load(&call->result) != -1000)
            continue;
        call->end(call->ends[1]);
        pthread_join(call->thread, NULL);
        CHECK(call->result == call->expected, "%s gave %ld", call->name, call->result);
        CHECK(!call->receives || memcmp(call->bytes, "abcdefghij", LEAST) == 0, "%s gave other bytes", call->name);
    }
    return verdict();
}
