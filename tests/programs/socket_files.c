// Files of unix sockets: renamed or linked into place, removed, with their directory too, bound from another working
// directory, of another owner and mode.
#include "verify.h"
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static char directory[] = "/tmp/stasis-files-XXXXXX";

static struct sockaddr_un named(const char *file) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", directory, file);
    return address;
}

static const char *path(const char *file) {
    static char paths[4][200];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 200, "%s/%s", directory, file);
    return path;
}

static int bound(int type, struct sockaddr_un address) {
    int fd = socket(AF_UNIX, type, 0);
    REQUIRE(fd >= 0 && bind(fd, (void *)&address, sizeof address) == 0 && (type == SOCK_DGRAM || listen(fd, 8) == 0));
    return fd;
}

static bool answers(const char *file) {
    struct sockaddr_un address = named(file);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bool answered = connect(fd, (void *)&address, sizeof address) == 0;
    close(fd);
    return answered;
}

static bool is_named(int fd, const char *file) {
    struct sockaddr_un address = {0}, wanted = named(file);
    socklen_t length = sizeof address;
    return getsockname(fd, (void *)&address, &length) == 0 && !strcmp(address.sun_path, wanted.sun_path);
}

int main(void) {
    char got[16], *start = getcwd(NULL, 0);
    uid_t uid = getuid() ? getuid() : 12;
    gid_t gid = getuid() ? getgid() : 13;
    REQUIRE(mkdtemp(directory) && start);
    int renamed = bound(SOCK_STREAM, named("temporary"));
    REQUIRE(rename(path("temporary"), path("final")) == 0);
    int linked = bound(SOCK_STREAM, named("first"));
    REQUIRE(link(path("first"), path("second")) == 0 && unlink(path("first")) == 0);
    int removed = bound(SOCK_STREAM, named("removed"));
    REQUIRE(unlink(path("removed")) == 0);
    REQUIRE(mkdir(path("inner"), 0700) == 0);
    int listener = bound(SOCK_STREAM, named("inner/socket")), client = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un inner = named("inner/socket"), datagrams = named("datagrams");
    REQUIRE(connect(client, (void *)&inner, sizeof inner) == 0);
    int server = accept(listener, NULL, NULL);
    REQUIRE(unlink(path("inner/socket")) == 0 && rmdir(path("inner")) == 0);
    int receiver = bound(SOCK_DGRAM, datagrams), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    REQUIRE(connect(sender, (void *)&datagrams, sizeof datagrams) == 0 && send(sender, "one", 3, 0) == 3);
    REQUIRE(unlink(path("datagrams")) == 0);
    REQUIRE(mkdir(path("elsewhere"), 0700) == 0 && chdir(path("elsewhere")) == 0);
    bound(SOCK_STREAM, (struct sockaddr_un){AF_UNIX, "relative"});
    REQUIRE(chdir(start) == 0);
    bound(SOCK_STREAM, named("owned"));
    REQUIRE(chown(path("owned"), uid, gid) == 0 && chmod(path("owned"), 0751) == 0);

    until_go();
    if (loses("rename"))
        rename(path("final"), path("temporary"));
    if (loses("owner"))
        chmod(path("owned"), 0700);
    struct stat found;
    CHECK(answers("final") && is_named(renamed, "temporary"), "nobody answers at the name that it was given");
    CHECK(access(path("temporary"), F_OK) == -1, "the name before is back");
    CHECK(answers("second") && is_named(linked, "first"), "nobody answers at the name that it was linked to");
    CHECK(access(path("first"), F_OK) == -1, "the name that it was linked from is back");
    CHECK(access(path("removed"), F_OK) == -1 && is_named(removed, "removed"), "a name that was removed is back");
    CHECK(access(path("inner"), F_OK) == -1 && is_named(listener, "inner/socket"), "a directory that was removed is back");
    CHECK(is_named(server, "inner/socket") && send(client, "x", 1, 0) == 1 && recv(server, got, 8, 0) == 1, "a connection");
    CHECK(recv(receiver, got, 8, MSG_DONTWAIT) == 3 && !memcmp(got, "one", 3), "a datagram to a name that was removed");
    CHECK(send(sender, "two", 3, 0) == 3 && recv(receiver, got, 8, MSG_DONTWAIT) == 3, "the way to a name that was removed");
    CHECK(answers("elsewhere/relative") && access("relative", F_OK) == -1, "the one that was bound elsewhere");
    CHECK(stat(path("owned"), &found) == 0 && (found.st_mode & 07777) == 0751, "its mode is %o", found.st_mode);
    CHECK(found.st_uid == uid && found.st_gid == gid, "it is of uid %d, gid %d", found.st_uid, found.st_gid);
    unlink(path("second"));
    unlink(path(loses("rename") ? "temporary" : "final")), unlink(path("owned")), unlink(path("elsewhere/relative")), rmdir(path("elsewhere"));
    CHECK(rmdir(directory) == 0, "something is left in %s", directory);
    return verdict();
}
