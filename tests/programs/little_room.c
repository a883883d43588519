// Nearly all addresses reserved, as a sanitizer's runtime does, and files open.
#include "verify.h"
#include <sys/mman.h>

int main(void) {
    char *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(word != MAP_FAILED);
    strcpy(word, "kept");
    int fd = open("file", O_CREAT | O_RDWR | O_APPEND, 0600);
    REQUIRE(fd >= 0);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    unsigned long reserved = 0;
    for (int bits = 46; bits >= 32; bits--)
        while (mmap(NULL, 1ul << bits, PROT_NONE, flags, -1, 0) != MAP_FAILED)
            reserved += 1ul << bits;
    REQUIRE(reserved > 1ul << 46);

    until_go();
    if (loses("word"))
        word[0] = 0;
    if (loses("room"))
        munmap((void *)(1ul << 44), 1ul << 40);
    CHECK(strcmp(word, "kept") == 0, "memory changed");
    CHECK(mmap(NULL, 1ul << 33, PROT_NONE, flags, -1, 0) == MAP_FAILED, "addresses that were reserved are free");
    CHECK(write(fd, "x", 1) == 1, "the file is not open any more");
    return verdict();
}
