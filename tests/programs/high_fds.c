// Descriptors with high numbers, to the limit, and many of them.
#include "verify.h"
#include <sys/resource.h>

int main(void) {
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    int highest = limit.rlim_cur > 20000 ? 19999 : (int)limit.rlim_cur - 1;
    int numbers[] = {highest, highest / 2, 1000, 500};
    for (int i = 0; i < 4; i++) {
        char name[32];
        snprintf(name, sizeof name, "file-%d", i);
        int fd = open(name, O_RDWR | O_CREAT, 0600);
        REQUIRE(fd >= 0 && write(fd, name, strlen(name)) == (ssize_t)strlen(name));
        REQUIRE(dup2(fd, numbers[i]) == numbers[i] && close(fd) == 0);
    }
    for (int fd = 100; fd < 400; fd++)
        REQUIRE(dup2(1000, fd) == fd);

    until_go();
    if (loses("descriptor"))
        close(highest);
    if (loses("offset"))
        lseek(500, 0, SEEK_SET);
    for (int i = 0; i < 4; i++) {
        char name[32], text[32] = "";
        snprintf(name, sizeof name, "file-%d", i);
        CHECK(pread(numbers[i], text, 31, 0) > 0 && strcmp(text, name) == 0, "descriptor %d is of %s", numbers[i], text);
        CHECK(lseek(numbers[i], 0, SEEK_CUR) == 6, "the offset of descriptor %d changed", numbers[i]);
    }
    lseek(250, 2, SEEK_SET);
    CHECK(lseek(399, 0, SEEK_CUR) == 2 && lseek(1000, 0, SEEK_CUR) == 2, "300 duplicates no longer share their offset");
    for (int fd = 100; fd < 400; fd++)
        CHECK(fcntl(fd, F_GETFD) == 0, "descriptor %d is closed", fd);
    CHECK(fcntl(401, F_GETFD) == -1, "there is a descriptor that the program never opened");
    return verdict();
}
