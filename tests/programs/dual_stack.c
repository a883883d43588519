// A socket of IPv6 that carries IPv4 as well has options and groups of both.
#include "verify.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

static const struct {
    int name, value;
} options[] = {
    {IP_TOS, 0x10},     {IP_TTL, 9},      {IP_PKTINFO, 1},       {IP_MTU_DISCOVER, IP_PMTUDISC_DO},
    {IP_RECVTOS, 1},    {IP_RECVERR, 1},  {IP_MULTICAST_TTL, 3}, {IP_MULTICAST_ALL, 0},
    {IP_RECVTTL, 1},    {IP_MINTTL, 2},
};
enum { COUNT = sizeof options / sizeof *options };

static int get(int socket, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    getsockopt(socket, IPPROTO_IP, name, &value, &length);
    return value;
}

int main(void) {
    int both = socket(AF_INET6, SOCK_DGRAM, 0), stream = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6};
    socklen_t length = sizeof address;
    // A machine without IPv6 has nothing to lose of it.
    if (both < 0 || bind(both, (void *)&address, sizeof address) != 0) {
        both = -1;
    } else {
        REQUIRE(getsockname(both, (void *)&address, &length) == 0);
        for (int i = 0; i < COUNT; i++)
            REQUIRE(setsockopt(both, IPPROTO_IP, options[i].name, &options[i].value, sizeof(int)) == 0);
        REQUIRE(setsockopt(stream, IPPROTO_IP, IP_TOS, &(int){8}, sizeof(int)) == 0);
    }
    unsigned loopback = if_nametoindex("lo");
    struct in_addr device = {htonl(INADDR_LOOPBACK)}, outgoing = {0};
    struct ip_mreqn group = {.imr_ifindex = loopback};
    struct ipv6_mreq group6 = {.ipv6mr_interface = loopback};
    inet_aton("239.9.9.9", &group.imr_multiaddr);
    inet_pton(AF_INET6, "ff02::1234", &group6.ipv6mr_multiaddr);
    if (both >= 0) {
        REQUIRE(setsockopt(both, IPPROTO_IP, IP_MULTICAST_IF, &device, sizeof device) == 0);
        REQUIRE(setsockopt(both, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0);
        REQUIRE(setsockopt(both, IPPROTO_IPV6, IPV6_JOIN_GROUP, &group6, sizeof group6) == 0);
    }

    until_go();
    if (both < 0) {
        CHECK(!getenv("STASIS_TEST_LOSE"), "there is no IPv6");
        return verdict();
    }
    if (loses("options"))
        setsockopt(both, IPPROTO_IP, IP_PKTINFO, &(int){0}, sizeof(int));
    if (loses("stream"))
        setsockopt(stream, IPPROTO_IP, IP_TOS, &(int){0}, sizeof(int));
    if (loses("group"))
        setsockopt(both, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group);
    for (int i = 0; i < COUNT; i++)
        CHECK(get(both, options[i].name) == options[i].value, "option %d: %d, not %d", options[i].name, get(both, options[i].name),
              options[i].value);
    CHECK(get(stream, IP_TOS) == 8, "IP_TOS of a stream is %d", get(stream, IP_TOS));
    length = sizeof outgoing;
    CHECK(getsockopt(both, IPPROTO_IP, IP_MULTICAST_IF, &outgoing, &length) == 0 && outgoing.s_addr == device.s_addr,
          "its groups are sent to by another device");
    int sender = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = {AF_INET, address.sin6_port, group.imr_multiaddr, ""};
    REQUIRE(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &device, sizeof device) == 0);
    CHECK(sendto(sender, "x", 1, 0, (void *)&to, sizeof to) == 1, "sendto");
    struct pollfd ask = {both, POLLIN, 0};
    char text;
    CHECK(poll(&ask, 1, 1000) == 1 && recv(both, &text, 1, 0) == 1, "nothing comes to the group");
    CHECK(setsockopt(both, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group) == 0, "it is no member of the group of IPv4");
    CHECK(setsockopt(both, IPPROTO_IPV6, IPV6_LEAVE_GROUP, &group6, sizeof group6) == 0, "nor of that of IPv6");
    return verdict();
}
