// Descriptors on their way through unix sockets (SCM_RIGHTS), each with the byte or the message that it was sent with.
#include "rights.h"
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/un.h>

static int nameless(const char *text) {
    int fd = open(".", O_RDWR | O_TMPFILE, 0600);
    REQUIRE(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && lseek(fd, 4, SEEK_SET) == 4);
    return fd;
}

int main(void) {
    int stream[2], packets[2], ended[2], words[2], inner[2], both[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ended) == 0 && pipe2(words, O_NONBLOCK) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, inner) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, both) == 0);
    int file = open("named", O_RDWR | O_CREAT | O_TRUNC, 0600);
    REQUIRE(file >= 0 && write(file, "0123456789", 10) == 10 && lseek(file, 7, SEEK_SET) == 7);
    int memory = memfd_create("sent", 0);
    REQUIRE(memory >= 0 && write(memory, "memory", 6) == 6 && lseek(memory, 0, SEEK_SET) == 0);

    // A stream: what comes before and behind comes without.
    give(stream[0], "before", 0, NULL);
    give(stream[0], "F", 1, &file);
    give(stream[0], "x", 0, NULL);
    int two[] = {nameless("nameless"), memory};
    give(stream[0], "two of them", 2, two);
    REQUIRE(close(two[0]) == 0 && close(two[1]) == 0);
    give(stream[0], "behind", 0, NULL);
    give_away(stream[0], "D", open(".", O_RDONLY | O_DIRECTORY));
    // Packets, and a pipe of which nobody else can write.
    give(packets[0], "first", 0, NULL);
    give_away(packets[0], "second", words[1]);
    // A socket with something unread, whose other end is here.
    REQUIRE(send(inner[0], "within", 6, 0) == 6);
    give(packets[0], "third", 1, &inner[1]);
    // The sender has ended.
    give_away(ended[0], "last", eventfd(3, EFD_NONBLOCK));
    REQUIRE(close(ended[0]) == 0);
    // Datagrams of a pair, and of a socket with a name.
    give(both[0], "datagram", 2, (int[]){file, both[0]});
    struct sockaddr_un name = {AF_UNIX, ""};
    int named = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    snprintf(name.sun_path + 1, 60, "rights %d", getpid());
    REQUIRE(bind(named, (void *)&name, sizeof name) == 0 && connect(sender, (void *)&name, sizeof name) == 0);
    give_away(sender, "named", inner[1]);

    until_go();
    if (loses("offset"))
        lseek(file, 0, SEEK_SET);
    if (loses("message"))
        take(packets[1], 60, "first", 0, NULL);
    if (loses("border"))
        take(stream[1], 1, "b", 0, NULL);
    take(stream[1], 6, "before", 0, NULL);
    int again = take_one(stream[1], 1, "F");
    CHECK(lseek(again, 0, SEEK_CUR) == 7 && lseek(again, 2, SEEK_SET) == 2 && lseek(file, 0, SEEK_CUR) == 2,
          "the file that was sent is not the one that was kept");
    take(stream[1], 1, "x", 0, NULL);
    take(stream[1], 60, "two of them", 2, two);
    CHECK(reads(two[0], "less") && reads(two[1], "memory"), "the nameless file, or the memory");
    struct stat status;
    CHECK(fstat(two[0], &status) == 0 && status.st_nlink == 0, "the nameless file has a name");
    take(stream[1], 6, "behind", 0, NULL);
    int directory = take_one(stream[1], 1, "D");
    CHECK(faccessat(directory, "named", F_OK, 0) == 0, "the directory");
    take(packets[1], 60, "first", 0, NULL);
    int writing = take_one(packets[1], 60, "second");
    CHECK(write(writing, "words", 5) == 5 && reads(words[0], "words"), "the pipe");
    CHECK(close(writing) == 0 && reads(words[0], ""), "the pipe does not end");
    int other = take_one(packets[1], 60, "third");
    CHECK(reads(other, "within") && write(other, "back", 4) == 4 && reads(inner[0], "back"), "the socket");
    int event = take_one(ended[1], 60, "last");
    uint64_t count = 0;
    CHECK(read(event, &count, 8) == 8 && count == 3, "the eventfd has %lu", count);
    CHECK(reads(ended[1], ""), "the connection has not ended");
    take(both[1], 60, "datagram", 2, two);
    CHECK(lseek(two[0], 0, SEEK_CUR) == 2, "the file that was sent twice");
    CHECK(write(two[1], "end", 3) == 3 && reads(both[1], "end"), "the end that was sent through its pair");
    int back = take_one(named, 60, "named");
    CHECK(write(inner[0], "more", 4) == 4 && write(back, "x", 1) == 1 && reads(inner[0], "x"), "the socket that was sent twice");
    return verdict();
}
