// Afterwards the program executes another: descriptors marked close-on-exec are closed in it, the others not.
#include "verify.h"

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "after") == 0) {
        int kept = atoi(argv[2]), closed = atoi(argv[3]);
        CHECK(fcntl(kept, F_GETFD) == 0, "the descriptor to keep is closed");
        CHECK(fcntl(closed, F_GETFD) == -1 && errno == EBADF, "the close-on-exec descriptor is open");
        return verdict();
    }
    int kept = open("/dev/null", O_RDONLY), closed = open("/dev/null", O_RDONLY | O_CLOEXEC);
    REQUIRE(kept >= 0 && closed >= 0);
    char first[16], second[16];
    until_go();
    if (loses("close-on-exec"))
        fcntl(closed, F_SETFD, 0);
    if (loses("keeping"))
        fcntl(kept, F_SETFD, FD_CLOEXEC);
    snprintf(first, sizeof first, "%d", kept);
    snprintf(second, sizeof second, "%d", closed);
    execl("/proc/self/exe", argv[0], "after", first, second, NULL);
    FAIL("execl");
    return 1;
}
