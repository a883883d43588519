// Pseudo-terminals of the program's own, both sides in one process: modes, size, packet mode, lock, exclusive use, whose
// slaves were never open, are closed or hung up; lines, an end of file, an unfinished line and bytes that were not read, in
// both directions; output that was stopped.
#include "verify.h"
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>

static char got[20000], sent[12000];

struct pair {
    int master, slave;
    char name[64];
};

static struct pair open_pair(bool lines, bool echo) {
    struct pair pair;
    struct termios modes;
    REQUIRE(openpty(&pair.master, &pair.slave, pair.name, NULL, NULL) == 0);
    REQUIRE(tcgetattr(pair.slave, &modes) == 0);
    if (!lines)
        cfmakeraw(&modes);
    if (!echo)
        modes.c_lflag &= ~ECHO;
    REQUIRE(tcsetattr(pair.slave, TCSANOW, &modes) == 0);
    REQUIRE(fcntl(pair.slave, F_SETFL, O_NONBLOCK) == 0 && fcntl(pair.master, F_SETFL, O_NONBLOCK) == 0);
    return pair;
}

static void type(struct pair pair, const char *text, size_t length) {
    REQUIRE(write(pair.master, text, length) == (ssize_t)length);
}

// What comes by a worker of the kernel is awaited by poll(2).
static ssize_t get(int fd) {
    memset(got, 0, sizeof got);
    struct pollfd ready = {fd, POLLIN, 0};
    poll(&ready, 1, 0);
    return read(fd, got, sizeof got);
}

// All that is there.
static size_t get_all(int fd) {
    size_t have = 0;
    struct pollfd ready = {fd, POLLIN, 0};
    ssize_t count;
    memset(got, 0, sizeof got);
    while (have < sizeof got && poll(&ready, 1, 20) > 0 && (count = read(fd, got + have, sizeof got - have)) > 0)
        have += count;
    return have;
}

static short ready(int fd, short events) {
    struct pollfd one = {fd, events, 0};
    poll(&one, 1, 0);
    return one.revents;
}

#define GETS(fd, text, what)                                                                       \
    do {                                                                                           \
        ssize_t count = get(fd);                                                                   \
        CHECK(count == sizeof text - 1 && !memcmp(got, text, sizeof text - 1), "%s: %zd bytes, `%.60s`", what, count, got); \
    } while (0)

static int number(int fd, unsigned long request) {
    int value = -1;
    ioctl(fd, request, &value);
    return value;
}

int main(void) {
    for (size_t i = 0; i < sizeof sent; i++)
        sent[i] = i * 31 >> 3;
    // Lines: two complete ones, an end of file, one with bytes that mean something, one that is not finished; their echoes were
    // read.
    struct pair lines = open_pair(true, true);
    type(lines, "first line\nsecond\n\004", 19);
    type(lines, "\026\003\026\004\026\023\026\026 quoted\n", 16);
    type(lines, "by an end\004", 10);
    type(lines, "not finished", 12);
    poll(&(struct pollfd){lines.slave, POLLIN, 0}, 1, -1);
    while (get_all(lines.master))
        ;
    // Read in part: the rest of a line.
    REQUIRE(read(lines.slave, got, 6) == 6);
    // Bytes, both ways, as many as there is room for without waiting.
    struct pair bytes = open_pair(false, false);
    REQUIRE(write(bytes.slave, sent, 3000) == 3000);
    type(bytes, sent, 2500);
    struct pair full = open_pair(false, false);
    size_t into = 0, out = 0;
    ssize_t count;
    while (into < sizeof sent && (count = write(full.master, sent + into, sizeof sent - into > 700 ? 700 : sizeof sent - into)) > 0)
        into += count;
    while (out < sizeof sent && (count = write(full.slave, sent + out, sizeof sent - out > 500 ? 500 : sizeof sent - out)) > 0)
        out += count;
    // An echo that was not read yet.
    struct pair echo = open_pair(true, true);
    type(echo, "abc\n", 4);
    ready(echo.slave, POLLIN);
    // Settings.
    struct pair set = open_pair(true, false);
    struct winsize size = {33, 101, 7, 9};
    struct termios modes, now;
    REQUIRE(tcgetattr(set.slave, &modes) == 0);
    modes.c_cc[VINTR] = 7, modes.c_cc[VERASE] = 8, modes.c_iflag |= IXANY, modes.c_oflag &= ~ONLCR;
    REQUIRE(tcsetattr(set.slave, TCSANOW, &modes) == 0 && ioctl(set.slave, TIOCSWINSZ, &size) == 0);
    int on = 1;
    REQUIRE(ioctl(set.slave, TIOCEXCL) == 0 && fchmod(set.slave, 0640) == 0);
    // In packet mode, with a flush that was not told yet.
    struct pair packet = open_pair(true, false);
    REQUIRE(ioctl(packet.master, TIOCPKT, &on) == 0 && write(packet.slave, "packet", 6) == 6);
    struct pair flushed = open_pair(true, false);
    REQUIRE(ioctl(flushed.master, TIOCPKT, &on) == 0 && tcflush(flushed.slave, TCIFLUSH) == 0);
    // Output stopped by a character, and by a call.
    struct pair typed = open_pair(true, false), called = open_pair(true, false);
    REQUIRE(write(typed.slave, "before", 6) == 6);
    type(typed, "\023", 1);
    while (ready(typed.slave, POLLOUT) & POLLOUT)
        sleep_ms(1);
    REQUIRE(tcflow(called.slave, TCOOFF) == 0);
    // Slaves that were never open, are closed, are hung up; a lock.
    int unopened = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK), locked = posix_openpt(O_RDWR | O_NOCTTY);
    REQUIRE(unopened >= 0 && locked >= 0 && unlockpt(unopened) == 0);
    struct pair closed = open_pair(false, false), hung = open_pair(false, false);
    REQUIRE(write(closed.slave, "last words", 10) == 10 && close(closed.slave) == 0 && close(hung.master) == 0);
    // Descriptions: one shared by two numbers, another of the same terminal with flags of its own.
    struct pair several = open_pair(false, false);
    int peer = ioctl(several.master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), kept = dup(peer);
    int shared = dup(several.slave), another = open(several.name, O_RDONLY | O_NOCTTY | O_CLOEXEC);
    REQUIRE(peer >= 0 && kept >= 0 && shared >= 0 && another >= 0 && fcntl(several.slave, F_SETFL, 0) == 0);

    until_go();
    if (loses("lines"))
        tcflush(lines.slave, TCIFLUSH);
    if (loses("bytes"))
        CHECK(read(bytes.slave, got, 1) == 1, "read");
    if (loses("output"))
        CHECK(read(bytes.master, got, 1) == 1, "read");
    if (loses("echo"))
        CHECK(read(echo.master, got, 1) == 1, "read");
    if (loses("modes"))
        tcsetattr(set.slave, TCSANOW, &(struct termios){0});
    if (loses("size"))
        ioctl(set.slave, TIOCSWINSZ, &(struct winsize){1, 1, 1, 1});
    if (loses("packet"))
        ioctl(packet.master, TIOCPKT, &(int){0});
    if (loses("stop"))
        tcflow(called.slave, TCOON);
    if (loses("lock"))
        unlockpt(locked);
    if (loses("unopened"))
        close(open(ptsname(unopened), O_RDWR | O_NOCTTY));
    if (loses("shared"))
        dup2(another, shared);

    GETS(lines.slave, "line\n", "the rest of a line");
    GETS(lines.slave, "second\n", "a line");
    CHECK(get(lines.slave) == 0, "the end of file is lost");
    GETS(lines.slave, "\003\004\023\026 quoted\n", "quoted characters");
    GETS(lines.slave, "by an end", "a line that an end of file ended");
    CHECK(get(lines.slave) == -1 && errno == EAGAIN, "an unfinished line is read: `%s`", got);
    type(lines, "\177, now it is\n", 13);
    GETS(lines.slave, "not finishe, now it is\n", "a line that was not finished");
    size_t have = get_all(lines.master);
    CHECK(have == 3 + 13 && !memcmp(got, "\b \b, now it is\r\n", 16), "%zu bytes of echo: `%s`", have, got);
    have = get_all(bytes.slave);
    CHECK(have == 2500 && !memcmp(got, sent, have), "%zu of 2500 bytes were typed, or they changed", have);
    have = get_all(bytes.master);
    CHECK(have == 3000 && !memcmp(got, sent, have), "%zu of 3000 bytes were written, or they changed", have);
    have = get_all(full.slave);
    CHECK(have == into && !memcmp(got, sent, have), "%zu of %zu bytes were typed, or they changed", have, into);
    have = get_all(full.master);
    CHECK(have == out && !memcmp(got, sent, have), "%zu of %zu bytes were written, or they changed", have, out);
    GETS(echo.master, "abc\r\n", "an echo");
    GETS(echo.slave, "abc\n", "what was echoed");
    CHECK(tcgetattr(set.slave, &now) == 0 && now.c_cc[VINTR] == 7 && now.c_cc[VERASE] == 8 && now.c_iflag == modes.c_iflag &&
              now.c_oflag == modes.c_oflag && now.c_lflag == modes.c_lflag && now.c_cflag == modes.c_cflag, "the modes changed");
    struct winsize size_now = {0};
    CHECK(ioctl(set.master, TIOCGWINSZ, &size_now) == 0 && !memcmp(&size, &size_now, sizeof size), "the size is %d × %d",
          size_now.ws_row, size_now.ws_col);
    struct stat stat_now;
    CHECK(fstat(set.slave, &stat_now) == 0 && (stat_now.st_mode & 0777) == 0640, "the permissions are %o", stat_now.st_mode);
    CHECK(number(set.slave, TIOCGEXCL) == 1, "exclusive use is lost");
    CHECK(number(packet.master, TIOCGPKT) == 1, "packet mode is lost");
    CHECK(get(packet.master) == 7 && !memcmp(got, "\0packet", 7), "a packet is `%s`", got);
    CHECK(get(flushed.master) == 1 && got[0] & TIOCPKT_FLUSHREAD, "the status is %x", got[0]);
    CHECK(get(flushed.master) == -1 && errno == EAGAIN, "there is more status: %x", got[0]);
    CHECK(write(typed.slave, "x", 1) == -1 && errno == EAGAIN && write(called.slave, "x", 1) == -1, "output is not stopped");
    GETS(typed.master, "before", "what was written before output stopped");
    tcflow(typed.slave, TCOON);
    CHECK(write(typed.slave, "x", 1) == -1, "a call starts what a character has stopped");
    type(typed, "\021", 1), type(called, "\021", 1);
    for (int tries = 0; tries < 1000 && !(ready(typed.slave, POLLOUT) & POLLOUT); tries++)
        sleep_ms(1);
    CHECK(write(typed.slave, "after", 5) == 5 && write(called.slave, "x", 1) == -1, "output that was stopped by a character");
    tcflow(called.slave, TCOON);
    CHECK(write(called.slave, "after", 5) == 5, "output that was stopped by a call");
    CHECK(get(unopened) == -1 && errno == EAGAIN, "a slave that was never open: errno %d", errno);
    int slave = open(ptsname(unopened), O_RDWR | O_NOCTTY);
    CHECK(slave >= 0 && write(slave, "x", 1) == 1 && get(unopened) == 1, "it does not open");
    CHECK(number(locked, TIOCGPTLCK) == 1 && open(ptsname(locked), O_RDWR | O_NOCTTY) == -1, "the lock is lost");
    GETS(closed.master, "last words", "of a slave that was closed");
    CHECK(get(closed.master) == -1 && errno == EIO && ready(closed.master, 0) & POLLHUP, "a closed slave: errno %d", errno);
    CHECK(get(hung.slave) == 0 && write(hung.slave, "x", 1) == -1 && errno == EIO, "a slave that was hung up: errno %d", errno);
    CHECK(fcntl(shared, F_SETFL, O_NONBLOCK) == 0 && fcntl(several.slave, F_GETFL) & O_NONBLOCK, "a shared description");
    CHECK(fcntl(another, F_SETFL, 0) == 0 && fcntl(several.slave, F_GETFL) & O_NONBLOCK && fcntl(another, F_GETFD) == FD_CLOEXEC &&
              (fcntl(another, F_GETFL) & O_ACCMODE) == O_RDONLY, "another description of the same terminal");
    CHECK(fcntl(peer, F_GETFD) == FD_CLOEXEC && fcntl(kept, F_GETFD) == 0, "what is closed by exec");
    type(several, "seen", 4);
    GETS(another, "seen", "what was typed");
    // Its number may have been taken by somebody else.
    struct stat named;
    CHECK(stat(ptsname(lines.master), &named) == 0 && fstat(lines.slave, &stat_now) == 0 && named.st_rdev == stat_now.st_rdev,
          "%s is another terminal; it was %s", ptsname(lines.master), lines.name);
    return verdict();
}
