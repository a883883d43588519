// Sockets of TCP that were refused: one that was told, one that was not, one that is bound. They may try again.
#include "verify.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

static int error_of(int socket) {
    int error = -1;
    socklen_t length = sizeof error;
    getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

static int events_of(int socket) {
    struct pollfd ask = {socket, POLLIN | POLLOUT | POLLRDHUP, 0};
    poll(&ask, 1, 0);
    return ask.revents;
}

// A port of this machine, and whether somebody listens there.
static struct sockaddr_in at(int *listener, bool listens) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    *listener = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(bind(*listener, (void *)&address, length) == 0 && (!listens || listen(*listener, 5) == 0));
    REQUIRE(getsockname(*listener, (void *)&address, &length) == 0);
    return address;
}

static int refused(bool is_bound, bool is_told) {
    int nobody, it = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = at(&nobody, false), any = {.sin_family = AF_INET};
    REQUIRE(!is_bound || bind(it, (void *)&any, sizeof any) == 0);
    REQUIRE(connect(it, (void *)&address, sizeof address) == -1 && errno == EINPROGRESS);
    for (int i = 0; i < 1000 && !(events_of(it) & POLLERR); i++)
        sleep_ms(1);
    REQUIRE(!is_told || error_of(it) == ECONNREFUSED);
    close(nobody);
    return it;
}

int main(void) {
    enum { WAITS, TOLD, BOUND, COUNT };
    int all[COUNT] = {refused(false, false), refused(false, true), refused(true, true)}, listener;
    int events[COUNT] = {events_of(all[0]), events_of(all[1]), events_of(all[2])};
    struct sockaddr_in name, now;
    socklen_t length = sizeof name;
    REQUIRE(getsockname(all[BOUND], (void *)&name, &length) == 0);

    until_go();
    if (loses("error"))
        error_of(all[WAITS]);
    if (loses("port"))
        dup2(refused(true, true), all[BOUND]);
    if (loses("events"))
        dup2(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), all[TOLD]);
    length = sizeof now;
    CHECK(getsockname(all[BOUND], (void *)&now, &length) == 0 && now.sin_port == name.sin_port, "it has another port");
    for (int i = 0; i < COUNT; i++)
        CHECK(events_of(all[i]) == events[i], "poll tells %#x of %d, not %#x", events_of(all[i]), i, events[i]);
    CHECK(error_of(all[WAITS]) == ECONNREFUSED, "that it was refused is not told");
    struct sockaddr_in address = at(&listener, true);
    for (int i = 0; i < COUNT; i++) {
        // The first attempt after a failure whose error was taken otherwise tells of that failure (connect(2) in net/ipv4/af_inet.c).
        int done = connect(all[i], (void *)&address, sizeof address);
        CHECK(done == -1 && errno == ECONNABORTED, "connecting %d again: %d", i, done);
        done = connect(all[i], (void *)&address, sizeof address);
        CHECK(done == 0 || errno == EINPROGRESS, "connecting %d once more", i);
        int server = accept(listener, NULL, NULL);
        CHECK(server >= 0 && error_of(all[i]) == 0 && write(all[i], "x", 1) == 1, "%d is not connected", i);
        close(server);
    }
    return verdict();
}
