// A TCP connection to somebody outside, who sends `before!`: after a restart what was not read is there, and then the
// connection was reset. Argument: the port.
#include "verify.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    REQUIRE(argc == 2);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(connect(fd, (void *)&address, sizeof address) == 0);
    char got[16] = "";
    REQUIRE(recv(fd, got, 6, MSG_PEEK | MSG_WAITALL) == 6);
    until_go();
    struct timeval limit = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    CHECK(recv(fd, got, sizeof got, 0) == 7 && strcmp(got, "before!") == 0, "`%s` was not read", got);
    CHECK(recv(fd, got, 1, 0) == -1 && errno == ECONNRESET, "the connection was not reset");
    return verdict();
}
