// Pseudo-terminals that are full: nothing more can be written, in pieces of any size. What was written is read, to the last byte.
#include "verify.h"
#include <poll.h>
#include <pty.h>
#include <termios.h>

enum { SIZES = 7, PAIRS = 2 * SIZES, MOST = 100000 };

static const int sizes[SIZES] = {1, 7, 100, 256, 512, 2048, 65536};

static struct {
    int master, slave;
    long written;
} pairs[PAIRS];

static char pattern(long at) { return 'a' + at % 23; }

// Whether the terminal has room, once what it does in the background is done.
static bool has_room(int i) {
    struct pollfd master = {pairs[i].master, POLLIN, 0}, slave = {pairs[i].slave, POLLOUT, 0};
    for (int attempt = 0; attempt < 20; attempt++) {
        poll(&master, 1, 0);
        if (poll(&slave, 1, 1) == 1)
            return true;
    }
    return false;
}

static void fill(int i, int size) {
    static char piece[65536];
    do {
        for (int at = 0; at < size; at++)
            piece[at] = pattern(pairs[i].written + at);
        ssize_t written = write(pairs[i].slave, piece, size);
        pairs[i].written += written > 0 ? written : 0;
    } while (has_room(i) && pairs[i].written < MOST);
}

int main(void) {
    for (int i = 0; i < PAIRS; i++) {
        struct termios modes;
        REQUIRE(openpty(&pairs[i].master, &pairs[i].slave, NULL, NULL, NULL) == 0);
        REQUIRE(tcgetattr(pairs[i].slave, &modes) == 0);
        if (i % 2)
            cfmakeraw(&modes);
        REQUIRE(tcsetattr(pairs[i].slave, TCSANOW, &modes) == 0);
        REQUIRE(fcntl(pairs[i].slave, F_SETFL, O_NONBLOCK) == 0 && fcntl(pairs[i].master, F_SETFL, O_NONBLOCK) == 0);
        fill(i, sizes[i / 2]);
    }

    until_go();
    for (int i = 0; i < PAIRS; i++) {
        long read_in_all = 0;
        struct pollfd master = {pairs[i].master, POLLIN, 0};
        char got[4096];
        if (i == 0 && loses("bytes"))
            CHECK(read(pairs[i].master, got, 3) == 3, "read");
        while (poll(&master, 1, 100) == 1) {
            ssize_t count = read(pairs[i].master, got, sizeof got);
            if (count <= 0)
                break;
            for (ssize_t at = 0; at < count; at++)
                if (got[at] != pattern(read_in_all + at)) {
                    FAIL("pair %d: byte %ld is wrong", i, read_in_all + at);
                    return verdict();
                }
            read_in_all += count;
        }
        CHECK(read_in_all == pairs[i].written, "pair %d: %ld of %ld bytes are read", i, read_in_all, pairs[i].written);
        CHECK(write(pairs[i].slave, "more", 4) == 4, "pair %d takes no more", i);
    }
    return verdict();
}
