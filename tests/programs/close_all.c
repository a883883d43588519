// The program closes every descriptor up to 1048576 (or argv[1] = range: all from 3 by close_range) and goes on.
#include "verify.h"

static void close_everything(bool by_range) {
    if (by_range) {
        REQUIRE(syscall(SYS_close_range, 3, ~0U, 0) == 0);
        return;
    }
    for (int fd = 3; fd < 1048576; fd++)
        close(fd);
}

// The lowest descriptor that is free is the one that a program without Stasis gets.
static void expect_low_descriptors(const char *when) {
    int first = open("/dev/null", O_RDONLY), second = dup(0);
    if (loses("low-descriptors"))
        second++;
    CHECK(first == 3 && second == 4, "%s, new descriptors are %d and %d", when, first, second);
    close(first);
    close(second);
}

int main(int argc, char **argv) {
    bool by_range = argc > 1 && strcmp(argv[1], "range") == 0;
    close_everything(by_range);
    expect_low_descriptors("before");
    until_go();
    expect_low_descriptors("after");
    close_everything(by_range);
    expect_low_descriptors("after closing all once more");
    CHECK(fcntl(1, F_GETFD) == 0 && fcntl(2, F_GETFD) == 0, "the program's own output is closed");
    return verdict();
}
