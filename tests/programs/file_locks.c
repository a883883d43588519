// File locks held: flock (shared, exclusive), POSIX record locks (on a file that is mapped as well), open-file-description locks.
// Others still meet them.
#include "verify.h"
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

static struct flock range(short type, off_t start, off_t length) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static int open_lock(const char *name) {
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    REQUIRE(fd >= 0);
    return fd;
}

// Record locks never conflict with the process' own: a child asks.
static int posix_conflict(const char *name, off_t start) {
    pid_t child = fork();
    if (child == 0) {
        struct flock lock = range(F_WRLCK, start, 1);
        int fd = open(name, O_RDWR);
        _exit(fcntl(fd, F_GETLK, &lock) == 0 ? lock.l_type : 99);
    }
    int status = 0;
    while (waitpid(child, &status, 0) == -1 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(void) {
    int exclusive = open_lock("exclusive"), shared = open_lock("shared"), posix = open_lock("posix");
    int ofd = open_lock("ofd");
    REQUIRE(flock(exclusive, LOCK_EX) == 0 && flock(shared, LOCK_SH) == 0);
    struct flock write_lock = range(F_WRLCK, 100, 50), read_lock = range(F_RDLCK, 1000, 0), ofd_lock = range(F_WRLCK, 7, 3);
    REQUIRE(fcntl(posix, F_SETLK, &write_lock) == 0 && fcntl(posix, F_SETLK, &read_lock) == 0);
    REQUIRE(fcntl(ofd, F_OFD_SETLK, &ofd_lock) == 0);
    int mapped = open_lock("mapped");
    struct flock mapped_lock = range(F_WRLCK, 5, 4);
    REQUIRE(ftruncate(mapped, 8192) == 0 && mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0) != MAP_FAILED);
    REQUIRE(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, mapped, 4096) != MAP_FAILED);
    REQUIRE(fcntl(mapped, F_SETLK, &mapped_lock) == 0);
    // All low numbers are the program's: nothing that a restart has open may end up in its files.
    for (int i = 0; i < 30; i++)
        REQUIRE(dup(ofd) >= 0);

    until_go();
    struct flock none = range(F_UNLCK, 0, 0);
    if (loses("flock"))
        flock(exclusive, LOCK_UN);
    if (loses("flock-kind"))
        flock(shared, LOCK_EX);
    if (loses("posix"))
        fcntl(posix, F_SETLK, &none);
    if (loses("ofd"))
        fcntl(ofd, F_OFD_SETLK, &none);
    CHECK(flock(open("exclusive", O_RDWR), LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "LOCK_EX is lost");
    CHECK(flock(open("shared", O_RDWR), LOCK_SH | LOCK_NB) == 0, "LOCK_SH became exclusive");
    CHECK(flock(open("shared", O_RDWR), LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "LOCK_SH is lost");
    CHECK(posix_conflict("posix", 120) == F_WRLCK, "a POSIX write lock is lost");
    CHECK(posix_conflict("posix", 5000) == F_RDLCK, "a POSIX read lock to the end of the file is lost");
    if (loses("mapped"))
        fcntl(mapped, F_SETLK, &none);
    CHECK(posix_conflict("mapped", 6) == F_WRLCK, "a lock on a file that is mapped is lost");
    struct stat untouched;
    CHECK(fstat(ofd, &untouched) == 0 && untouched.st_size == 0, "something wrote to a file that nobody writes to");
    CHECK(posix_conflict("posix", 99) == F_UNLCK && posix_conflict("posix", 150) == F_UNLCK, "a POSIX lock grew");
    struct flock asked = range(F_WRLCK, 9, 1), beside = range(F_WRLCK, 10, 1);
    int stranger = open("ofd", O_RDWR);
    CHECK(fcntl(stranger, F_OFD_GETLK, &asked) == 0 && asked.l_type == F_WRLCK && asked.l_start == 7 && asked.l_len == 3,
          "the open-file-description lock is lost");
    CHECK(fcntl(stranger, F_OFD_GETLK, &beside) == 0 && beside.l_type == F_UNLCK, "the open-file-description lock grew");
    // Giving a lock up works, too.
    CHECK(flock(exclusive, LOCK_UN) == 0 && flock(open("exclusive", O_RDWR), LOCK_EX | LOCK_NB) == 0, "unlocking");
    return verdict();
}
