// The working directory has been deleted: the checkpoint is refused by name, or the restored one is as deleted.
#include "verify.h"
#include <sys/stat.h>

int main(void) {
    char link[4096] = "", name[4096];
    REQUIRE(mkdir("gone", 0700) == 0 && chdir("gone") == 0 && rmdir("../gone") == 0);
    until_go();
    if (loses("deletion"))
        CHECK(chdir("/") == 0, "chdir");
    CHECK(readlink("/proc/self/cwd", link, sizeof link - 1) > 0 && strstr(link, "gone (deleted)"), "the cwd is %s", link);
    CHECK(getcwd(name, sizeof name) == NULL && errno == ENOENT, "getcwd finds a deleted directory");
    return verdict();
}
