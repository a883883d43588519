// Regular files: offsets, flags, O_APPEND, read-only, O_DSYNC, several descriptions of one file, fds beyond a gap.
#include "verify.h"
#include <sys/stat.h>

static int open_file(const char *name, int flags, const char *content) {
    int fd = open(name, flags | O_CREAT, 0644);
    REQUIRE(fd >= 0 && (!content || write(fd, content, strlen(content)) == (ssize_t)strlen(content)));
    return fd;
}

static off_t offset_of(int fd) {
    return lseek(fd, 0, SEEK_CUR);
}

int main(void) {
    int plain = open_file("plain", O_RDWR, "0123456789abcdef");
    int again = open_file("plain", O_RDONLY, NULL);
    int append = open_file("append", O_WRONLY | O_APPEND, "start ");
    int beyond = open_file("beyond", O_RDWR | O_DSYNC, "x");
    int path = open("plain", O_PATH);
    REQUIRE(path >= 0 && lseek(plain, 5, SEEK_SET) == 5 && lseek(again, 11, SEEK_SET) == 11);
    REQUIRE(lseek(beyond, 5L << 30, SEEK_SET) == 5L << 30);
    int flags[] = {fcntl(plain, F_GETFL), fcntl(again, F_GETFL), fcntl(append, F_GETFL), fcntl(beyond, F_GETFL),
                   fcntl(path, F_GETFL)};

    until_go();
    char byte[2] = "", text[64] = "";
    if (loses("offset"))
        lseek(again, 0, SEEK_SET);
    if (loses("append"))
        fcntl(append, F_SETFL, 0);
    if (loses("flags"))
        CHECK(dup2(open("beyond", O_RDWR), beyond) == beyond && lseek(beyond, 5L << 30, SEEK_SET) > 0, "dup2");
    if (loses("access"))
        CHECK(dup2(plain, again) == again, "dup2");
    if (loses("path"))
        CHECK(dup2(again, path) == path, "dup2");
    CHECK(offset_of(plain) == 5 && offset_of(again) == 11 && offset_of(beyond) == 5L << 30,
          "the offsets are %jd, %jd and %jd", (intmax_t)offset_of(plain), (intmax_t)offset_of(again),
          (intmax_t)offset_of(beyond));
    int fds[] = {plain, again, append, beyond, path};
    for (int i = 0; i < 5; i++)
        CHECK(fcntl(fds[i], F_GETFL) == flags[i], "the flags of descriptor %d were %#x and are %#x", fds[i], flags[i],
              fcntl(fds[i], F_GETFL));
    CHECK(read(plain, byte, 1) == 1 && byte[0] == '5', "read at the offset gave `%s`", byte);
    CHECK(read(again, byte, 1) == 1 && byte[0] == 'b', "read at the other offset gave `%s`", byte);
    CHECK(write(again, "x", 1) == -1 && errno == EBADF, "a read-only descriptor can be written");
    CHECK(read(path, byte, 1) == -1 && errno == EBADF, "an O_PATH descriptor can be read");
    struct stat of_path, of_plain;
    CHECK(fstat(path, &of_path) == 0 && fstat(plain, &of_plain) == 0 && of_path.st_ino == of_plain.st_ino,
          "the O_PATH descriptor is of another file");
    REQUIRE(truncate("append", 3) == 0);
    CHECK(write(append, "end", 3) == 3, "appending");
    int check = open("append", O_RDONLY);
    CHECK(read(check, text, 64) == 6 && strcmp(text, "staend") == 0, "after appending the file holds `%s`", text);
    return verdict();
}
