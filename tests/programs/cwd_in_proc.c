// The working directory is where the kernel shows the program itself.
#include "verify.h"
#include <sys/stat.h>

int main(void) {
    REQUIRE(chdir("/proc/self/task") == 0);

    until_go();
    char now[4096], own[64], thread[16];
    if (loses("cwd"))
        REQUIRE(chdir("/proc/1/task") == 0);
    snprintf(own, sizeof own, "/proc/%d/task", getpid());
    CHECK(getcwd(now, sizeof now) && strcmp(now, own) == 0, "the working directory is %s, not %s", now, own);
    snprintf(thread, sizeof thread, "%d/stat", (int)syscall(SYS_gettid));
    CHECK(access(thread, F_OK) == 0, "what is there is of another process");
    return verdict();
}
