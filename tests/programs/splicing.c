// Threads that sleep in splice and sendfile: with the lock of the pipe that they write to, and with that of the one they read.
#include "verify.h"
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

enum { LEN = 4096 };

static int into[2], from[2], full[2], sent[2], file;
static atomic_long results[3];

static void *from_socket(void *unused) {
    atomic_store(&results[0], splice(from[0], NULL, into[1], NULL, LEN, 0));
    return unused;
}

static int outof[2];

static void *to_socket(void *unused) {
    atomic_store(&results[1], splice(outof[0], NULL, full[0], NULL, LEN, 0));
    return unused;
}

static void *from_file(void *unused) {
    atomic_store(&results[2], sendfile(sent[0], file, NULL, LEN));
    return unused;
}

static size_t fill(int fd) {
    static char zeros[LEN];
    size_t filled = 0;
    for (size_t len = LEN; len; len /= 2)
        for (ssize_t got; (got = send(fd, zeros, len, MSG_DONTWAIT)) > 0;)
            filled += got;
    return filled;
}

static void drain(int fd, size_t left) {
    static char bytes[LEN];
    for (ssize_t got; left && (got = read(fd, bytes, left < LEN ? left : LEN)) > 0;)
        left -= got;
    CHECK(left == 0, "%zu bytes did not come", left);
}

int main(void) {
    static char zeros[LEN];
    REQUIRE(!pipe(into) && !pipe(outof));
    REQUIRE(!socketpair(AF_UNIX, SOCK_STREAM, 0, from) && !socketpair(AF_UNIX, SOCK_STREAM, 0, full) &&
            !socketpair(AF_UNIX, SOCK_STREAM, 0, sent));
    file = memfd_create("sent", 0);
    REQUIRE(ftruncate(file, LEN) == 0 && write(outof[1], zeros, LEN) == LEN);
    size_t filled = fill(full[0]), filled_too = fill(sent[0]);
    for (int i = 0; i < 3; i++)
        atomic_store(&results[i], -2);
    pthread_t threads[] = {start_thread(from_socket, NULL), start_thread(to_socket, NULL), start_thread(from_file, NULL)};
    sleep_ms(100);
    until_go();
    if (loses("wait"))
        REQUIRE(write(from[1], "x", 1) == 1);
    sleep_ms(50);
    for (int i = 0; i < 3; i++)
        CHECK(atomic_load(&results[i]) == -2, "call %d ended early: %ld", i, atomic_load(&results[i]));
    CHECK(write(from[1], "hello", 5) == 5, "write");
    drain(full[1], filled + LEN);
    drain(sent[1], filled_too + LEN);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    const long expected[] = {5, LEN, LEN};
    for (int i = 0; i < 3; i++)
        CHECK(atomic_load(&results[i]) == expected[i], "call %d gave %ld", i, atomic_load(&results[i]));
    char got[8] = "";
    CHECK(read(into[0], got, 5) == 5 && !memcmp(got, "hello", 5), "what was spliced is another");
    return verdict();
}
