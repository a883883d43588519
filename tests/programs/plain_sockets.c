// Sockets that lead to the kernel (netlink: routes, events of devices, more than 32 groups) and to the network as such
// (raw ones, and those that ping): they are bound, filtered and of the groups that they were.
#include "verify.h"

#include <arpa/inet.h>
#include <linux/icmp.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

static struct sockaddr_nl address_of(int socket) {
    struct sockaddr_nl address = {0};
    socklen_t length = sizeof address;
    REQUIRE(getsockname(socket, (void *)&address, &length) == 0);
    return address;
}

static int option(int socket, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    getsockopt(socket, level, name, &value, &length);
    return value;
}

// How many links the kernel answers with, over and over as libc's getaddrinfo asks.
static int count_links(int socket) {
    struct {
        struct nlmsghdr header;
        struct rtgenmsg message;
    } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 7, 0}, {AF_UNSPEC}};
    if (send(socket, &request, sizeof request, 0) != sizeof request)
        return -1;
    static char answer[65536];
    for (int links = 0;;) {
        struct pollfd ask = {socket, POLLIN, 0};
        if (poll(&ask, 1, 2000) != 1)
            return -2;
        int length = recv(socket, answer, sizeof answer, 0);
        for (struct nlmsghdr *it = (void *)answer; NLMSG_OK(it, (unsigned)length); it = NLMSG_NEXT(it, length)) {
            if (it->nlmsg_pid != address_of(socket).nl_pid)
                return -3;
            if (it->nlmsg_type == NLMSG_DONE)
                return links;
            links++;
        }
    }
}

// Whether an answer comes, perhaps behind those to other programs.
static bool echoes(int socket, int type) {
    struct icmphdr echo = {.type = ICMP_ECHO, .un.echo.sequence = htons(5)};
    if (type == SOCK_RAW)
        echo.checksum = (uint16_t)~(ICMP_ECHO + htons(5));
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (sendto(socket, &echo, sizeof echo, 0, (void *)&to, sizeof to) != sizeof echo)
        return false;
    struct pollfd ask = {socket, POLLIN, 0};
    char answer[512];
    return poll(&ask, 1, 2000) == 1 && recv(socket, answer, sizeof answer, 0) > 0;
}

static atomic_int stop;

// libc asks the kernel for its addresses by a netlink socket, each time; a checkpoint waits for its answer.
static void *resolve(void *unused) {
    struct addrinfo hints = {.ai_flags = AI_ADDRCONFIG, .ai_socktype = SOCK_STREAM}, *found;
    while (!atomic_load(&stop)) {
        int error = getaddrinfo("127.0.0.1", "80", &hints, &found);
        if (error) {
            FAIL("getaddrinfo: %s", gai_strerror(error));
            break;
        }
        freeaddrinfo(found);
        sleep_ms(1);
    }
    return unused;
}

int main(void) {
    pthread_t resolver = start_thread(resolve, NULL);
    int routes = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK, NETLINK_ROUTE);
    int fresh = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
    struct sockaddr_nl any = {.nl_family = AF_NETLINK};
    struct sockaddr_nl groups = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_MROUTE | RTMGRP_NOTIFY};
    REQUIRE(bind(routes, (void *)&any, sizeof any) == 0 && bind(events, (void *)&groups, sizeof groups) == 0);
    int group = RTNLGRP_NEXTHOP + 1, on = 1;
    REQUIRE(setsockopt(events, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0);
    REQUIRE(setsockopt(routes, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on) == 0);
    int links = count_links(routes);
    REQUIRE(links > 0);
    uint32_t port = address_of(routes).nl_pid;
    // Only the privileged have raw sockets; who may ping is said by net.ipv4.ping_group_range.
    int raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), ping = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct icmp_filter filter = {~(1u << ICMP_ECHOREPLY)}, filter_now = {0};
    if (raw >= 0) {
        REQUIRE(setsockopt(raw, SOL_RAW, ICMP_FILTER, &filter, sizeof filter) == 0);
        REQUIRE(bind(raw, (void *)&loopback, sizeof loopback) == 0);
    }
    REQUIRE(ping < 0 || bind(ping, (void *)&loopback, sizeof loopback) == 0);

    until_go();
    if (loses("port")) {
        int other = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
        struct sockaddr_nl another = {.nl_family = AF_NETLINK, .nl_pid = 0x70000001};
        REQUIRE(bind(other, (void *)&another, sizeof another) == 0 && dup2(other, routes) == routes);
    }
    if (loses("groups"))
        setsockopt(events, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &group, sizeof group);
    CHECK(address_of(routes).nl_pid == port, "the port is %#x, not %#x", address_of(routes).nl_pid, port);
    CHECK(count_links(routes) == links, "the kernel does not answer as before");
    CHECK(option(routes, SOL_NETLINK, NETLINK_EXT_ACK) == 1, "an option is lost");
    CHECK(address_of(events).nl_groups == groups.nl_groups, "the groups are %#x", address_of(events).nl_groups);
    uint32_t listed[16] = {0};
    socklen_t length = sizeof listed;
    CHECK(getsockopt(events, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, listed, &length) == 0 &&
              listed[(group - 1) / 32] >> (group - 1) % 32 & 1,
          "a group beyond the 32nd is lost");
    CHECK(fcntl(events, F_GETFL) & O_NONBLOCK, "O_NONBLOCK is lost");
    CHECK(address_of(fresh).nl_pid == 0, "a socket is bound that nobody has bound");
    if (raw >= 0) {
        if (loses("raw"))
            dup2(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), raw);
        length = sizeof filter_now;
        CHECK(getsockopt(raw, SOL_RAW, ICMP_FILTER, &filter_now, &length) == 0 && filter_now.data == filter.data,
              "the filter of a raw socket is %#x", filter_now.data);
        CHECK(echoes(raw, SOCK_RAW), "a raw socket hears no answer");
    }
    CHECK(ping < 0 || echoes(ping, SOCK_DGRAM), "a socket that pings hears no answer");
    atomic_store(&stop, 1);
    pthread_join(resolver, NULL);
    return verdict();
}
