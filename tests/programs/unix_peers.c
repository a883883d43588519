// Whose unix connections and messages are: root's to a child that has given up root, and the child's to root.
#include "verify.h"
#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { USER = 1000, GROUP = 1001, OTHER_GROUP = 1007 };

static struct sockaddr_un stream_name, datagram_name;

static struct sockaddr_un name(const char *directory, const char *file) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", directory, file);
    return address;
}

static bool peer_is(int fd, uid_t uid, gid_t gid, int groups) {
    struct ucred peer = {0, -1, -1};
    gid_t list[64] = {0};
    socklen_t length = sizeof peer, size = sizeof list;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == uid && peer.gid == gid &&
           getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, list, &size) == 0 && (int)(size / sizeof *list) == groups &&
           (groups != 1 || list[0] == OTHER_GROUP);
}

// Whether the next message has this text, and is of this user; -1: of nobody that the kernel knows.
static bool comes_from(int fd, const char *text, uid_t uid) {
    char got[16] = "", control[CMSG_SPACE(sizeof(struct ucred))];
    struct iovec part = {got, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(fd, &message, MSG_DONTWAIT) != (ssize_t)strlen(text) || strcmp(got, text))
        return false;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    struct ucred *sender = (void *)CMSG_DATA(header);
    if (!header || header->cmsg_type != SCM_CREDENTIALS)
        return false;
    return uid == (uid_t)-1 ? sender->pid == 0 && sender->uid == 65534
                            : sender->uid == uid && sender->gid == (uid ? (gid_t)GROUP : 0);
}

static void in_child(int control, int root_groups) {
    gid_t group = OTHER_GROUP;
    REQUIRE(setgroups(1, &group) == 0 && setgid(GROUP) == 0 && setuid(USER) == 0);
    int connected = socket(AF_UNIX, SOCK_STREAM, 0), waiting = socket(AF_UNIX, SOCK_STREAM, 0);
    int datagrams = socket(AF_UNIX, SOCK_DGRAM, 0), own[2];
    REQUIRE(connect(connected, (void *)&stream_name, sizeof stream_name) == 0);
    REQUIRE(connect(waiting, (void *)&stream_name, sizeof stream_name) == 0);
    REQUIRE(sendto(datagrams, "datagram", 8, 0, (void *)&datagram_name, sizeof datagram_name) == 8);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, own) == 0);
    char byte;
    REQUIRE(read(control, &byte, 1) == 1 && write(connected, "child", 5) == 5);
    REQUIRE(write(control, "x", 1) == 1 && read(control, &byte, 1) == 1);
    CHECK(peer_is(connected, 0, 0, root_groups) && peer_is(control, 0, 0, root_groups), "root's are not root's any more");
    CHECK(peer_is(own[0], USER, GROUP, 1), "its own is another's");
    _exit(atomic_load(&failures) != 0);
}

int main(void) {
    char directory[] = "/tmp/stasis-peers-XXXXXX", byte;
    int control[2], on = 1;
    REQUIRE(mkdtemp(directory) && chmod(directory, 0755) == 0);
    umask(0);
    stream_name = name(directory, "stream"), datagram_name = name(directory, "datagrams");
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), receiver = socket(AF_UNIX, SOCK_DGRAM, 0);
    REQUIRE(bind(listener, (void *)&stream_name, sizeof stream_name) == 0 && listen(listener, 8) == 0);
    REQUIRE(bind(receiver, (void *)&datagram_name, sizeof datagram_name) == 0);
    REQUIRE(sendto(control[0] = socket(AF_UNIX, SOCK_DGRAM, 0), "unasked", 7, 0, (void *)&datagram_name,
                   sizeof datagram_name) == 7 && close(control[0]) == 0);
    REQUIRE(setsockopt(receiver, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, control) == 0);
    int root_groups = getgroups(0, NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0)
        in_child(control[1], root_groups);
    int server = accept(listener, NULL, NULL);
    REQUIRE(server >= 0 && setsockopt(server, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    REQUIRE(write(control[0], "x", 1) == 1 && read(control[0], &byte, 1) == 1);

    until_go();
    if (loses("peer")) {
        int mine[2];
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, mine) == 0 && dup2(mine[0], server) == server);
    }
    CHECK(peer_is(server, USER, GROUP, 1), "the child's connection is not the child's any more");
    int accepted = accept(listener, NULL, NULL);
    CHECK(peer_is(accepted, USER, GROUP, 1), "the connection that waited is not the child's any more");
    if (loses("senders")) {
        recv(receiver, (char[8]){0}, 8, 0), recv(receiver, (char[8]){0}, 8, 0);
        sendto(accepted = socket(AF_UNIX, SOCK_DGRAM, 0), "unasked", 7, 0, (void *)&datagram_name, sizeof datagram_name);
        sendto(accepted, "datagram", 8, 0, (void *)&datagram_name, sizeof datagram_name);
    }
    CHECK(comes_from(receiver, "unasked", -1), "a datagram that nobody asked of has a sender");
    CHECK(comes_from(receiver, "datagram", USER), "a datagram is another's");
    CHECK(loses("peer") || comes_from(server, "child", USER), "what came through the connection is another's");
    int status = -1;
    CHECK(write(control[0], "x", 1) == 1 && waitpid(child, &status, 0) == child && status == 0, "the child: %#x", status);
    unlink(stream_name.sun_path), unlink(datagram_name.sun_path), rmdir(directory);
    return verdict();
}
