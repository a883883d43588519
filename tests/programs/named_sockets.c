// Sockets with addresses, the ends in one process or in two: unix stream and SEQPACKET connections by path and by
// abstract name with what waits to be accepted, unix and UDP datagrams that were not read with their senders' addresses.
// Arguments: one|two.
#include "verify.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

struct address {
    struct sockaddr_storage name;
    socklen_t length;
};

enum { STREAM, PACKETS, ABSTRACT, UNBOUND, KINDS };

static int clients[KINDS], servers[KINDS], listeners[KINDS], waiting[KINDS][2], log_fd, log_client, udp[3], six[2];
static struct address names[KINDS][4], log_name, udp_names[3], six_names[2];
static char directory[100];

static struct address of_path(const char *name, bool abstract) {
    struct address address = {.length = 0};
    struct sockaddr_un *un = (void *)&address.name;
    un->sun_family = AF_UNIX;
    snprintf(un->sun_path + abstract, sizeof un->sun_path - 1, "%s/%s", directory, name);
    address.length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(un->sun_path + abstract);
    return address;
}

static struct address of(int fd, bool peer) {
    struct address address;
    memset(&address, 0, sizeof address);
    address.length = sizeof address.name;
    REQUIRE((peer ? getpeername : getsockname)(fd, (void *)&address.name, &address.length) == 0);
    return address;
}

static bool same(struct address one, struct address other) {
    return one.length == other.length && memcmp(&one.name, &other.name, one.length) == 0;
}

static int bound(int domain, int type, struct address address) {
    int fd = socket(domain, type, 0);
    REQUIRE(fd >= 0 && bind(fd, (void *)&address.name, address.length) == 0);
    return fd;
}

static int connected(int type, struct address to) {
    int fd = socket(to.name.ss_family, type, 0);
    REQUIRE(fd >= 0 && connect(fd, (void *)&to.name, to.length) == 0);
    return fd;
}

static void expect_from(int fd, const char *text, struct address *from, const char *what) {
    char got[64] = "";
    struct timeval limit = {5, 0};
    struct address sender;
    memset(&sender, 0, sizeof sender);
    sender.length = sizeof sender.name;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    int type = 0;
    socklen_t size = sizeof type;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    size_t most = type == SOCK_STREAM ? strlen(text) : sizeof got - 1;
    ssize_t length = recvfrom(fd, got, most, 0, (void *)&sender.name, &sender.length);
    CHECK(length == (ssize_t)strlen(text) && strcmp(got, text) == 0, "%s: `%s` came, not `%s`", what, got, text);
    if (from)
        CHECK(same(sender, *from), "%s came from another address", what);
}

static void of_servers(void) {
    if (loses("datagrams")) {
        char one;
        CHECK(recv(log_fd, &one, 1, 0) == 1, "recv");
    }
    for (int i = 0; i < KINDS; i++) {
        CHECK(same(of(servers[i], false), names[i][2]) && same(of(servers[i], true), names[i][3]),
              "the names of server %d differ", i);
        if (loses("bytes") && i == STREAM)
            CHECK(recv(servers[i], (char[1]){0}, 1, 0) == 1, "recv");
        expect_from(servers[i], "one", NULL, "the first message");
        CHECK(send(servers[i], "reply", 5, MSG_NOSIGNAL) == 5, "reply");
        for (int turn = 0; turn < 2; turn++) {
            struct pollfd ready = {listeners[i], POLLIN, 0};
            CHECK(poll(&ready, 1, 5000) == 1, "nothing waits to be accepted");
            int fd = accept(listeners[i], NULL, NULL);
            char text[2] = {'a' + turn};
            CHECK(fd >= 0 && send(fd, text, 1, MSG_NOSIGNAL) == 1, "accept");
            close(fd);
        }
        int late = connected(i == PACKETS ? SOCK_SEQPACKET : SOCK_STREAM, of(listeners[i], false));
        close(late);
    }
    expect_from(log_fd, "named", NULL, "a datagram of a connected sender");
    expect_from(log_fd, "again", NULL, "another one");
    expect_from(udp[0], "first", &udp_names[1], "a UDP datagram");
    expect_from(udp[0], "second", &udp_names[2], "a UDP datagram");
    expect_from(udp[0], "third", &udp_names[1], "a UDP datagram");
    expect_from(six[0], "six", &six_names[1], "a UDP datagram over IPv6");
}

static void of_clients(void) {
    for (int i = 0; i < KINDS; i++)
        CHECK(same(of(clients[i], false), names[i][0]) && same(of(clients[i], true), names[i][1]),
              "the names of client %d differ", i);
    CHECK(same(of(udp[1], false), udp_names[1]) && same(of(udp[1], true), udp_names[0]), "a UDP name differs");
    CHECK(send(udp[1], "later", 5, 0) == 5, "send");
    CHECK(send(log_client, "later", 5, 0) == 5, "send to the log");
}

static void of_clients_after(void) {
    for (int i = 0; i < KINDS; i++) {
        expect_from(clients[i], "before", NULL, "what came before");
        expect_from(clients[i], "reply", NULL, "the reply");
        for (int turn = 0; turn < 2; turn++) {
            char text[2] = {'a' + turn};
            expect_from(waiting[i][turn], text, NULL, "one that was not accepted");
        }
    }
}

static void of_servers_after(void) {
    expect_from(udp[0], "later", &udp_names[1], "a later UDP datagram");
    expect_from(log_fd, "later", NULL, "a later datagram");
}

int main(int argc, char **argv) {
    REQUIRE(argc == 2);
    bool together = strcmp(argv[1], "one") == 0;
    snprintf(directory, sizeof directory, "/tmp/stasis-named-XXXXXX");
    REQUIRE(mkdtemp(directory));
    for (int i = 0; i < KINDS; i++) {
        int type = i == PACKETS ? SOCK_SEQPACKET : SOCK_STREAM;
        char name[20], own[20];
        snprintf(name, sizeof name, "listener%d", i), snprintf(own, sizeof own, "client%d", i);
        listeners[i] = bound(AF_UNIX, type, of_path(name, i == ABSTRACT));
        REQUIRE(listen(listeners[i], 8) == 0);
        clients[i] = i == UNBOUND ? socket(AF_UNIX, type, 0) : bound(AF_UNIX, type, of_path(own, i == ABSTRACT));
        struct address to = of(listeners[i], false);
        REQUIRE(connect(clients[i], (void *)&to.name, to.length) == 0);
        REQUIRE((servers[i] = accept(listeners[i], NULL, NULL)) >= 0);
        names[i][0] = of(clients[i], false), names[i][1] = of(clients[i], true);
        names[i][2] = of(servers[i], false), names[i][3] = of(servers[i], true);
        REQUIRE(send(clients[i], "one", 3, 0) == 3);
        REQUIRE(send(servers[i], "before", 6, 0) == 6);
        for (int turn = 0; turn < 2; turn++)
            waiting[i][turn] = connected(type, to);
    }
    log_fd = bound(AF_UNIX, SOCK_DGRAM, of_path("log", false)), log_name = of(log_fd, false);
    log_client = connected(SOCK_DGRAM, log_name);
    REQUIRE(send(log_client, "named", 5, 0) == 5 && send(log_client, "again", 5, 0) == 5);
    struct address four = {.length = sizeof(struct sockaddr_in)}, other = {.length = sizeof(struct sockaddr_in6)};
    *(struct sockaddr_in *)&four.name =
        (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    *(struct sockaddr_in6 *)&other.name =
        (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    for (int i = 0; i < 3; i++)
        udp[i] = bound(AF_INET, SOCK_DGRAM, four), udp_names[i] = of(udp[i], false);
    for (int i = 0; i < 2; i++)
        six[i] = bound(AF_INET6, SOCK_DGRAM, other), six_names[i] = of(six[i], false);
    REQUIRE(connect(udp[1], (void *)&udp_names[0].name, udp_names[0].length) == 0);
    struct address to = udp_names[0];
    REQUIRE(send(udp[1], "first", 5, 0) == 5);
    REQUIRE(sendto(udp[2], "second", 6, 0, (void *)&to.name, to.length) == 6);
    REQUIRE(send(udp[1], "third", 5, 0) == 5);
    REQUIRE(sendto(six[1], "six", 3, 0, (void *)&six_names[0].name, six_names[0].length) == 3);
    if (together) {
        until_go();
        of_clients(), of_servers(), of_servers_after(), of_clients_after();
    } else {
        pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            for (int i = 0; i < KINDS; i++)
                close(clients[i]), close(waiting[i][0]), close(waiting[i][1]);
            close(udp[1]), close(udp[2]), close(six[1]), close(log_client);
            await_go();
            of_servers(), of_servers_after();
            _exit(atomic_load(&failures) != 0);
        }
        for (int i = 0; i < KINDS; i++)
            close(servers[i]), close(listeners[i]);
        close(udp[0]), close(six[0]), close(log_fd);
        until_go();
        of_clients(), of_clients_after();
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && status == 0, "the child has found failures: %#x", status);
    }
    const char *files[] = {"listener0", "listener1", "listener3", "client0", "client1", "log"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[200];
        struct stat found;
        snprintf(path, sizeof path, "%s/%s", directory, files[i]);
        CHECK(stat(path, &found) == 0 && S_ISSOCK(found.st_mode), "%s is gone", path);
        unlink(path);
    }
    CHECK(rmdir(directory) == 0, "something is left in %s", directory);
    return verdict();
}
