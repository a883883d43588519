// All descriptors that the limit allows are in use, by memory and files without a name; and more files are mapped than that.
#include "maps.h"
#include <sys/resource.h>

enum { LIMIT = 40, MAPPED = 60 };

static void name_of(int number, char *name) {
    sprintf(name, number % 2 ? "/dev/shm/stasis-few-%d-%d" : "few-%d-%d", getpid(), number);
}

int main(void) {
    char name[64], content[64], got[64];
    char *mapped[MAPPED];
    for (int i = 0; i < MAPPED; i++) {
        name_of(i, name);
        int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        REQUIRE(fd >= 0 && ftruncate(fd, PAGE) == 0);
        mapped[i] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        REQUIRE(mapped[i] != MAP_FAILED && close(fd) == 0);
        sprintf(mapped[i], "mapped %d", i);
        if (i >= MAPPED / 2)
            REQUIRE(unlink(name) == 0);
    }
    struct rlimit limit = {LIMIT, LIMIT};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int first = open("/dev/null", O_RDWR), last = first;
    for (int fd; last < LIMIT - 1; last = fd) {
        int kind = last % 3;
        fd = kind == 0 ? memfd_create("few", MFD_CLOEXEC)
                       : open("moment", (kind == 1 ? O_RDWR : O_WRONLY) | O_CREAT | O_EXCL, 0600);
        REQUIRE(fd == last + 1 && (kind == 0 || unlink("moment") == 0));
        REQUIRE(write(fd, content, sprintf(content, "open %d", fd)) > 0);
    }

    // One descriptor is needed to see whether to go on; what it was is not looked at.
    close(first);
    until_go();
    if (loses("open"))
        REQUIRE(dup2(first + 1, first + 4) == first + 4);
    if (loses("mapped"))
        mapped[5][0]++;
    if (loses("deleted"))
        mapped[MAPPED - 1][0]++;
    for (int fd = first + 1; fd < LIMIT; fd++) {
        int len = sprintf(content, "open %d", fd);
        CHECK(lseek(fd, 0, SEEK_CUR) == len, "the offset of descriptor %d changed", fd);
        if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR)
            CHECK(pread(fd, got, sizeof got, 0) == len && memcmp(got, content, len) == 0, "descriptor %d changed", fd);
    }
    for (int i = 0; i < MAPPED; i++) {
        sprintf(content, "mapped %d", i);
        CHECK(strcmp(mapped[i], content) == 0, "mapping %d changed", i);
        name_of(i, name);
        CHECK((unlink(name) == 0) == (i < MAPPED / 2), "the name %s", name);
    }
    return verdict();
}
