// Datagrams that were not read, in sockets that would not get them now: of a group whose other member has read them, of a
// port that several share of whom one has gone, with a filter that was attached since, at a broadcast address. None comes to
// anybody else when they are put back.
#include "verify.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

enum { SHARING = 3, SENDERS = 40 };

static struct sockaddr_in address_of(int socket) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    REQUIRE(getsockname(socket, (void *)&address, &length) == 0);
    return address;
}

static int bound(const char *host, int port, int option) {
    int it = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = port};
    inet_aton(host, &address.sin_addr);
    REQUIRE(!option || setsockopt(it, SOL_SOCKET, option, &(int){1}, sizeof(int)) == 0);
    REQUIRE(bind(it, (void *)&address, sizeof address) == 0);
    return it;
}

static int member(int port) {
    int it = bound("239.9.9.9", port, SO_REUSEADDR);
    struct ip_mreqn group = {.imr_ifindex = if_nametoindex("lo")};
    inet_aton("239.9.9.9", &group.imr_multiaddr);
    REQUIRE(setsockopt(it, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0);
    return it;
}

static bool gets(int socket, const char *text) {
    char got[64] = "";
    return recv(socket, got, sizeof got, 0) == (ssize_t)strlen(text) && memcmp(got, text, strlen(text)) == 0;
}

int main(void) {
    int sender = bound("127.0.0.1", 0, 0);
    struct in_addr loopback = {htonl(INADDR_LOOPBACK)};
    struct sockaddr_in to, from = address_of(sender), came;
    REQUIRE(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof loopback) == 0);
    REQUIRE(setsockopt(sender, SOL_SOCKET, SO_BROADCAST, &(int){1}, sizeof(int)) == 0);

    int reader = member(0), late = member(address_of(reader).sin_port);
    to = address_of(reader);
    REQUIRE(sendto(sender, "group", 5, 0, (void *)&to, sizeof to) == 5 && gets(reader, "group"));

    int broadcast = bound("127.255.255.255", 0, 0);
    to = address_of(broadcast);
    REQUIRE(sendto(sender, "all", 3, 0, (void *)&to, sizeof to) == 3);

    int filtered = bound("0.0.0.0", 0, 0);
    to = address_of(filtered), to.sin_addr = loopback;
    REQUIRE(sendto(sender, "before", 6, 0, (void *)&to, sizeof to) == 6);
    struct sock_filter nothing[] = {{BPF_RET | BPF_K, 0, 0, 0}};
    struct sock_fprog program = {1, nothing};
    REQUIRE(setsockopt(filtered, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);

    int sharing[SHARING], senders[SENDERS], owner[SENDERS] = {0}, one;
    for (int i = 0; i < SHARING; i++)
        sharing[i] = bound("127.0.0.1", i ? address_of(sharing[0]).sin_port : 0, SO_REUSEPORT);
    to = address_of(sharing[0]);
    for (int i = 0; i < SENDERS; i++) {
        senders[i] = socket(AF_INET, SOCK_DGRAM, 0);
        REQUIRE(sendto(senders[i], &i, sizeof i, 0, (void *)&to, sizeof to) == sizeof i);
    }
    for (int i = 1; i < SHARING; i++) {
        REQUIRE(setsockopt(sharing[i], SOL_SOCKET, SO_PEEK_OFF, &(int){0}, sizeof(int)) == 0);
        while (recv(sharing[i], &one, sizeof one, MSG_PEEK) == sizeof one)
            owner[one] = i;
        REQUIRE(setsockopt(sharing[i], SOL_SOCKET, SO_PEEK_OFF, &(int){-1}, sizeof(int)) == 0);
    }
    close(sharing[0]);

    until_go();
    if (loses("group"))
        CHECK(gets(late, "group"), "recv");
    if (loses("silence"))
        sendto(sender, "group", 5, 0, (void *)&(struct sockaddr_in){AF_INET, address_of(reader).sin_port, address_of(reader).sin_addr, ""}, sizeof to);
    if (loses("broadcast"))
        CHECK(gets(broadcast, "all"), "recv");
    if (loses("filtered"))
        CHECK(gets(filtered, "before"), "recv");
    if (loses("shared"))
        for (int i = 1; i < SHARING; i++)
            recv(sharing[i], &one, sizeof one, 0);
    CHECK(recv(reader, &one, sizeof one, 0) == -1 && errno == EAGAIN, "who has read a datagram has it again");
    socklen_t length = sizeof came;
    char text[9];
    CHECK(recvfrom(late, text, sizeof text, 0, (void *)&came, &length) == 5 && came.sin_port == from.sin_port &&
              came.sin_addr.s_addr == from.sin_addr.s_addr,
          "what came to the group is lost, or is of another");
    CHECK(recv(late, &one, sizeof one, 0) == -1, "it comes twice");
    CHECK(gets(broadcast, "all"), "what came to all is lost");
    CHECK(gets(filtered, "before"), "what came before the filter is lost");
    for (int i = 1; i < SHARING; i++)
        while (recv(sharing[i], &one, sizeof one, 0) == sizeof one) {
            CHECK(owner[one] == i, "datagram %d is in socket %d, and was in %d", one, i, owner[one]);
            owner[one] = 0;
        }
    for (int i = 0; i < SENDERS; i++)
        CHECK(!owner[i], "datagram %d is lost", i);
    // They have their addresses, and hear what comes.
    to = address_of(reader);
    CHECK(sendto(sender, "again", 5, 0, (void *)&to, sizeof to) == 5 && gets(reader, "again") && gets(late, "again"),
          "they are no members any more");
    return verdict();
}
