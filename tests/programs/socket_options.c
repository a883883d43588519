// Options of sockets: filters (SO_ATTACH_FILTER), one of them locked, groups that a socket is a member of, numbers of UDP, TCP and IP,
// the options of packets, and TCP Fast Open at a socket that listens.
#include "verify.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>

static int get(int socket, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    getsockopt(socket, level, name, &value, &length);
    return value;
}

static void set(int socket, int level, int name, int value) {
    REQUIRE(setsockopt(socket, level, name, &value, sizeof value) == 0);
}

static int bound(int type, int port) {
    int it = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = port};
    REQUIRE(it >= 0 && bind(it, (void *)&address, sizeof address) == 0);
    return it;
}

static int port_of(int socket) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    REQUIRE(getsockname(socket, (void *)&address, &length) == 0);
    return address.sin_port;
}

static bool send_to(const char *host, int port) {
    int from = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = port};
    // The loopback device is named by its address: 127.0.0.1.
    struct in_addr loopback = {htonl(INADDR_LOOPBACK)};
    inet_aton(host, &to.sin_addr);
    bool sent = setsockopt(from, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof loopback) == 0 &&
                sendto(from, "hello", 5, 0, (void *)&to, sizeof to) == 5;
    close(from);
    return sent;
}

static bool receives(int socket) {
    struct pollfd ask = {socket, POLLIN, 0};
    char text[9];
    return poll(&ask, 1, 1000) == 1 && recv(socket, text, sizeof text, 0) == 5;
}

static void filter(int socket, unsigned keep) {
    struct sock_filter code[] = {{BPF_LD | BPF_W | BPF_LEN, 0, 0, 0}, {BPF_RET | BPF_K, 0, 0, keep}};
    struct sock_fprog program = {2, code};
    REQUIRE(setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
}

int main(void) {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    filter(pair[1], 2);
    int locked = bound(SOCK_DGRAM, 0);
    filter(locked, 1000);
    set(locked, SOL_SOCKET, SO_LOCK_FILTER, 1);

    int member = bound(SOCK_DGRAM, 0), members_port = port_of(member);
    struct in_addr loopback = {htonl(INADDR_LOOPBACK)};
    REQUIRE(setsockopt(member, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof loopback) == 0);
    struct ip_mreqn group = {.imr_ifindex = if_nametoindex("lo")};
    inet_aton("239.1.2.3", &group.imr_multiaddr);
    REQUIRE(setsockopt(member, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) == 0);
    struct group_source_req source = {.gsr_interface = group.imr_ifindex};
    struct sockaddr_in *of = (void *)&source.gsr_group, *by = (void *)&source.gsr_source;
    of->sin_family = by->sin_family = AF_INET;
    inet_aton("239.7.7.7", &of->sin_addr);
    inet_aton("127.0.0.1", &by->sin_addr);
    REQUIRE(setsockopt(member, IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, &source, sizeof source) == 0);

    int options = bound(SOCK_DGRAM, 0);
    const struct {
        int level, name, value;
    } of_udp[] = {
        {SOL_SOCKET, SO_NO_CHECK, 1},         {SOL_SOCKET, SO_TIMESTAMPNS, 1}, {SOL_SOCKET, SO_RXQ_OVFL, 1},
        {IPPROTO_IP, IP_RECVTTL, 1},          {IPPROTO_IP, IP_RECVTOS, 1},     {IPPROTO_IP, IP_MULTICAST_ALL, 0},
        {IPPROTO_IP, IP_RECVORIGDSTADDR, 1},  {IPPROTO_IP, IP_MINTTL, 3},      {IPPROTO_UDP, UDP_SEGMENT, 1400},
        {IPPROTO_UDP, UDP_NO_CHECK6_TX, 1},
    };
    const int count = sizeof of_udp / sizeof *of_udp;
    for (int i = 0; i < count; i++)
        set(options, of_udp[i].level, of_udp[i].name, of_udp[i].value);

    const struct {
        int domain, type, level, name, value;
    } each[] = {
        {AF_UNIX, SOCK_STREAM, SOL_SOCKET, 83 /* SO_PASSRIGHTS */, 0},
        {AF_INET, SOCK_DGRAM, SOL_SOCKET, SO_TIMESTAMP_NEW, 1},
        {AF_INET, SOCK_DGRAM, SOL_SOCKET, SO_TIMESTAMPNS_NEW, 1},
        {AF_INET, SOCK_DGRAM, SOL_SOCKET, SO_TIMESTAMPING_NEW, 0x18},
        {AF_INET, SOCK_DGRAM, SOL_SOCKET, SO_BUF_LOCK, 2},
        {AF_INET, SOCK_DGRAM, SOL_SOCKET, 75 /* SO_RCVMARK */, 1},
        {AF_INET, SOCK_DGRAM, IPPROTO_IP, IP_RECVOPTS, 1},
        {AF_INET, SOCK_DGRAM, IPPROTO_IP, IP_RECVFRAGSIZE, 1},
        {AF_INET, SOCK_STREAM, IPPROTO_IP, 51 /* IP_LOCAL_PORT_RANGE */, 45000 << 16 | 40000},
        {AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_2292PKTINFO, 1},
        {AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 11 /* IPV6_FLOWINFO */, 1},
        {AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0},
        {AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_RECVRTHDR, 1},
        {AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_RECVPATHMTU, 1},
        {AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1},
        {AF_INET, SOCK_STREAM, IPPROTO_TCP, TCP_MAXSEG, 1000},
        {AF_INET, SOCK_STREAM, IPPROTO_TCP, TCP_WINDOW_CLAMP, 20000},
        {AF_INET, SOCK_STREAM, IPPROTO_TCP, TCP_SAVE_SYN, 1},
        {AF_INET, SOCK_STREAM, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1},
        {AF_INET, SOCK_STREAM, IPPROTO_TCP, 44 /* TCP_RTO_MAX_MS */, 5000},
        {AF_INET, SOCK_DGRAM, IPPROTO_UDP, UDP_CORK, 1},
    };
    enum { EACH = sizeof each / sizeof *each };
    int with[EACH], had[EACH];
    for (int i = 0; i < EACH; i++) {
        with[i] = socket(each[i].domain, each[i].type, 0);
        // Not every kernel has every one.
        setsockopt(with[i], each[i].level, each[i].name, &each[i].value, sizeof(int));
        had[i] = get(with[i], each[i].level, each[i].name);
    }
    int routed = bound(SOCK_DGRAM, 0);
    // Record route (RFC 791), with room for one address.
    const unsigned char route[8] = {7, 7, 4};
    REQUIRE(setsockopt(routed, IPPROTO_IP, IP_OPTIONS, route, sizeof route) == 0);

    int listener = bound(SOCK_STREAM, 0);
    set(listener, IPPROTO_TCP, TCP_FASTOPEN, 7);
    REQUIRE(listen(listener, 5) == 0);

    until_go();

    if (loses("filter"))
        setsockopt(pair[1], SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, sizeof(int));
    if (loses("lock")) {
        close(locked);
        locked = bound(SOCK_DGRAM, 0);
    }
    if (loses("group"))
        setsockopt(member, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group);
    if (loses("source"))
        setsockopt(member, IPPROTO_IP, MCAST_LEAVE_SOURCE_GROUP, &source, sizeof source);
    if (loses("options"))
        set(options, IPPROTO_IP, IP_RECVTTL, 0);
    if (loses("each"))
        for (int i = 0; i < EACH; i++)
            dup2(socket(each[i].domain, each[i].type, 0), with[i]);
    if (loses("route"))
        setsockopt(routed, IPPROTO_IP, IP_OPTIONS, route, 0);
    if (loses("fast open"))
        listener = bound(SOCK_STREAM, 0);

    char text[9];
    REQUIRE(send(pair[0], "abcdef", 6, 0) == 6);
    CHECK(recv(pair[1], text, sizeof text, MSG_DONTWAIT) == 2, "the filter does not cut off what is behind two bytes");
    CHECK(get(locked, SOL_SOCKET, SO_LOCK_FILTER) == 1, "the filter is not locked");
    CHECK(setsockopt(locked, SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, sizeof(int)) == -1 && errno == EPERM, "it can be removed");

    CHECK(send_to("239.1.2.3", members_port) && receives(member), "nothing comes to the group");
    CHECK(send_to("239.7.7.7", members_port) && receives(member), "nothing comes from the source");
    struct in_addr outgoing = {0};
    socklen_t length = sizeof outgoing;
    CHECK(getsockopt(member, IPPROTO_IP, IP_MULTICAST_IF, &outgoing, &length) == 0 &&
              outgoing.s_addr == loopback.s_addr, "its groups are sent to by another device");
    CHECK(setsockopt(member, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group) == 0, "it is no member of the group");
    CHECK(setsockopt(member, IPPROTO_IP, MCAST_LEAVE_SOURCE_GROUP, &source, sizeof source) == 0, "nor of that of a source");
    for (int i = 0; i < count; i++)
        CHECK(get(options, of_udp[i].level, of_udp[i].name) == of_udp[i].value, "level %d, option %d: %d, not %d", of_udp[i].level,
              of_udp[i].name, get(options, of_udp[i].level, of_udp[i].name), of_udp[i].value);
    for (int i = 0; i < EACH; i++)
        CHECK(get(with[i], each[i].level, each[i].name) == had[i], "level %d, option %d of a socket of its own: %d, not %d",
              each[i].level, each[i].name, get(with[i], each[i].level, each[i].name), had[i]);
    unsigned char found[40];
    socklen_t found_length = sizeof found;
    CHECK(getsockopt(routed, IPPROTO_IP, IP_OPTIONS, found, &found_length) == 0 && found_length == sizeof route &&
              memcmp(found, route, sizeof route) == 0,
          "the options of its packets are lost");
    CHECK(get(listener, IPPROTO_TCP, TCP_FASTOPEN) == 7, "fast open: %d", get(listener, IPPROTO_TCP, TCP_FASTOPEN));
    return verdict();
}
