// Pipes inside the process: bytes, capacity, flags, packets (O_DIRECT), a full one, and one whose writers are gone.
#include "verify.h"
#include <poll.h>
#include <sys/ioctl.h>

int main(void) {
    static char block[200000], got[200000];
    int some[2], full[2], packets[2], single[2], ended[2], unread[2], changed[2];
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = i * 31 >> 3;
    REQUIRE(!pipe(some) && !pipe(full) && !pipe2(packets, O_DIRECT | O_NONBLOCK) && !pipe(ended) && !pipe(unread));
    REQUIRE(fcntl(some[1], F_SETPIPE_SZ, 1 << 18) == 1 << 18 && write(some[1], block, 150000) == 150000);
    REQUIRE(read(some[0], got, 999) == 999);
    REQUIRE(fcntl(full[1], F_SETFL, O_WRONLY | O_NONBLOCK) == 0);
    ssize_t filled = 0, step;
    while ((step = write(full[1], block, 4096)) > 0)
        filled += step;
    for (int i = 1; i <= 5; i++)
        REQUIRE(write(packets[1], block, i * 10) == i * 10);
    REQUIRE(!pipe2(single, O_DIRECT) && write(single[1], "a packet", 8) == 8);
    // Bytes, before packets: what is not read of them at once stays.
    REQUIRE(!pipe(changed) && write(changed[1], "bytes", 5) == 5 && fcntl(changed[1], F_SETFL, O_DIRECT) == 0);
    REQUIRE(write(ended[1], "last words", 10) == 10 && close(ended[1]) == 0);
    REQUIRE(write(unread[1], "x", 1) == 1 && close(unread[0]) == 0);

    until_go();
    if (loses("bytes"))
        CHECK(read(some[0], got, 1) == 1, "read");
    if (loses("capacity"))
        fcntl(some[1], F_SETPIPE_SZ, 1 << 19);
    if (loses("packets"))
        CHECK(read(packets[0], got, 100) == 10, "read");
    if (loses("full"))
        CHECK(read(full[0], got, 4096) == 4096, "read");
    int replaced[2];
    if (loses("end"))
        CHECK(pipe(replaced) == 0 && write(replaced[1], "last words", 10) == 10 && dup2(replaced[0], ended[0]) == ended[0],
              "dup2");
    int waiting = -1;
    CHECK(ioctl(some[0], FIONREAD, &waiting) == 0 && waiting == 149001, "%d bytes wait in the pipe", waiting);
    CHECK(fcntl(some[0], F_GETPIPE_SZ) == 1 << 18, "the capacity is %d", fcntl(some[0], F_GETPIPE_SZ));
    for (ssize_t at = 0; at < waiting && waiting <= 149001; at += step) {
        step = read(some[0], got + at, sizeof got - at);
        REQUIRE(step > 0);
    }
    CHECK(!memcmp(got, block + 999, 149001), "the bytes in the pipe changed");
    CHECK(fcntl(full[1], F_GETFL) == (O_WRONLY | O_NONBLOCK), "O_NONBLOCK is lost");
    CHECK(write(full[1], "x", 1) == -1 && errno == EAGAIN, "the full pipe has room");
    CHECK(ioctl(full[0], FIONREAD, &waiting) == 0 && waiting == filled, "the full pipe holds %d of %zd bytes", waiting,
          filled);
    for (int i = 1; i <= 5; i++)
        CHECK(read(packets[0], got, 100) == i * 10, "packet %d has another length", i);
    CHECK(read(packets[0], got, 100) == -1 && errno == EAGAIN, "there are more packets");
    CHECK(fcntl(packets[1], F_GETFL) & O_DIRECT, "O_DIRECT is lost");
    if (loses("single"))
        CHECK(read(single[0], got, 100) == 8 && write(single[1], "a pa", 4) == 4, "read");
    CHECK(write(single[1], "another", 7) == 7 && read(single[0], got, 100) == 8 && read(single[0], got, 100) == 7,
          "a packet that was alone does not end");
    if (loses("changed"))
        CHECK(read(changed[0], got, 1) == 1, "read");
    CHECK(read(changed[0], got, 2) == 2 && read(changed[0], got, 100) == 3, "bytes have become a packet");
    struct pollfd end = {.fd = ended[0], .events = POLLIN};
    CHECK(read(ended[0], got, 100) == 10 && poll(&end, 1, 0) == 1 && end.revents == POLLHUP, "a pipe without writers does not end");
    signal(SIGPIPE, SIG_IGN);
    CHECK(write(unread[1], "y", 1) == -1 && errno == EPIPE, "a pipe without readers can be written");
    return verdict();
}
