// memfd: content, size, offset, name, seals, and its mapping, shared with the descriptor.
#include "maps.h"

enum { SIZE = 16 * PAGE };

int main(void) {
    int fd = memfd_create("stasis test", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    int sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
    REQUIRE(fd >= 0 && sealed >= 0 && ftruncate(fd, SIZE + 100) == 0);
    char *mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    REQUIRE(mapped != MAP_FAILED && private != MAP_FAILED);
    fill_memory(mapped, SIZE, 1);
    fill_memory(private + PAGE, PAGE, 2);
    REQUIRE(lseek(fd, 12345, SEEK_SET) == 12345);
    REQUIRE(write(sealed, "immutable", 9) == 9);
    int seals = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
    REQUIRE(fcntl(sealed, F_ADD_SEALS, seals) == 0);
    // What is mapped already may be written to.
    int future = memfd_create("future", MFD_ALLOW_SEALING);
    REQUIRE(future >= 0 && ftruncate(future, SIZE) == 0);
    char *writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0);
    char *second = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, future, PAGE);
    int future_seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_SEAL;
    REQUIRE(writable != MAP_FAILED && second != MAP_FAILED && fcntl(future, F_ADD_SEALS, future_seals) == 0);

    until_go();
    char text[64] = "", link[64] = "", path[64];
    if (loses("offset"))
        lseek(fd, 0, SEEK_SET);
    if (loses("sharing"))
        REQUIRE(mmap(mapped, SIZE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE, fd, 0) == mapped);
    if (loses("seals")) {
        int other = memfd_create("sealed", MFD_ALLOW_SEALING);
        REQUIRE(write(other, "immutable", 9) == 9);
        dup2(other, sealed);
    }
    if (loses("name"))
        dup2(memfd_create("else", 0), fd);
    CHECK(lseek(fd, 0, SEEK_CUR) == 12345, "the offset is %jd", (intmax_t)lseek(fd, 0, SEEK_CUR));
    CHECK(lseek(fd, 0, SEEK_END) == SIZE + 100, "the size is %jd", (intmax_t)lseek(fd, 0, SEEK_END));
    CHECK(filled(mapped, SIZE, 1) && filled(private + PAGE, PAGE, 2) && filled(private, PAGE, 1), "the content changed");
    fill_memory(mapped + 3 * PAGE, PAGE, 9);
    char page[PAGE];
    CHECK(pread(fd, page, PAGE, 3 * PAGE) == PAGE && filled(page, PAGE, 9), "mapping and descriptor are two memories");
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(sealed, F_GETFD) == 0, "close-on-exec changed");
    CHECK(fcntl(sealed, F_GET_SEALS) == seals && fcntl(fd, F_GET_SEALS) == 0, "the seals are %#x",
          fcntl(sealed, F_GET_SEALS));
    if (loses("future"))
        dup2(fd, future);
    CHECK(fcntl(future, F_GET_SEALS) == future_seals, "the seals are %#x", fcntl(future, F_GET_SEALS));
    CHECK(pwrite(future, "x", 1, 0) == -1 && errno == EPERM, "a memfd sealed against future writing can be written");
    strcpy(writable, "by the mapping");
    second[0] = 's';
    CHECK(pread(future, text, 15, 0) == 15 && strcmp(text, "by the mapping") == 0, "the content changed");
    memset(text, 0, sizeof text);
    CHECK(pwrite(sealed, "x", 1, 0) == -1 && errno == EPERM, "a sealed memfd can be written");
    CHECK(pread(sealed, text, 64, 0) == 9 && strcmp(text, "immutable") == 0, "the sealed content is `%s`", text);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(readlink(path, link, sizeof link - 1) > 0 && strcmp(link, "/memfd:stasis test (deleted)") == 0, "%s is %s", path,
          link);
    return verdict();
}
