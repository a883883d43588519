// Duplicated descriptors share offset and status flags; separately opened ones do not; close-on-exec is each one's own.
#include "verify.h"
#include <linux/kcmp.h>

static bool same_description(int a, int b) {
    return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b) == 0;
}

int main(void) {
    int file = open("file", O_RDWR | O_CREAT, 0600);
    REQUIRE(file >= 0 && write(file, "0123456789", 10) == 10);
    int twin = dup(file), third = fcntl(file, F_DUPFD_CLOEXEC, 50), own = open("file", O_RDWR | O_CLOEXEC);
    int null = open("/dev/null", O_WRONLY), null_twin = dup3(null, 77, O_CLOEXEC), null_own = open("/dev/null", O_WRONLY);
    REQUIRE(twin >= 0 && third >= 50 && own >= 0 && null_twin == 77 && null_own >= 0);
    lseek(file, 4, SEEK_SET);
    lseek(own, 8, SEEK_SET);

    until_go();
    if (loses("sharing")) {
        CHECK(dup2(open("file", O_RDWR), twin) == twin, "dup2");
        lseek(twin, 4, SEEK_SET);
    }
    if (loses("separation")) {
        CHECK(dup3(file, own, O_CLOEXEC) == own, "dup3");
    }
    if (loses("close-on-exec"))
        fcntl(third, F_SETFD, 0);
    if (loses("device"))
        CHECK(dup2(open("/dev/null", O_WRONLY), null) == null, "dup2");
    CHECK(lseek(own, 0, SEEK_CUR) == 8, "the offset of its own is %jd", (intmax_t)lseek(own, 0, SEEK_CUR));
    lseek(third, 6, SEEK_SET);
    CHECK(lseek(file, 0, SEEK_CUR) == 6 && lseek(twin, 0, SEEK_CUR) == 6, "the duplicates no longer share their offset");
    CHECK(lseek(own, 0, SEEK_CUR) == 8, "two descriptions have become one");
    fcntl(twin, F_SETFL, O_APPEND);
    CHECK(fcntl(file, F_GETFL) & O_APPEND && !(fcntl(own, F_GETFL) & O_APPEND), "status flags are shared wrongly");
    CHECK(same_description(file, twin) && same_description(file, third) && same_description(null, null_twin),
          "kcmp(2) sees different descriptions");
    CHECK(!same_description(file, own) && !same_description(null, null_own), "kcmp(2) sees one description");
    int fds[] = {file, twin, third, own, null, null_twin, null_own}, close_on_exec[] = {0, 0, 1, 1, 0, 1, 0};
    for (int i = 0; i < 7; i++)
        CHECK(fcntl(fds[i], F_GETFD) == close_on_exec[i], "close-on-exec of descriptor %d changed", fds[i]);
    return verdict();
}
