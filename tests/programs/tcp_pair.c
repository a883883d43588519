// A TCP connection over loopback with both ends in the process, bytes in flight.
#include "verify.h"
#include <netinet/in.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    char got[64] = "";
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 1) == 0);
    REQUIRE(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    REQUIRE(connect(client, (struct sockaddr *)&address, length) == 0);
    int server = accept(listener, NULL, NULL);
    REQUIRE(server >= 0 && send(client, "in flight", 9, 0) == 9);
    until_go();
    if (loses("bytes"))
        CHECK(recv(server, got, 2, 0) == 2, "recv");
    struct timeval second = {1, 0};
    setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    CHECK(recv(server, got, 64, 0) == 9 && memcmp(got, "in flight", 9) == 0, "the bytes in flight are `%s`", got);
    CHECK(send(server, "answer", 6, MSG_NOSIGNAL) == 6 && recv(client, got, 64, 0) == 6, "the connection is broken");
    return verdict();
}
