// Contexts of kernel AIO (io_setup(2)): one in which nothing waits, and one with events that nobody has taken, the first of
// which lies at the end of the ring.
#include "verify.h"
#include <linux/aio_abi.h>

struct ring {
    uint32_t id, room, head, tail;
};

static char buffer[16];

static bool submit(aio_context_t context, int fd, uint64_t data) {
    struct iocb request = {.aio_data = data, .aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_PREAD,
                           .aio_buf = (uintptr_t)buffer, .aio_nbytes = 4};
    struct iocb *requests[] = {&request};
    return syscall(SYS_io_submit, context, 1, requests) == 1;
}

// The data of the next event; 0: there is none, or its result is not what was read.
static uint64_t take(aio_context_t context) {
    struct io_event event = {0};
    struct timespec second = {1, 0};
    return syscall(SYS_io_getevents, context, 1, 1, &event, &second) == 1 && event.res == 4 ? event.data : 0;
}

static const volatile struct ring *ring_of(aio_context_t context) {
    return (const volatile struct ring *)context;
}

int main(void) {
    aio_context_t empty = 0, full = 0;
    REQUIRE(syscall(SYS_io_setup, 4, &empty) == 0 && syscall(SYS_io_setup, 200, &full) == 0);
    int fd = open("aio.data", O_RDWR | O_CREAT | O_TRUNC, 0600);
    REQUIRE(fd >= 0 && write(fd, "data", 4) == 4 && unlink("aio.data") == 0);
    REQUIRE(submit(empty, fd, 7) && take(empty) == 7);
    for (uint32_t at = 0; at < ring_of(full)->room - 2; at++)
        REQUIRE(submit(full, fd, 100 + at) && take(full) == 100 + at);
    for (uint64_t data = 1; data <= 5; data++)
        REQUIRE(submit(full, fd, data));
    while ((ring_of(full)->tail + ring_of(full)->room - ring_of(full)->head) % ring_of(full)->room != 5)
        sleep_ms(1);

    until_go();
    if (loses("events"))
        take(full);
    if (loses("context"))
        syscall(SYS_io_destroy, empty);
    for (uint64_t data = 1; data <= 5; data++) {
        uint64_t taken = take(full);
        CHECK(taken == data, "event %ld is %ld", (long)data, (long)taken);
    }
    for (uint64_t data = 11; data <= 13; data++) {
        CHECK(submit(full, fd, data) && take(full) == data, "a context with events does not work any more");
        CHECK(submit(empty, fd, data) && take(empty) == data, "a context does not work any more");
    }
    struct io_event event;
    struct timespec none = {0};
    CHECK(syscall(SYS_io_getevents, full, 1, 1, &event, &none) == 0, "there are more events than were made");
    CHECK(syscall(SYS_io_destroy, full) == 0, "a context cannot be destroyed");
    return verdict();
}
