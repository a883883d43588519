// Connections of TCP that nobody has answered yet, since no listener has room for them: of sockets that do not block, and of a
// thread that waits. They come about when there is room.
#include "verify.h"
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

enum { WAITING = 2, COUNT = 3 };

static struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};

static int state(int fd) {
    struct pollfd ask = {fd, POLLOUT, 0};
    REQUIRE(poll(&ask, 1, 0) >= 0);
    return ask.revents;
}

static int begin(void) {
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
    REQUIRE(fd >= 0 && connect(fd, (void *)&address, sizeof address) == -1 && errno == EINPROGRESS);
    return fd;
}

// A thread in connect(2).
static int blocking;
static atomic_int result = 1;

static void *wait_for_it(void *unused) {
    int done = connect(blocking, (void *)&address, sizeof address);
    atomic_store(&result, done == 0 ? 0 : errno);
    return unused;
}

int main(void) {
    socklen_t length = sizeof address;
    int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    REQUIRE(bind(listener, (void *)&address, length) == 0 && listen(listener, 0) == 0);
    REQUIRE(getsockname(listener, (void *)&address, &length) == 0);
    // A backlog of 0 has room for one (net/core/sock.c, sk_acceptq_is_full).
    int first = socket(AF_INET6, SOCK_STREAM, 0), fds[COUNT];
    REQUIRE(connect(first, (void *)&address, sizeof address) == 0);
    for (int i = 0; i < WAITING; i++)
        fds[i] = begin();
    fds[WAITING] = blocking = socket(AF_INET6, SOCK_STREAM, 0);
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, wait_for_it, NULL) == 0);

    until_go();
    if (loses("attempt")) {
        int other = socket(AF_INET6, SOCK_STREAM, 0);
        dup2(other, fds[0]), close(other);
    }
    for (int i = 0; i < WAITING; i++)
        CHECK(state(fds[i]) == 0, "socket %d: %#x", i, state(fds[i]));
    CHECK(atomic_load(&result) == 1, "the thread has been told %s", strerror(atomic_load(&result)));
    // There is room: what came first, and all others as they try again.
    REQUIRE(listen(listener, 16) == 0);
    struct pollfd ask = {listener, POLLIN, 0};
    bool missing = false;
    for (int i = 0; i <= COUNT && !missing; i++) {
        missing = poll(&ask, 1, 30000) != 1;
        int server = missing ? -1 : accept(listener, NULL, NULL);
        CHECK(server >= 0 && write(server, "x", 1) == 1, "connection %d does not come", i);
        close(server);
    }
    char byte;
    CHECK(recv(first, &byte, 1, 0) == 1, "what was connected before");
    for (int i = 0; i < COUNT && !missing; i++) {
        struct pollfd answer = {fds[i], POLLIN, 0};
        CHECK(poll(&answer, 1, 10000) == 1 && recv(fds[i], &byte, 1, 0) == 1 && byte == 'x', "socket %d gets nothing", i);
    }
    if (!missing) {
        pthread_join(thread, NULL);
        CHECK(atomic_load(&result) == 0, "connect: %s", strerror(atomic_load(&result)));
    }
    return verdict();
}
