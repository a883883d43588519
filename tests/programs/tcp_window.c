// A TCP connection whose receive buffer is full, and larger than who is not privileged may ask for (net.core.rmem_max): the
// kernel has made it so. More waits at the other end.
#include "verify.h"

#include <linux/capability.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static unsigned char block[1 << 16];

static unsigned char pattern(size_t at) {
    return at * 31 >> 3 ^ at;
}

static int size_of(int socket) {
    int size = 0;
    socklen_t length = sizeof size;
    REQUIRE(getsockopt(socket, SOL_SOCKET, SO_RCVBUF, &size, &length) == 0);
    return size;
}

// Another one has another (SO_COOKIE): after a restart sizes are the kernel's to choose.
static uint64_t cookie_of(int socket) {
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    REQUIRE(getsockopt(socket, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0);
    return cookie;
}

static void give_up_privileges(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    REQUIRE(syscall(SYS_capget, &header, sets) == 0);
    sets[0].effective &= ~(1u << CAP_NET_ADMIN), sets[0].permitted &= ~(1u << CAP_NET_ADMIN);
    REQUIRE(syscall(SYS_capset, &header, sets) == 0);
}

int main(void) {
    give_up_privileges();
    char text[32];
    read_proc("/proc/sys/net/core/rmem_max", text, sizeof text);
    int most = 2 * atoi(text);
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    REQUIRE(bind(listener, (void *)&address, length) == 0 && listen(listener, 1) == 0);
    REQUIRE(getsockname(listener, (void *)&address, &length) == 0);
    REQUIRE(connect(client, (void *)&address, length) == 0 || errno == EINPROGRESS);
    int server = accept(listener, NULL, NULL);
    // It grows for what its reader waits for, as it does for what a busy reader has read.
    for (int least = most / 8; size_of(server) <= most && least < 2 * most; least += most / 8)
        REQUIRE(setsockopt(server, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least) == 0);
    REQUIRE(setsockopt(server, SOL_SOCKET, SO_RCVLOWAT, &(int){1}, sizeof(int)) == 0);
    int size = size_of(server);
    size_t sent = 0, received = 0;
    for (struct pollfd ask = {client, POLLOUT, 0}; poll(&ask, 1, 300) == 1;) {
        for (size_t i = 0; i < sizeof block; i++)
            block[i] = pattern(sent + i);
        ssize_t count = send(client, block, sizeof block, 0);
        sent += count > 0 ? count : 0;
    }
    int unread = 0;
    uint64_t cookie = cookie_of(server);
    REQUIRE(ioctl(server, FIONREAD, &unread) == 0 && (size_t)unread < sent);
    if (size <= most)
        printf("the buffer has %d bytes, and %d may be asked for\n", size, most);

    until_go();
    if (loses("room"))
        setsockopt(server, SOL_SOCKET, SO_RCVBUF, &(int){1 << 16}, sizeof(int));
    if (loses("bytes"))
        CHECK(recv(server, block, 1, 0) == 1, "recv");
    CHECK(size_of(server) >= size || cookie_of(server) != cookie, "its receive buffer was %d bytes, and is %d", size, size_of(server));
    for (struct pollfd ask = {server, POLLIN, 0}; received < sent && poll(&ask, 1, 5000) == 1;) {
        ssize_t count = recv(server, block, sizeof block, 0);
        for (ssize_t i = 0; i < count; i++)
            REQUIRE(block[i] == pattern(received + i));
        received += count > 0 ? count : 0;
    }
    CHECK(received == sent, "%zu of %zu bytes came", received, sent);
    return verdict();
}
