// Files that were opened and mapped by a name that is deleted, and have another beside it (link(2)): as programs write a file
// under a name of the moment, and give it its own when it is whole.
#include "maps.h"
#include <sys/stat.h>

int main(void) {
    int fd = open("moment", O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(fd >= 0 && write(fd, "whole", 5) == 5);
    REQUIRE(link("moment", "lasting") == 0 && unlink("moment") == 0);
    int mapped = open("mapped moment", O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(mapped >= 0 && ftruncate(mapped, PAGE) == 0);
    char *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
    REQUIRE(shared != MAP_FAILED && link("mapped moment", "mapped lasting") == 0 && unlink("mapped moment") == 0);
    close(mapped);
    strcpy(shared, "by the mapping");
    // Of another file, to be damaged with.
    int other = open("another", O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(other >= 0 && write(other, "other", 5) == 5);

    until_go();
    if (loses("file"))
        REQUIRE(dup2(other, fd) == fd);
    if (loses("mapping"))
        REQUIRE(mmap(shared, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == shared);
    if (loses("offset"))
        lseek(fd, 0, SEEK_SET);
    char got[32] = "";
    struct stat one, two;
    int lasting = open("lasting", O_RDONLY);
    REQUIRE(lasting >= 0);
    CHECK(lseek(fd, 0, SEEK_CUR) == 5, "the offset changed");
    CHECK(fstat(fd, &one) == 0 && fstat(lasting, &two) == 0 && one.st_ino == two.st_ino, "the file has become two");
    CHECK(write(fd, " file", 5) == 5 && read(lasting, got, sizeof got) == 10 && memcmp(got, "whole file", 10) == 0,
          "what is written does not get there");
    strcat(shared, " again");
    memset(got, 0, sizeof got);
    int file = open("mapped lasting", O_RDONLY);
    CHECK(file >= 0 && read(file, got, sizeof got) == sizeof got && strcmp(got, "by the mapping again") == 0,
          "what is stored by the mapping does not get there: %.20s", got);
    return verdict();
}
