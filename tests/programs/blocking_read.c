// Reads, writes and opens that block, each named by argv[1]: on time, all of the bytes, never interrupted.
#include "blocking.h"
#include <poll.h>
#include <pty.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

static int fds[2];
static pthread_t reader;
static char bytes[1 << 16];

static void write_fd(void) {
    REQUIRE(write(fds[1], "abc", 3) == 3);
}

static void call_read_pipe(void) {
    REQUIRE(pipe(fds) == 0);
    EXPECT(read(fds[0], bytes, 10), 3);
    CHECK(memcmp(bytes, "abc", 3) == 0, "read gave other bytes");
}

static void call_readv_pipe(void) {
    REQUIRE(pipe(fds) == 0);
    struct iovec parts[] = {{bytes, 1}, {bytes + 1, 9}};
    EXPECT(readv(fds[0], parts, 2), 3);
}

static void fill_pipe(void) {
    REQUIRE(pipe(fds) == 0);
    REQUIRE(fcntl(fds[1], F_SETPIPE_SZ, 4096) == 4096);
    REQUIRE(write(fds[1], bytes, 4096) == 4096);
}

static void empty_pipe(void) {
    REQUIRE(read(fds[0], bytes, 4096) == 4096);
}

static void call_write_pipe(void) {
    fill_pipe();
    EXPECT(write(fds[1], "abc", 3), 3);
}

static void call_writev_pipe(void) {
    fill_pipe();
    struct iovec parts[] = {{"a", 1}, {"bc", 2}};
    EXPECT(writev(fds[1], parts, 2), 3);
}

// Takes all that comes, until nothing has come for a while: a write that was cut short sends no more.
static void drain_all(void) {
    struct pollfd target = {.fd = fds[0], .events = POLLIN};
    while (poll(&target, 1, 500) == 1)
        REQUIRE(read(fds[0], bytes + 30000, 4096) > 0);
}

// A write that is part done when a checkpoint comes must still do all of it.
static void call_write_pipe_in_parts(void) {
    fill_pipe();
    EXPECT(write(fds[1], bytes, 20000), 20000);
}

static void call_splice(void) {
    REQUIRE(pipe(fds) == 0);
    int file = open("spliced", O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT(splice(fds[0], NULL, file, NULL, 3, 0), 3);
    unlink("spliced");
}

static void open_writer(void) {
    fds[1] = open("fifo", O_WRONLY);
    REQUIRE(fds[1] >= 0);
}

static void call_open_fifo(void) {
    unlink("fifo");
    REQUIRE(mkfifo("fifo", 0600) == 0);
    errno = 0;
    fds[0] = open("fifo", O_RDONLY);
    CHECK(fds[0] >= 0, "open of a FIFO failed");
    unlink("fifo");
}

static void call_read_tty(void) {
    REQUIRE(openpty(&fds[1], &fds[0], NULL, NULL, NULL) == 0);
    EXPECT(read(fds[0], bytes, 10), 4);
    CHECK(memcmp(bytes, "abc\n", 4) == 0, "read gave other bytes");
}

static void type_line(void) {
    REQUIRE(write(fds[1], "abc\r", 4) == 4);
}

static void call_read_eventfd(void) {
    uint64_t count = 0;
    fds[1] = eventfd(0, 0);
    EXPECT(read(fds[1], &count, 8), 8);
    CHECK(count == 5, "the eventfd's count is %ju", (uintmax_t)count);
}

static void add_to_eventfd(void) {
    REQUIRE(eventfd_write(fds[1], 5) == 0);
}

static void call_write_eventfd(void) {
    uint64_t count = 10;
    fds[1] = eventfd(0, 0);
    REQUIRE(eventfd_write(fds[1], UINT64_MAX - 1) == 0);
    EXPECT(write(fds[1], &count, 8), 8);
}

static void take_from_eventfd(void) {
    eventfd_t count;
    REQUIRE(eventfd_read(fds[1], &count) == 0);
}

static void call_read_timerfd(void) {
    struct itimerspec time = {.it_value = {1, 500000000}};
    uint64_t ticks = 0;
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    REQUIRE(timerfd_settime(timer, 0, &time, NULL) == 0);
    EXPECT(read(timer, &ticks, 8), 8);
    CHECK(ticks == 1, "the timerfd ticked %ju times", (uintmax_t)ticks);
}

static void call_read_signalfd(void) {
    sigset_t set;
    struct signalfd_siginfo info = {0};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    reader = pthread_self();
    EXPECT(read(signalfd(-1, &set, 0), &info, sizeof info), sizeof info);
    CHECK(info.ssi_signo == SIGUSR1 && info.ssi_int == 12, "the signalfd gave another signal");
}

static void queue_signal(void) {
    union sigval value = {.sival_int = 12};
    REQUIRE(pthread_sigqueue(reader, SIGUSR1, value) == 0);
}

static void call_read_inotify(void) {
    int watch = inotify_init1(0);
    REQUIRE(inotify_add_watch(watch, ".", IN_CREATE) == 1);
    EXPECT(read(watch, bytes, 4096), (long)sizeof(struct inotify_event) + 16);
    struct inotify_event *event = (struct inotify_event *)bytes;
    CHECK(event->mask == IN_CREATE && strcmp(event->name, "created") == 0, "inotify gave another event");
}

static void create_file(void) {
    int file = open("created", O_CREAT | O_EXCL, 0600);
    REQUIRE(file >= 0);
    close(file);
    unlink("created");
}

static const struct call calls[] = {
    {"read-pipe", 1500, call_read_pipe, write_fd, false},
    {"readv-pipe", 1500, call_readv_pipe, write_fd, false},
    {"write-pipe", 1500, call_write_pipe, empty_pipe, false},
    {"writev-pipe", 1500, call_writev_pipe, empty_pipe, false},
    {"write-pipe-in-parts", 1500, call_write_pipe_in_parts, drain_all, false},
    {"splice", 1500, call_splice, write_fd, false},
    {"open-fifo", 1500, call_open_fifo, open_writer, false},
    {"read-tty", 1500, call_read_tty, type_line, false},
    {"read-eventfd", 1500, call_read_eventfd, add_to_eventfd, false},
    {"write-eventfd", 1500, call_write_eventfd, take_from_eventfd, false},
    {"read-timerfd", 1500, call_read_timerfd, NULL, false},
    {"read-signalfd", 1500, call_read_signalfd, queue_signal, false},
    {"read-inotify", 1500, call_read_inotify, create_file, false},
    {NULL, 0, NULL, NULL, false},
};

int main(int argc, char **argv) {
    return run_call(calls, argc, argv);
}
