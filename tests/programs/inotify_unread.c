// Events of inotify that nobody has read: they come in their order, with their names, and poll(2) tells of them until the last has been
// read, and of what comes then.
#include "verify.h"
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>

static void touch(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    REQUIRE(fd >= 0 && close(fd) == 0);
}

static bool is_ready(int fd) {
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    return poll(&ready, 1, 0) == 1 && ready.revents == POLLIN;
}

// Reads one event, in a buffer that has no room for two, which must be this one.
static void expect(int queue, int watch, uint32_t mask, const char *name) {
    char buffer[sizeof(struct inotify_event) + 16] = "";
    struct inotify_event *event = (void *)buffer;
    CHECK(is_ready(queue), "%s is not told of", name);
    ssize_t length = read(queue, buffer, sizeof buffer);
    CHECK(length == sizeof buffer && event->wd == watch && event->mask == mask && !strcmp(event->name, name),
          "%s: %zd bytes, watch %d, mask %#x, %.16s", name, length, event->wd, event->mask, event->name);
}

int main(void) {
    REQUIRE(mkdir("watched", 0700) == 0 && mkdir("other", 0700) == 0);
    int queue = inotify_init1(IN_NONBLOCK), second = inotify_init1(0), quiet = inotify_init1(IN_NONBLOCK);
    int watched = inotify_add_watch(queue, "watched", IN_CREATE | IN_DELETE | IN_MOVE);
    int other = inotify_add_watch(queue, "other", IN_CREATE | IN_MOVE);
    int twice = inotify_add_watch(second, "watched", IN_CREATE);
    REQUIRE(watched > 0 && other > 0 && twice > 0 && inotify_add_watch(quiet, "other", IN_ATTRIB) > 0);
    touch("watched/a"), touch("watched/b");
    REQUIRE(unlink("watched/a") == 0 && rename("watched/b", "other/c") == 0);

    until_go();
    if (loses("event"))
        expect(queue, watched, IN_CREATE, "a");
    if (loses("quiet"))
        chmod("other", 0755);
    char small[sizeof(struct inotify_event)];
    CHECK(read(queue, small, sizeof small) == -1 && errno == EINVAL, "a name is given without room for it");
    expect(queue, watched, IN_CREATE, "a");
    expect(queue, watched, IN_CREATE, "b");
    touch("other/new");
    expect(queue, watched, IN_DELETE, "a");
    expect(queue, watched, IN_MOVED_FROM, "b");
    expect(queue, other, IN_MOVED_TO, "c");
    expect(queue, other, IN_CREATE, "new");
    CHECK(!is_ready(queue) && read(queue, small, sizeof small) == -1 && errno == EAGAIN, "there is more");
    // All at once, by another name of the descriptor.
    char all[4096];
    int same = dup(second);
    size_t expected = 2 * (sizeof(struct inotify_event) + 16);
    CHECK(read(same, all, sizeof all) == (ssize_t)expected, "both events of the other queue");
    CHECK(!is_ready(second), "there is more in the other queue");
    CHECK(!is_ready(quiet) && read(quiet, all, sizeof all) == -1 && errno == EAGAIN, "the quiet one has events");
    int third = inotify_add_watch(queue, ".", IN_CREATE);
    touch("more");
    expect(queue, third, IN_CREATE, "more");
    return verdict();
}
