// Files of /proc that a process has open of its parent and of its child.
#include "verify.h"

#include <sys/wait.h>

static int opened(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0);
    return fd;
}

static int shown(int fd) {
    char text[512] = "";
    return pread(fd, text, sizeof text - 1, 0) > 0 ? atoi(text) : -1;
}

int main(void) {
    int ready[2], go[2];
    REQUIRE(pipe(ready) == 0 && pipe(go) == 0);
    pid_t parent = getpid(), child = fork();
    char byte = 0;
    if (child == 0) {
        int of_parent = opened(parent);
        REQUIRE(write(ready[1], "r", 1) == 1 && read(go[0], &byte, 1) == 1);
        _exit(shown(of_parent) == parent ? 0 : 1);
    }
    REQUIRE(child > 0 && read(ready[0], &byte, 1) == 1);
    int of_child = opened(child);

    until_go();

    if (loses("child"))
        dup2(opened(parent), of_child);
    CHECK(shown(of_child) == child, "the child's stat is that of %d", shown(of_child));
    int status = -1;
    REQUIRE(write(go[1], "g", 1) == 1 && waitpid(child, &status, 0) == child);
    CHECK(status == 0, "the parent's stat is not the parent's any more: %x", status);
    return verdict();
}
