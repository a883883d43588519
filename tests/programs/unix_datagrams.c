// Unix datagrams that are larger, and more, than a new socket could send: of a sender with a large buffer, and between two that
// are connected to each other, or were.
#include "verify.h"
#include <sys/socket.h>
#include <sys/un.h>

enum { LARGE = 400000, MANY = 50 };

static char directory[] = "/tmp/stasis-datagrams-XXXXXX";

static struct sockaddr_un named(const char *file) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", directory, file);
    return address;
}

static int bound(const char *file) {
    struct sockaddr_un address = named(file);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    REQUIRE(fd >= 0 && bind(fd, (void *)&address, sizeof address) == 0);
    return fd;
}

static void point(int fd, const char *file) {
    struct sockaddr_un address = named(file);
    REQUIRE(connect(fd, (void *)&address, sizeof address) == 0);
}

// Sends many from one to the other.
static void connect_both(int ends[2], const char *one, const char *two) {
    ends[0] = bound(one), ends[1] = bound(two);
    point(ends[0], two), point(ends[1], one);
    for (int i = 0; i < MANY; i++)
        REQUIRE(send(ends[1], &i, sizeof i, 0) == sizeof i);
}

static void expect_many(int fd, const char *what) {
    for (int i = 0, got = -1; i < MANY; i++)
        CHECK(recv(fd, &got, sizeof got, 0) == sizeof got && got == i, "%s: %d of %d", what, got, i);
    CHECK(recv(fd, &(int){0}, sizeof(int), 0) == -1 && errno == EAGAIN, "%s: there is more than was sent", what);
}

int main(void) {
    static char block[LARGE], got[LARGE];
    const char *files[] = {"large", "one", "two", "three", "four"};
    int size = 1000000, mutual[2], left[2];
    REQUIRE(mkdtemp(directory));
    for (size_t i = 0; i < LARGE; i++)
        block[i] = i * 11 >> 3;
    int receiver = bound("large"), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    struct sockaddr_un large = named("large");
    REQUIRE(setsockopt(sender, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) == 0);
    REQUIRE(sendto(sender, block, LARGE, 0, (void *)&large, sizeof large) == LARGE);
    connect_both(mutual, "one", "two"), connect_both(left, "three", "four");
    close(left[1]);

    until_go();
    if (loses("large"))
        CHECK(recv(receiver, got, 1, 0) == 1, "recv");
    if (loses("many"))
        CHECK(recv(mutual[0], got, 8, 0) == sizeof(int), "recv");
    CHECK(recv(receiver, got, LARGE, 0) == LARGE && !memcmp(got, block, LARGE), "the large one is lost");
    expect_many(mutual[0], "between two that are connected");
    expect_many(left[0], "of one that was closed");
    CHECK(send(mutual[0], "back", 4, 0) == 4 && recv(mutual[1], got, 8, 0) == 4, "the way back");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        CHECK(unlink(named(files[i]).sun_path) == 0, "%s is gone", files[i]);
    CHECK(rmdir(directory) == 0, "something is left in %s", directory);
    return verdict();
}
