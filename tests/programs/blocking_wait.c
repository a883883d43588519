// Waits for many descriptors, each named by argv[1], by timeout and by event: on time, never interrupted.
#include "blocking.h"
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>

static int pipe_fds[2];
static int epoll_fd;
static struct epoll_event got_event;
static const struct timespec one_and_a_half = {1, 500000000};

static void write_byte(void) {
    REQUIRE(write(pipe_fds[1], "x", 1) == 1);
}

static void call_poll_timeout(void) {
    struct pollfd target = {.fd = pipe_fds[0], .events = POLLIN};
    EXPECT(poll(&target, 1, 1500), 0);
}

static void call_poll_nothing(void) {
    EXPECT(poll(NULL, 0, 1500), 0);
}

static void call_poll(void) {
    struct pollfd target = {.fd = pipe_fds[0], .events = POLLIN};
    EXPECT(poll(&target, 1, -1), 1);
    CHECK(target.revents == POLLIN, "poll gave the events %#x", target.revents);
}

static void call_ppoll_timeout(void) {
    struct pollfd target = {.fd = pipe_fds[0], .events = POLLIN};
    sigset_t none;
    sigemptyset(&none);
    EXPECT(ppoll(&target, 1, &one_and_a_half, &none), 0);
}

// The system call, unlike glibc's ppoll, writes the time left into its argument.
static void call_ppoll_raw(void) {
    struct pollfd target = {.fd = pipe_fds[0], .events = POLLIN};
    struct timespec left = {4, 0};
    EXPECT(syscall(SYS_ppoll, &target, 1, &left, NULL, 8), 1);
    double seconds = left.tv_sec + left.tv_nsec / 1e9;
    CHECK(seconds > 2.4 && seconds <= 2.5, "ppoll says that %.3f s of 2.5 are left", seconds);
}

static void call_ppoll(void) {
    struct pollfd target = {.fd = pipe_fds[0], .events = POLLIN};
    EXPECT(ppoll(&target, 1, NULL, NULL), 1);
}

static void call_select_timeout(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipe_fds[0], &set);
    struct timeval left = {1, 500000};
    EXPECT(select(pipe_fds[0] + 1, &set, NULL, NULL, &left), 0);
    CHECK(!FD_ISSET(pipe_fds[0], &set), "select timed out, and left the descriptor in the set");
    CHECK(left.tv_sec == 0 && left.tv_usec == 0, "select timed out, and says that time is left");
}

static void call_select(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipe_fds[0], &set);
    struct timeval left = {4, 0};
    EXPECT(select(pipe_fds[0] + 1, &set, NULL, NULL, &left), 1);
    CHECK(FD_ISSET(pipe_fds[0], &set), "select does not name the ready descriptor");
    double seconds = left.tv_sec + left.tv_usec / 1e6;
    CHECK(seconds > 2.4 && seconds <= 2.5, "select says that %.3f s of 2.5 are left", seconds);
}

static void call_pselect_timeout(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipe_fds[0], &set);
    sigset_t none;
    sigemptyset(&none);
    EXPECT(pselect(pipe_fds[0] + 1, &set, NULL, NULL, &one_and_a_half, &none), 0);
}

static void call_pselect(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipe_fds[0], &set);
    EXPECT(pselect(pipe_fds[0] + 1, &set, NULL, NULL, NULL, NULL), 1);
}

static void call_epoll_wait_timeout(void) {
    EXPECT(epoll_wait(epoll_fd, &got_event, 1, 1500), 0);
}

static void call_epoll_wait(void) {
    EXPECT(epoll_wait(epoll_fd, &got_event, 1, -1), 1);
    CHECK(got_event.data.u64 == 0x123456789abcdef0, "epoll_wait gave other data");
}

static void call_epoll_pwait_timeout(void) {
    sigset_t none;
    sigemptyset(&none);
    EXPECT(epoll_pwait(epoll_fd, &got_event, 1, 1500, &none), 0);
}

static void call_epoll_pwait(void) {
    EXPECT(epoll_pwait(epoll_fd, &got_event, 1, -1, NULL), 1);
}

static void call_epoll_pwait2_timeout(void) {
    EXPECT(epoll_pwait2(epoll_fd, &got_event, 1, &one_and_a_half, NULL), 0);
}

static void call_epoll_pwait2(void) {
    sigset_t none;
    sigemptyset(&none);
    EXPECT(epoll_pwait2(epoll_fd, &got_event, 1, NULL, &none), 1);
}

// The context is left to the process' end: destroying it waits for a grace period of the kernel, tens of ms long.
static void call_io_getevents_timeout(void) {
    aio_context_t context = 0;
    struct io_event event;
    struct timespec time = one_and_a_half;
    REQUIRE(syscall(SYS_io_setup, 4, &context) == 0);
    EXPECT(syscall(SYS_io_getevents, context, 1, 1, &event, &time), 0);
}

static void call_io_getevents(void) {
    aio_context_t context = 0;
    struct io_event event = {0};
    struct iocb request = {.aio_data = 77, .aio_fildes = pipe_fds[0], .aio_lio_opcode = IOCB_CMD_POLL,
                           .aio_buf = POLLIN};
    struct iocb *requests[] = {&request};
    REQUIRE(syscall(SYS_io_setup, 4, &context) == 0);
    REQUIRE(syscall(SYS_io_submit, context, 1, requests) == 1);
    EXPECT(syscall(SYS_io_getevents, context, 1, 1, &event, NULL), 1);
    CHECK(event.data == 77 && event.res & POLLIN, "io_getevents gave another event");
}

static const struct call calls[] = {
    {"poll-timeout", 1500, call_poll_timeout, NULL, false},
    {"poll-nothing", 1500, call_poll_nothing, NULL, false},
    {"poll", 1500, call_poll, write_byte, false},
    {"ppoll-timeout", 1500, call_ppoll_timeout, NULL, false},
    {"ppoll-raw", 1500, call_ppoll_raw, write_byte, false},
    {"ppoll", 1500, call_ppoll, write_byte, false},
    {"select-timeout", 1500, call_select_timeout, NULL, false},
    {"select", 1500, call_select, write_byte, false},
    {"pselect-timeout", 1500, call_pselect_timeout, NULL, false},
    {"pselect", 1500, call_pselect, write_byte, false},
    {"epoll_wait-timeout", 1500, call_epoll_wait_timeout, NULL, false},
    {"epoll_wait", 1500, call_epoll_wait, write_byte, false},
    {"epoll_pwait-timeout", 1500, call_epoll_pwait_timeout, NULL, false},
    {"epoll_pwait", 1500, call_epoll_pwait, write_byte, false},
    {"epoll_pwait2-timeout", 1500, call_epoll_pwait2_timeout, NULL, false},
    {"epoll_pwait2", 1500, call_epoll_pwait2, write_byte, false},
    {"io_getevents-timeout", 1500, call_io_getevents_timeout, NULL, false},
    {"io_getevents", 1500, call_io_getevents, write_byte, false},
    {NULL, 0, NULL, NULL, false},
};

int main(int argc, char **argv) {
    REQUIRE(pipe(pipe_fds) == 0);
    epoll_fd = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN, .data.u64 = 0x123456789abcdef0};
    REQUIRE(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, pipe_fds[0], &interest) == 0);
    return run_call(calls, argc, argv);
}
