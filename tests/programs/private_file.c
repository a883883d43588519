// A private mapping of a file with some pages modified, a shared one that writes through, and one past the file's end.
#include "maps.h"

enum { PAGES = 32 };

static int make_file(const char *name, int seed) {
    static char content[PAGES * PAGE];
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    fill_memory(content, sizeof content, seed);
    REQUIRE(fd >= 0 && write(fd, content, sizeof content) == (ssize_t)sizeof content);
    return fd;
}

int main(void) {
    int fd = make_file("private", 1), shared_fd = make_file("shared", 2), short_fd = make_file("short", 3);
    char *private = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *shared = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 4 * PAGE);
    char *read_only = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    REQUIRE(ftruncate(short_fd, 2 * PAGE + 100) == 0);
    char *past = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, short_fd, 0);
    REQUIRE(private != MAP_FAILED && shared != MAP_FAILED && read_only != MAP_FAILED && past != MAP_FAILED);
    fill_memory(private + 5 * PAGE, 2 * PAGE, 50);
    fill_memory(private + 20 * PAGE, PAGE, 60);
    fill_memory(shared + PAGE, PAGE, 70);
    close(fd);

    until_go();
    char page[PAGE];
    if (loses("modified"))
        madvise(private + 5 * PAGE, PAGE, MADV_DONTNEED);
    if (loses("sharing"))
        REQUIRE(mmap(shared, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE, shared_fd, 4 * PAGE) == shared);
    if (loses("end"))
        REQUIRE(ftruncate(short_fd, 4 * PAGE) == 0);
    CHECK(filled(private, 5 * PAGE, 1) && filled(private + 5 * PAGE, 2 * PAGE, 50) &&
              filled(private + 7 * PAGE, 13 * PAGE, 1 + 7 * 512) && filled(private + 20 * PAGE, PAGE, 60),
          "the private mapping changed");
    CHECK(filled(read_only, PAGES * PAGE, 1), "the private changes went to the file");
    CHECK(filled(shared + PAGE, PAGE, 70) && filled(shared + 2 * PAGE, PAGE, 2 + 6 * 512), "the shared mapping changed");
    CHECK(pread(shared_fd, page, PAGE, 5 * PAGE) == PAGE && filled(page, PAGE, 70), "the file misses a shared change");
    fill_memory(shared + 3 * PAGE, PAGE, 80);
    CHECK(pread(shared_fd, page, PAGE, 7 * PAGE) == PAGE && filled(page, PAGE, 80),
          "the shared mapping no longer writes through to the file");
    CHECK(filled(past, 2 * PAGE, 3) && past[2 * PAGE + 100] == 0, "the mapping of the short file changed");
    CHECK(fault_of(past + 3 * PAGE, false) == SIGBUS, "there is memory behind the file's end");
    unlink("private"), unlink("shared"), unlink("short");
    return verdict();
}
