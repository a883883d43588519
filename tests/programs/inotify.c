// inotify: watch descriptors and masks; events that are queued and unread; new events afterwards.
#include "verify.h"
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>

static int watch;

static void touch(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    REQUIRE(fd >= 0);
    close(fd);
}

// Takes the next event, from as many at once as the kernel gives.
static bool expect(int wd, uint32_t mask, const char *name) {
    static char buffer[8192] __attribute__((aligned(8)));
    static ssize_t have, at;
    if (at == have) {
        at = 0;
        have = read(watch, buffer, sizeof buffer);
        if (have < 0)
            have = 0;
    }
    if (at == have)
        return false;
    struct inotify_event *event = (struct inotify_event *)(buffer + at);
    at += sizeof *event + event->len;
    return event->wd == wd && event->mask == mask && (!name || (event->len && strcmp(event->name, name) == 0));
}

int main(int argc, char **argv) {
    watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    REQUIRE(watch >= 0 && mkdir("one", 0700) == 0 && mkdir("two", 0700) == 0 && mkdir("gone", 0700) == 0);
    int gone = inotify_add_watch(watch, "gone", IN_CREATE);
    int one = inotify_add_watch(watch, "one", IN_CREATE | IN_DELETE);
    // Descriptors are given in order, so one that is not the next shows whether they are kept.
    REQUIRE(inotify_rm_watch(watch, gone) == 0);
    int two = inotify_add_watch(watch, "two", IN_CREATE | IN_ONLYDIR);
    REQUIRE(one > gone && two > one && expect(gone, IN_IGNORED, NULL));
    touch("one/queued-1");
    touch("two/queued-2");
    // Those that wait are kept for the process, or with this argument read first. Where another process has the queue, too, they cannot be.
    bool is_read = argc > 1 && strcmp(argv[1], "read") == 0;
    if (argc > 1 && strcmp(argv[1], "child") == 0 && fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(watch);
        for (;;)
            pause();
    }
    if (is_read)
        REQUIRE(expect(one, IN_CREATE, "queued-1") && expect(two, IN_CREATE, "queued-2"));

    until_go();
    if (loses("queue")) {
        char rest[4096];
        if (!is_read)
            CHECK(read(watch, rest, sizeof rest) > 0, "read");
        else
            touch("two/lost");
    }
    if (loses("mask"))
        inotify_add_watch(watch, "one", IN_CREATE);
    if (loses("watch"))
        inotify_rm_watch(watch, two);
    CHECK(fcntl(watch, F_GETFD) == FD_CLOEXEC && fcntl(watch, F_GETFL) & O_NONBLOCK, "flags changed");
    if (!is_read) {
        CHECK(expect(one, IN_CREATE, "queued-1"), "the first queued event is lost or changed");
        CHECK(expect(two, IN_CREATE, "queued-2"), "the second queued event is lost or changed");
    }
    unlink("one/queued-1");
    touch("two/new");
    unlink("two/new");
    CHECK(expect(one, IN_DELETE, "queued-1"), "the first watch no longer tells of a deletion");
    CHECK(expect(two, IN_CREATE, "new"), "the second watch no longer tells of a creation");
    CHECK(!expect(0, 0, NULL), "there are more events than were made");
    CHECK(inotify_add_watch(watch, "one", IN_CREATE) == one, "the watch descriptor of a directory changed");
    return verdict();
}
