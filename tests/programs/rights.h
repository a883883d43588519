// Sending descriptors through unix sockets (SCM_RIGHTS), and receiving them.
#ifndef RIGHTS_H
#define RIGHTS_H

#include "verify.h"
#include <sys/socket.h>

enum { MOST = 4 };

static void give(int socket, const char *text, int count, const int *rights) {
    char control[CMSG_SPACE(MOST * sizeof(int))] = {0};
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        message.msg_control = control, message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(header), rights, count * sizeof(int));
    }
    REQUIRE(sendmsg(socket, &message, MSG_DONTWAIT) == (ssize_t)strlen(text));
}

// Gives one, of which the process keeps nothing.
UNUSED static void give_away(int socket, const char *text, int fd) {
    give(socket, text, 1, &fd);
    REQUIRE(close(fd) == 0);
}

// Receives at most `size` bytes, which must be `text`, and exactly `count` descriptors.
static void take(int socket, size_t size, const char *text, int count, int *rights) {
    char got[64] = "", control[CMSG_SPACE(MOST * sizeof(int))];
    struct iovec part = {got, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t length = recvmsg(socket, &message, MSG_DONTWAIT);
    CHECK(length == (ssize_t)strlen(text) && !memcmp(got, text, length), "%s: %zd bytes, %.60s", text, length, got);
    struct cmsghdr *header = message.msg_controllen ? CMSG_FIRSTHDR(&message) : NULL;
    int came = header && header->cmsg_type == SCM_RIGHTS ? (header->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
    CHECK(came == count, "%s: %d descriptors come with it", text, came);
    for (int at = 0; at < count; at++)
        rights[at] = -1;
    if (came)
        memcpy(rights, CMSG_DATA(header), (came < count ? came : count) * sizeof(int));
}

UNUSED static int take_one(int socket, size_t size, const char *text) {
    int right;
    take(socket, size, text, 1, &right);
    return right;
}

UNUSED static bool reads(int fd, const char *text) {
    char got[64];
    ssize_t length = read(fd, got, sizeof got);
    return length == (ssize_t)strlen(text) && !memcmp(got, text, length);
}

#endif
