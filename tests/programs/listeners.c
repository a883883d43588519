// Listening TCP sockets (IPv4, IPv6, Multipath TCP), bound UDP sockets, a unix listener and a bound unix datagram socket.
#include "verify.h"
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un local;
};

static union address address_of(int fd, socklen_t *length) {
    union address address = {0};
    *length = sizeof address;
    CHECK(getsockname(fd, &address.any, length) == 0, "getsockname of descriptor %d", fd);
    return address;
}

static int make(int domain, int type, int protocol, const char *path) {
    union address address = {.any.sa_family = domain};
    socklen_t length = domain == AF_INET ? sizeof address.v4 : domain == AF_INET6 ? sizeof address.v6 : sizeof address.local;
    int on = 1, fd = socket(domain, type | SOCK_CLOEXEC, protocol);
    if (domain == AF_INET)
        address.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (domain == AF_INET6)
        address.v6.sin6_addr = in6addr_loopback;
    if (path)
        strcpy(address.local.sun_path, path);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (domain == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    // A machine without IPv6 has nothing to lose of it.
    if (bind(fd, &address.any, length) != 0)
        return -1;
    REQUIRE(type == SOCK_DGRAM || listen(fd, 16) == 0);
    return fd;
}

static void reach(int fd, int type, const char *name) {
    socklen_t length;
    char got[8] = "";
    union address address = address_of(fd, &length);
    int client = socket(address.any.sa_family, type, 0), server = fd;
    CHECK(connect(client, &address.any, length) == 0, "connecting to the %s socket", name);
    if (type == SOCK_STREAM) {
        fcntl(fd, F_SETFL, O_NONBLOCK);
        for (int i = 0; i < 100 && (server = accept(fd, NULL, NULL)) < 0; i++)
            sleep_ms(1);
    }
    CHECK(send(client, "hello", 5, MSG_NOSIGNAL) == 5, "sending to the %s socket", name);
    struct timeval second = {1, 0};
    setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    CHECK(recv(server, got, 8, 0) == 5 && memcmp(got, "hello", 5) == 0, "the %s socket got `%s`", name, got);
    close(client);
}

int main(void) {
    static const struct { const char *name; int domain, type, protocol; const char *path; } all[] = {
        {"TCP v4", AF_INET, SOCK_STREAM, 0, NULL},     {"TCP v6", AF_INET6, SOCK_STREAM, 0, NULL},
        {"UDP v4", AF_INET, SOCK_DGRAM, 0, NULL},      {"UDP v6", AF_INET6, SOCK_DGRAM, 0, NULL},
        {"unix stream", AF_UNIX, SOCK_STREAM, 0, "stream"}, {"unix datagram", AF_UNIX, SOCK_DGRAM, 0, "datagram"},
        {"MPTCP", AF_INET, SOCK_STREAM, IPPROTO_MPTCP, NULL},
    };
    enum { COUNT = sizeof all / sizeof *all };
    int fds[COUNT], on = 0;
    union address before[COUNT];
    socklen_t lengths[COUNT], length;
    for (int i = 0; i < COUNT; i++) {
        fds[i] = make(all[i].domain, all[i].type, all[i].protocol, all[i].path);
        REQUIRE(fds[i] >= 0 || all[i].domain == AF_INET6 || all[i].protocol == IPPROTO_MPTCP);
        if (fds[i] >= 0)
            before[i] = address_of(fds[i], &lengths[i]);
    }
    int keep_alive = 1;
    REQUIRE(setsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &keep_alive, sizeof keep_alive) == 0);

    until_go();
    if (loses("address")) {
        int other = make(AF_INET, SOCK_STREAM, 0, NULL);
        CHECK(dup3(other, fds[0], O_CLOEXEC) == fds[0], "dup3");
    }
    if (loses("listening")) {
        int other = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(dup3(other, fds[4], O_CLOEXEC) == fds[4], "dup3");
    }
    if (loses("option"))
        setsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    for (int i = 0; i < COUNT; i++) {
        if (fds[i] < 0)
            continue;
        union address now = address_of(fds[i], &length);
        CHECK(length == lengths[i] && memcmp(&now, &before[i], length) == 0, "the %s socket has another address", all[i].name);
        CHECK(fcntl(fds[i], F_GETFD) == FD_CLOEXEC, "close-on-exec of the %s socket is lost", all[i].name);
        length = sizeof on;
        CHECK(getsockopt(fds[i], SOL_SOCKET, SO_PROTOCOL, &on, &length) == 0 && (!all[i].protocol || on == all[i].protocol),
              "the %s socket has protocol %d", all[i].name, on);
        length = sizeof on;
        CHECK(getsockopt(fds[i], SOL_SOCKET, SO_ACCEPTCONN, &on, &length) == 0 && on == (all[i].type == SOCK_STREAM),
              "the %s socket listens: %d", all[i].name, on);
        if (!atomic_load(&failures))
            reach(fds[i], all[i].type, all[i].name);
    }
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &on, &length) == 0 && on == 1, "SO_KEEPALIVE is lost");
    return verdict();
}
