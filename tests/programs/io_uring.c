// Holds an io_uring: kernel state that no system call can read back, so a checkpoint is refused by name.
#include "verify.h"

#include <linux/io_uring.h>

int main(void) {
    struct io_uring_params parameters = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &parameters);
    if (ring < 0) {
        printf("no io_uring here: %s\n", strerror(errno));
        return 77;
    }
    printf("descriptor %d\n", ring);
    until_go();
    CHECK(fcntl(ring, F_GETFD) >= 0, "the descriptor of the io_uring is gone");
    return verdict();
}
