// TCP connections over loopback, the ends in one process or in two: unread bytes both ways, a full window, half-closed
// and closed ends, options, names, and connections that wait to be accepted. Arguments: 4|6|mixed one|two.
#include "verify.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { PLAIN, FULL, HALF, GONE, ENDED, READ_SHUT, KINDS };

struct connection {
    int client, server;
    struct sockaddr_in6 names[4];
};

static struct connection all[KINDS];
static int listener, waiting[3];
static size_t filled;
static bool together;

static unsigned char pattern(size_t i) {
    return i * 31 >> 3 ^ i;
}

static struct sockaddr_in6 named(int fd, bool peer) {
    struct sockaddr_in6 name;
    socklen_t length = sizeof name;
    memset(&name, 0, sizeof name);
    REQUIRE((peer ? getpeername : getsockname)(fd, (struct sockaddr *)&name, &length) == 0);
    return name;
}

static void note_names(int fd, struct sockaddr_in6 *names) {
    names[0] = named(fd, false), names[1] = named(fd, true);
}

static void same_names(int fd, struct sockaddr_in6 *names, const char *what) {
    struct sockaddr_in6 now[2];
    note_names(fd, now);
    CHECK(memcmp(now, names, sizeof now) == 0, "the names of %s differ", what);
}

static int connected(int family, int port) {
    int fd = socket(family, SOCK_STREAM, 0);
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = in6addr_loopback};
    REQUIRE(fd >= 0);
    REQUIRE(connect(fd, family == AF_INET ? (void *)&four : (void *)&six,
                    family == AF_INET ? sizeof four : sizeof six) == 0);
    return fd;
}

static size_t readable(int fd) {
    int bytes = 0;
    REQUIRE(ioctl(fd, FIONREAD, &bytes) == 0);
    return bytes;
}

static void expect(int fd, const char *text, const char *what) {
    char got[64] = "";
    struct timeval limit = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ssize_t length = recv(fd, got, *text ? strlen(text) : 1, MSG_WAITALL);
    CHECK(length == (ssize_t)strlen(text) && strcmp(got, text) == 0, "%s: `%s` came, not `%s`", what, got, text);
}

static void servers(void) {
    struct connection *c = all;
    for (int i = 0; i < KINDS; i++)
        if (i != ENDED && i != GONE)
            same_names(c[i].server, c[i].names + 2, "a server");
    if (loses("bytes")) {
        char one;
        CHECK(recv(c[PLAIN].server, &one, 1, 0) == 1, "recv");
    }
    expect(c[PLAIN].server, "to the server", "plain");
    CHECK(send(c[PLAIN].server, "more", 4, MSG_NOSIGNAL) == 4, "send");
    static unsigned char block[1 << 16];
    size_t at = 0;
    struct timeval limit = {5, 0};
    setsockopt(c[FULL].server, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    for (ssize_t got; at < filled && (got = recv(c[FULL].server, block, filled - at < sizeof block ? filled - at : sizeof block, 0)) > 0;
         at += got)
        for (ssize_t i = 0; i < got; i++)
            REQUIRE(block[i] == pattern(at + i));
    CHECK(at == filled, "%zu of %zu bytes came", at, filled);
    if (together)
        CHECK(send(c[FULL].client, "last", 4, MSG_NOSIGNAL) == 4, "send after a full window");
    expect(c[FULL].server, "last", "what was sent after a full window");
    expect(c[HALF].server, "half", "half-closed");
    expect(c[HALF].server, "", "the end of a half-closed one");
    CHECK(send(c[HALF].server, "answer", 6, MSG_NOSIGNAL) == 6, "send to a half-closed one");
    expect(c[GONE].server, "gone", "of one that was closed");
    expect(c[GONE].server, "", "the end of one that was closed");
    expect(c[ENDED].server, "ended", "of one that was ended");
    expect(c[ENDED].server, "", "the end of one that was ended");
    char one;
    CHECK(recv(c[READ_SHUT].server, &one, 1, MSG_DONTWAIT) == 0, "its read side was shut down");
    for (int i = 0; i < 3; i++) {
        struct pollfd poll_listener = {listener, POLLIN, 0};
        if (poll(&poll_listener, 1, 5000) != 1) {
            FAIL("connection %d does not wait to be accepted", i);
            break;
        }
        int fd = accept(listener, NULL, NULL);
        if (loses("order"))
            fd = i == 2 ? fd : accept(listener, NULL, NULL);
        char text[8] = {'0' + i};
        CHECK(fd >= 0, "accept");
        CHECK(write(fd, text, 1) == 1, "write");
        close(fd);
    }
}

static void clients(void) {
    struct connection *c = all;
    for (int i = 0; i < KINDS; i++)
        if (i != ENDED && i != GONE)
            same_names(c[i].client, c[i].names, "a client");
    int value = 0;
    socklen_t length = sizeof value;
    if (loses("options"))
        setsockopt(c[PLAIN].client, IPPROTO_TCP, TCP_NODELAY, &value, sizeof value);
    CHECK(getsockopt(c[PLAIN].client, IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0 && value, "TCP_NODELAY");
    length = sizeof value;
    CHECK(getsockopt(c[HALF].client, IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0 && !value, "TCP_NODELAY is set");
    length = sizeof value;
    CHECK(getsockopt(c[HALF].client, SOL_SOCKET, SO_REUSEADDR, &value, &length) == 0 && !value, "SO_REUSEADDR is set");
    expect(c[PLAIN].client, "to the client", "plain");
    if (!together)
        CHECK(send(c[FULL].client, "last", 4, MSG_NOSIGNAL) == 4, "send after a full window");
    CHECK(send(c[HALF].client, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "a side that was shut down takes bytes");
}

static void clients_after(void) {
    expect(all[PLAIN].client, "more", "plain, afterwards");
    expect(all[HALF].client, "answer", "the answer of a half-closed one");
    for (int i = 0; i < 3; i++) {
        char text[8] = {'0' + i};
        expect(waiting[i], text, "one that was not accepted");
    }
}

int main(int argc, char **argv) {
    REQUIRE(argc == 3);
    int server = argv[1][0] == '4' ? AF_INET : AF_INET6, client = argv[1][0] == '6' ? AF_INET6 : AF_INET;
    int on = 1;
    struct sockaddr_in6 address = {.sin6_family = AF_INET6};
    struct sockaddr_in four = {.sin_family = AF_INET};
    REQUIRE((listener = socket(server, SOCK_STREAM | SOCK_NONBLOCK, 0)) >= 0);
    REQUIRE(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    REQUIRE(bind(listener, server == AF_INET ? (void *)&four : (void *)&address,
                 server == AF_INET ? sizeof four : sizeof address) == 0 && listen(listener, 16) == 0);
    int port = named(listener, false).sin6_port;
    for (int i = 0; i < KINDS; i++) {
        all[i].client = connected(client, port);
        struct pollfd arrived = {listener, POLLIN, 0};
        REQUIRE(poll(&arrived, 1, 5000) == 1 && (all[i].server = accept(listener, NULL, NULL)) >= 0);
        note_names(all[i].client, all[i].names), note_names(all[i].server, all[i].names + 2);
    }
    REQUIRE(setsockopt(all[PLAIN].client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
    REQUIRE(send(all[PLAIN].client, "to the server", 13, 0) == 13);
    REQUIRE(send(all[PLAIN].server, "to the client", 13, 0) == 13);
    static unsigned char block[5000];
    for (;;) {
        for (size_t i = 0; i < sizeof block; i++)
            block[i] = pattern(filled + i);
        ssize_t sent = send(all[FULL].client, block, sizeof block, MSG_DONTWAIT);
        if (sent < 0)
            break;
        filled += sent;
    }
    REQUIRE(send(all[HALF].client, "half", 4, 0) == 4 && shutdown(all[HALF].client, SHUT_WR) == 0);
    REQUIRE(send(all[GONE].client, "gone", 4, 0) == 4 && close(all[GONE].client) == 0);
    REQUIRE(send(all[ENDED].client, "ended", 5, 0) == 5 && shutdown(all[ENDED].client, SHUT_WR) == 0);
    REQUIRE(shutdown(all[ENDED].server, SHUT_WR) == 0);
    REQUIRE(shutdown(all[READ_SHUT].server, SHUT_RD) == 0);
    REQUIRE(readable(all[FULL].server) > 0);
    for (int i = 0; i < 3; i++) {
        // Which came first the kernel tells to within a tick of its clock, which is 10 ms at most.
        sleep_ms(12);
        waiting[i] = connected(client, port);
    }
    together = strcmp(argv[2], "one") == 0;
    if (together) {
        until_go();
        clients(), servers(), clients_after();
        return verdict();
    }
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        for (int i = 0; i < KINDS; i++)
            if (i != GONE)
                close(all[i].client);
        for (int i = 0; i < 3; i++)
            close(waiting[i]);
        await_go();
        servers();
        _exit(atomic_load(&failures) != 0);
    }
    close(listener);
    for (int i = 0; i < KINDS; i++)
        close(all[i].server);
    until_go();
    clients(), clients_after();
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child has found failures: %#x", status);
    return verdict();
}
