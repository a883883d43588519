// Files without a name, by unlink or O_TMPFILE: content, holes, offset, mode; a mapping of one; and linking one back. One that
// was opened by two names.
#include "verify.h"
#include <sys/mman.h>
#include <sys/stat.h>

enum { PAGE = 4096 };

int main(void) {
    char content[3000];
    for (int i = 0; i < 3000; i++)
        content[i] = i * 7;
    int deleted = open("deleted", O_RDWR | O_CREAT | O_EXCL, 0640);
    REQUIRE(deleted >= 0 && write(deleted, content, 3000) == 3000 && pwrite(deleted, content, 3000, 1 << 20) == 3000);
    int reader = open("deleted", O_RDONLY);
    char *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, deleted, 0);
    REQUIRE(reader >= 0 && mapped != MAP_FAILED && unlink("deleted") == 0);
    int nameless = open(".", O_RDWR | O_TMPFILE, 0600);
    REQUIRE(nameless >= 0 && write(nameless, content, 1000) == 1000 && lseek(nameless, 10, SEEK_SET) == 10);
    REQUIRE(lseek(reader, 50, SEEK_SET) == 50);
    // A new file has taken the name since.
    int successor = open("deleted", O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(successor >= 0 && write(successor, "successor", 9) == 9);
    int one = open("one name", O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(one >= 0 && link("one name", "another name") == 0);
    int another = open("another name", O_RDWR);
    REQUIRE(another >= 0 && unlink("one name") == 0 && unlink("another name") == 0);

    until_go();
    char got[3000] = "";
    struct stat status, other;
    if (loses("content"))
        CHECK(pwrite(deleted, "x", 1, (1 << 20) + 9) == 1, "pwrite");
    if (loses("tmpfile"))
        CHECK(ftruncate(nameless, 0) == 0, "ftruncate");
    if (loses("successor"))
        CHECK(dup2(successor, reader) == reader, "dup2");
    if (loses("offset"))
        lseek(nameless, 0, SEEK_SET);
    if (loses("mode"))
        fchmod(deleted, 0777);
    if (loses("mapping"))
        REQUIRE(mmap(mapped, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE, deleted, 0) == mapped);
    CHECK(fstat(deleted, &status) == 0 && status.st_size == (1 << 20) + 3000, "the size is %jd", (intmax_t)status.st_size);
    CHECK((status.st_mode & 07777) == 0640 && status.st_nlink == 0, "mode %o, %ju links", status.st_mode,
          (uintmax_t)status.st_nlink);
    CHECK(fstat(reader, &other) == 0 && other.st_ino == status.st_ino, "two descriptors of one deleted file are of two");
    CHECK(pread(deleted, got, 3000, 0) == 3000 && !memcmp(got, content, 3000), "the content changed");
    CHECK(pread(deleted, got, 3000, 1 << 20) == 3000 && !memcmp(got, content, 3000), "the content behind the hole changed");
    CHECK(pread(deleted, got, 1, 500000) == 1 && got[0] == 0, "the hole is not empty");
    CHECK(read(reader, got, 10) == 10 && !memcmp(got, content + 50, 10), "the reader's offset changed");
    CHECK(lseek(deleted, 0, SEEK_CUR) == 3000 && lseek(nameless, 0, SEEK_CUR) == 10, "an offset changed");
    CHECK(pread(nameless, got, 3000, 0) == 1000 && !memcmp(got, content, 1000), "the content of O_TMPFILE changed");
    if (loses("names"))
        REQUIRE(dup2(nameless, another) == another);
    CHECK(pwrite(one, "by one", 6, 0) == 6 && pread(another, got, 6, 0) == 6 && !memcmp(got, "by one", 6),
          "a file that was opened by two names has become two");
    mapped[100] = 'M';
    CHECK(pread(deleted, got, 1, 100) == 1 && got[0] == 'M', "the mapping and the deleted file are two memories");
    CHECK((fcntl(nameless, F_GETFL) & O_TMPFILE) == O_TMPFILE, "O_TMPFILE is lost");
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", nameless);
    CHECK(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0, "the nameless file cannot be given a name");
    CHECK(stat("named", &status) == 0 && status.st_size == 1000, "under its name it has %jd bytes", (intmax_t)status.st_size);
    int check = open("deleted", O_RDONLY);
    memset(got, 0, 16);
    CHECK(read(check, got, 16) == 9 && strcmp(got, "successor") == 0, "the file of the same name holds `%s`", got);
    return verdict();
}
