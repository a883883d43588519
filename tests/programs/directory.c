// A directory in the midst of being read: every entry comes once. And openat relative to it.
#include "verify.h"
#include <dirent.h>
#include <sys/stat.h>

enum { FILES = 300 };

int main(void) {
    bool seen[FILES] = {false};
    char name[64];
    REQUIRE(mkdir("many", 0700) == 0);
    int fd = open("many", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "file-%d", i);
        close(openat(fd, name, O_CREAT | O_WRONLY, 0600));
    }
    // By the system call in small steps: glibc's readdir would read all of it ahead.
    char buffer[512];
    int read_before = 0;
    for (int step = 0; step < 7; step++) {
        long got = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
        REQUIRE(got > 0);
        for (long at = 0; at < got; at += ((struct dirent64 *)(buffer + at))->d_reclen) {
            int number;
            if (sscanf(((struct dirent64 *)(buffer + at))->d_name, "file-%d", &number) == 1)
                seen[number] = true, read_before++;
        }
    }
    REQUIRE(read_before > 20 && read_before < FILES);

    until_go();
    if (loses("offset"))
        lseek(fd, 0, SEEK_SET);
    long got;
    while ((got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < got; at += ((struct dirent64 *)(buffer + at))->d_reclen) {
            int number;
            if (sscanf(((struct dirent64 *)(buffer + at))->d_name, "file-%d", &number) != 1)
                continue;
            CHECK(!seen[number], "file-%d comes twice", number);
            seen[number] = true;
        }
    for (int i = 0; i < FILES; i++)
        CHECK(seen[i], "file-%d never came", i);
    if (loses("directory"))
        CHECK(dup2(open("/", O_RDONLY | O_DIRECTORY), fd) == fd, "dup2");
    CHECK(faccessat(fd, "file-7", F_OK, 0) == 0, "the descriptor is of another directory");
    return verdict();
}
