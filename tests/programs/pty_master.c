// Has the master side of a pseudo-terminal, and prints the name of the other side, which somebody else may open.
#include "verify.h"
#include <poll.h>

int main(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    REQUIRE(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    puts(ptsname(master));
    until_go();
    struct pollfd closed = {master, 0, 0};
    CHECK(poll(&closed, 1, 0) == 1 && closed.revents & POLLHUP, "the other side is not closed");
    return verdict();
}
