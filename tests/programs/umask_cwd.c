// umask, the working directory, and file creation relative to both.
#include "verify.h"
#include <sys/stat.h>

int main(void) {
    char before[4096], now[4096];
    struct stat status, here;
    REQUIRE(mkdir("deep", 0700) == 0 && chdir("deep") == 0 && mkdir("deeper", 0700) == 0 && chdir("deeper") == 0);
    REQUIRE(getcwd(before, sizeof before) != NULL && stat(".", &here) == 0);
    umask(0137);

    until_go();
    if (loses("umask"))
        umask(022);
    if (loses("cwd"))
        CHECK(chdir("..") == 0, "chdir");
    CHECK(getcwd(now, sizeof now) && strcmp(before, now) == 0, "the working directory was %s and is %s", before, now);
    CHECK(stat(".", &status) == 0 && status.st_ino == here.st_ino && status.st_dev == here.st_dev,
          "the working directory is another one");
    int fd = open("made", O_CREAT | O_EXCL | O_WRONLY, 0777);
    CHECK(fd >= 0 && fstat(fd, &status) == 0 && (status.st_mode & 0777) == 0640, "a new file's mode is %o",
          status.st_mode & 0777);
    CHECK(umask(0) == 0137, "the umask changed");
    return verdict();
}
