// Character devices: /dev/null, /dev/zero, /dev/full, /dev/urandom, and a mapping of /dev/zero.
#include "verify.h"
#include <sys/mman.h>
#include <sys/stat.h>

int main(void) {
    static const char *const paths[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"};
    int fds[4];
    struct stat before[4], now;
    for (int i = 0; i < 4; i++) {
        fds[i] = open(paths[i], O_RDWR | (i % 2 ? O_CLOEXEC : 0));
        REQUIRE(fds[i] >= 0 && fstat(fds[i], &before[i]) == 0);
    }
    char *mapped = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[1], 0);
    REQUIRE(mapped != MAP_FAILED);
    mapped[5000] = 'z';

    until_go();
    char bytes[32] = "x", other[32] = "";
    if (loses("device"))
        CHECK(dup2(fds[1], fds[3]) == fds[3], "dup2");
    if (loses("mapping"))
        mapped[5000] = 0;
    for (int i = 0; i < 4; i++) {
        CHECK(fstat(fds[i], &now) == 0 && now.st_rdev == before[i].st_rdev && now.st_ino == before[i].st_ino,
              "%s is another device", paths[i]);
        CHECK(fcntl(fds[i], F_GETFD) == (i % 2 ? FD_CLOEXEC : 0), "close-on-exec of %s changed", paths[i]);
    }
    CHECK(read(fds[0], bytes, 32) == 0 && write(fds[0], bytes, 32) == 32, "/dev/null");
    CHECK(read(fds[1], bytes, 32) == 32 && bytes[0] == 0, "/dev/zero");
    CHECK(write(fds[2], bytes, 1) == -1 && errno == ENOSPC, "/dev/full");
    CHECK(read(fds[3], bytes, 32) == 32 && read(fds[3], other, 32) == 32 && memcmp(bytes, other, 32), "/dev/urandom");
    CHECK(mapped[5000] == 'z' && mapped[0] == 0, "the mapping of /dev/zero changed");
    return verdict();
}
