// A pidfd of process 1, which is in no computation: refused by name, while the program runs on and the pidfd keeps working.
#include "verify.h"

int main(void) {
    int fd = syscall(SYS_pidfd_open, 1, 0);
    REQUIRE(fd >= 0);
    until_go();
    if (loses("pidfd"))
        close(fd);
    CHECK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0, "the pidfd no longer works");
    return verdict();
}
