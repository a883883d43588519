// Secret memory (memfd_secret(2)), mapped, its descriptor closed.
#include "maps.h"

int main(void) {
    int fd = syscall(SYS_memfd_secret, O_CLOEXEC);
    REQUIRE(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0);
    char *secret = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(secret != MAP_FAILED && close(fd) == 0);
    fill_memory(secret, 2 * PAGE, 1);

    until_go();
    if (loses("content"))
        secret[9]++;
    CHECK(filled(secret, 2 * PAGE, 1), "the secret changed");
    return verdict();
}
