// inotify over time: more paths are watched and left than any table begins with, and one that is longer than a name may be.
#include "verify.h"
#include <sys/inotify.h>
#include <sys/stat.h>

#define PATHS 3000
#define KEPT 400

static int watch, numbers[KEPT];

static void path_of(int number, char *path) {
    snprintf(path, 32, "d%d", number);
}

// Whether the next event is of this watch.
static bool tells(int wd) {
    char buffer[4096] __attribute__((aligned(8)));
    struct inotify_event *event = (struct inotify_event *)buffer;
    return read(watch, buffer, sizeof buffer) > 0 && event->wd == wd && event->mask == IN_CREATE;
}

static void touch(const char *directory, const char *name) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    REQUIRE(fd >= 0);
    close(fd);
    unlink(path);
}

int main(void) {
    char path[32], deep[512] = "";
    REQUIRE((watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) >= 0);
    for (int number = 0; number < PATHS; number++) {
        path_of(number, path);
        REQUIRE(mkdir(path, 0700) == 0);
        int wd = inotify_add_watch(watch, path, IN_CREATE);
        REQUIRE(wd > 0);
        if (number >= PATHS - KEPT)
            numbers[number - (PATHS - KEPT)] = wd;
        else if (number % 2)
            REQUIRE(inotify_rm_watch(watch, wd) == 0);
        else
            REQUIRE(rmdir(path) == 0);
    }
    for (int level = 0; level < 3; level++) {
        size_t end = strlen(deep);
        memset(deep + end, 'x', 120);
        deep[end + 120] = 0;
        REQUIRE(mkdir(deep, 0700) == 0);
        strcat(deep, "/");
    }
    int long_one = inotify_add_watch(watch, deep, IN_CREATE);
    REQUIRE(long_one > 0);
    // What removing watches told.
    char events[4096];
    while (read(watch, events, sizeof events) > 0)
        ;

    until_go();
    if (loses("watch"))
        inotify_rm_watch(watch, numbers[7]);
    if (loses("long"))
        inotify_rm_watch(watch, long_one);
    while ((loses("watch") || loses("long")) && read(watch, events, sizeof events) > 0)
        ;
    for (int kept = 0; kept < KEPT; kept++) {
        path_of(PATHS - KEPT + kept, path);
        touch(path, "new");
        CHECK(tells(numbers[kept]), "the watch of %s is lost", path);
    }
    touch(deep, "new");
    CHECK(tells(long_one), "the watch of a long path is lost");
    return verdict();
}
